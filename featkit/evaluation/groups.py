"""Accuracy on classes with many, a medium number of, and few training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featkit.errors import DataError
from featkit.evaluation.intervals import Interval, wilson

MANY, FEW = 100, 20
"""Many: more than 100 training images; few: fewer than 20; medium: what lies between."""
IMBALANCE = MANY / FEW
"""A smaller spread between the largest and the smallest class can lie within one group."""


@dataclass(frozen=True)
class GroupAccuracy:
    """The classes of one group: how many there are, and the share of right answers on their n test images.

    Attributes:
        name: ``many``, ``medium`` or ``few``.
        classes: number of classes that have test images.
        n: number of test images.
        top1: share of right answers, every image counting the same.
        interval95: Wilson score interval of ``top1``.
    """

    name: str
    classes: int
    n: int
    top1: float
    interval95: Interval


def group_rows(
    hits: NDArray[np.int64], totals: NDArray[np.int64], train_counts: ArrayLike
) -> tuple[GroupAccuracy, ...] | None:
    """Return a row for each group that has test images; None where train is not imbalanced.

    Imbalanced means that the largest class has at least 5 times the images of the smallest, and that not all classes
    fall into one group. A border between 98 and 102 images tells nothing.

    Args:
        hits: ``(k,)`` right answers in each class.
        totals: ``(k,)`` test images of each class.
        train_counts: ``(k,)`` training images of each class; a class without any is among the few.

    Raises:
        DataError: if ``train_counts`` are not k whole numbers from 0 up.

    Source: Liu et al., "Large-scale long-tailed recognition in an open world", CVPR 2019, section 5.
    """
    counts = np.asarray(train_counts)
    if counts.shape != hits.shape or counts.dtype.kind not in "iu" or counts.min() < 0:
        raise DataError(
            f"train_counts {counts.shape} of {counts.dtype}: give the number of training images of each of the "
            f"{len(hits)} classes"
        )
    members = {"many": counts > MANY, "medium": (counts >= FEW) & (counts <= MANY), "few": counts < FEW}
    if counts.max() < IMBALANCE * counts.min() or sum(map(np.any, members.values())) < 2:
        return None
    rows = [(name, its & (totals > 0)) for name, its in members.items()]
    return tuple(_row(name, hits[its], totals[its]) for name, its in rows if its.any())


def _row(name: str, hits: NDArray[np.int64], totals: NDArray[np.int64]) -> GroupAccuracy:
    right, n = int(hits.sum()), int(totals.sum())
    return GroupAccuracy(name, len(totals), n, right / n, wilson(right, n))
