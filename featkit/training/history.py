"""What each epoch came to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class EpochScore:
    """What an epoch came to on train or on val: mean loss, top-1 and top-5 (shares), number of images."""

    loss: float
    top1: float
    top5: float
    n: int


@dataclass(frozen=True)
class EpochRecord:
    """One line of the history; train as the network was while it learned, val after the epoch.

    Attributes:
        number: from 0.
        rate: share of the highest learning rate at its last step.
        train: of the images as they were seen, augmented.
        val: of the images as they are, or None.
        seconds: that it took, val included.
    """

    number: int
    rate: float
    train: EpochScore
    val: EpochScore | None
    seconds: float

    def to_list(self) -> list[Any]:
        """Return the epoch as a checkpoint can hold it."""
        scores = [[each.loss, each.top1, each.top5, each.n] if each else None for each in (self.train, self.val)]
        return [self.number, self.rate, *scores, self.seconds]

    @classmethod
    def from_list(cls, values: list[Any]) -> EpochRecord:
        """Read what ``to_list`` wrote."""
        number, height, train, val, seconds = values
        return cls(number, height, EpochScore(*train), EpochScore(*val) if val else None, seconds)


def sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``(4,)`` of a batch: summed loss, number of right answers, of right ones among five, of images.

    Args:
        loss: mean over the batch.
        logits: ``(b, k)``.
        labels: ``(b,)``.
    """
    n = len(labels)
    best = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.tensor([float(loss.detach()) * n, float(best[:, 0].sum()), float(best.sum()), n], dtype=torch.float64)


def score(total: Tensor) -> EpochScore:
    """Return the score that summed ``sums`` come to."""
    loss, top1, top5, n = total.tolist()
    return EpochScore(loss / n, top1 / n, top5 / n, int(n)) if n else EpochScore(math.nan, math.nan, math.nan, 0)


def best_epoch(history: Iterable[EpochRecord]) -> int | None:
    """Return the number of the epoch with the best val top-1, of equal ones that of least loss; None without val."""
    judged = [(each.val.top1, -each.val.loss, -each.number) for each in history if each.val]
    return -max(judged)[2] if judged else None


def history_rows(history: Iterable[EpochRecord]) -> Iterator[dict[str, float | int | str]]:
    """Yield one line of ``history.csv`` for each epoch; what there is no val for is empty."""
    for each in history:
        line: dict[str, float | int | str] = {"epoch": each.number + 1, "rate": each.rate}
        for name, judged in (("train", each.train), ("val", each.val)):
            for part in ("loss", "top1", "top5", "n"):
                line[f"{name}_{part}"] = getattr(judged, part) if judged else ""
        yield line


def history_numbers(history: Iterable[EpochRecord]) -> list[dict[str, float]]:
    """Return the lines of ``history.csv`` as numbers; what is empty is NaN."""
    rows = history_rows(history)
    return [{name: float("nan" if value == "" else value) for name, value in row.items()} for row in rows]
