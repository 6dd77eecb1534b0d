"""Shares of right answers, counted from scores and from a confusion matrix.

Throughout: ``y (n,)`` true classes as positions 0..k-1, ``scores (n, m)`` where column ``j`` is about the class
``columns[j]``. A class without a column was never seen by the head and is missed whenever it is the true one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Scores = NDArray[np.float64]


class PerClass(NamedTuple):
    """Three ``(k,)`` float arrays, NaN where there is nothing to divide by.

    ``precision`` is NaN for a class that was never predicted, ``recall`` and ``f1`` for one without test images.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def predict(scores: Scores, columns: Labels) -> Labels:
    """Return ``(n,)`` the class of the highest score; of equal scores the first column, as heads predict."""
    best: Labels = columns[scores.argmax(axis=1)]
    return best


def own_columns(y: Labels, columns: Labels) -> Labels:
    """Return ``(n,)`` the column that is about each row's true class, -1 where there is none."""
    column_of = np.full(int(max(y.max(), columns.max())) + 1, -1)
    column_of[columns] = np.arange(len(columns))
    return column_of[y]


def confusion_matrix(y: Labels, predicted: Labels, k: int) -> Labels:
    """Return ``(k, k)`` counts, true class by row, predicted class by column."""
    return np.bincount(y * k + predicted, minlength=k * k).reshape(k, k)


def top_k(scores: Scores, y: Labels, columns: Labels, k: int) -> float:
    """Return the share of rows whose true class is the predicted one or has fewer than ``k`` rivals.

    A rival is any other class whose score is as high or higher: ties count against the head. A KNN head gives most
    classes the same score, zero; broken by position, such ties would favour whichever classes come first.
    """
    own = own_columns(y, columns)
    rivals = (scores >= np.take_along_axis(scores, own[:, None], axis=1)).sum(axis=1) - 1
    hits = (own >= 0) & ((rivals < k) | (scores.argmax(axis=1) == own))
    return float(hits.mean())


def per_class(confusion: Labels) -> PerClass:
    """Return precision, recall and F1 of every class."""
    hits, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return PerClass(
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, true),
        f1=np.where(true > 0, _ratio(2 * hits, true + predicted), np.nan),
    )


def balanced_accuracy(confusion: Labels) -> float:
    """Return the mean recall over the classes that the test set contains."""
    return float(np.nanmean(per_class(confusion).recall))


def macro_f1(confusion: Labels) -> float:
    """Return the mean F1 over the classes that the test set contains."""
    return float(np.nanmean(per_class(confusion).f1))


def most_confused(confusion: Labels, classes: Sequence[str]) -> list[tuple[int, int]]:
    """Return (true, predicted) of every kind of mistake: by count, then by share of the true class, then by name."""
    wrong = np.where(np.eye(len(confusion), dtype=bool), 0, confusion)
    shares = wrong / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    rank = np.unique(list(classes), return_inverse=True)[1]
    true, predicted = np.nonzero(wrong)
    order = np.lexsort((rank[predicted], rank[true], -shares[true, predicted], -wrong[true, predicted]))
    return list(zip(true[order].tolist(), predicted[order].tolist(), strict=True))


def _ratio(part: Labels, whole: Labels) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return ratio
