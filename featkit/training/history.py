"""Metrics of each epoch, and the lines of ``history.csv``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class EpochScore:
    """Mean loss, top-1 and top-5 accuracy (fractions) over ``n`` images in one epoch.

    ``top5`` is None for five classes or fewer.
    """

    loss: float
    top1: float
    top5: float | None
    n: int


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of the training history.

    Attributes:
        number: from 0.
        rate: learning rate of the last step, as a fraction of the peak learning rate.
        train: score of the augmented training images, accumulated while the network was updated.
        val: score of the validation images after the epoch, or None.
        seconds: wall time, validation included.
    """

    number: int
    rate: float
    train: EpochScore
    val: EpochScore | None
    seconds: float

    def to_list(self) -> list[Any]:
        """Return the record as stored in a checkpoint."""
        return [
            self.number,
            self.rate,
            _score_to_list(self.train),
            _score_to_list(self.val) if self.val else None,
            self.seconds,
        ]

    @classmethod
    def from_list(cls, values: list[Any]) -> EpochRecord:
        """Read what ``to_list`` returned."""
        number, rate, train, val, seconds = values
        return cls(number, rate, EpochScore(*train), EpochScore(*val) if val else None, seconds)


def _score_to_list(score: EpochScore) -> list[float | None]:
    return [score.loss, score.top1, score.top5, score.n]


def batch_sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``(4,)`` sums over a batch: loss, correct top-1, correct top-5, images.

    The third is NaN for five classes or fewer.

    Args:
        loss: mean over the batch.
        logits: ``(b, k)``.
        labels: ``(b,)``.
    """
    n = len(labels)
    classes = logits.shape[1]
    best = logits.detach().topk(min(5, classes), dim=1).indices == labels[:, None]
    top5 = float(best.sum()) if classes > 5 else math.nan
    return torch.tensor(
        [float(loss.detach()) * n, float(best[:, 0].sum()), top5, n], dtype=torch.float64
    )


def score_from_sums(total: Tensor) -> EpochScore:
    """Return the means of accumulated ``batch_sums``; NaN without images."""
    loss, top1, top5, n = total.tolist()
    if not n:
        return EpochScore(math.nan, math.nan, None, 0)
    return EpochScore(loss / n, top1 / n, None if math.isnan(top5) else top5 / n, int(n))


def best_epoch(history: Iterable[EpochRecord]) -> int | None:
    """Return the epoch with the best validation top-1, then loss; None without validation."""
    ranked = [(each.val.top1, -each.val.loss, -each.number) for each in history if each.val]
    return -max(ranked)[2] if ranked else None


def history_rows(history: Iterable[EpochRecord]) -> Iterator[dict[str, float | int | str]]:
    """Yield one row of ``history.csv`` per epoch; missing values are empty strings."""
    for each in history:
        row: dict[str, float | int | str] = {"epoch": each.number + 1, "rate": each.rate}
        for split, score in (("train", each.train), ("val", each.val)):
            for metric in ("loss", "top1", "top5", "n"):
                value = getattr(score, metric) if score else None
                row[f"{split}_{metric}"] = "" if value is None else value
        yield row


def history_numbers(history: Iterable[EpochRecord]) -> list[dict[str, float]]:
    """Return the rows of ``history.csv`` as numbers; empty values are NaN."""
    rows = []
    for row in history_rows(history):
        rows.append({name: float("nan" if value == "" else value) for name, value in row.items()})
    return rows
