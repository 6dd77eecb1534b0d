"""Classification metrics from scores and from a confusion matrix.

In all functions ``y (n,)`` are true classes as indices 0..k-1, ``scores (n, m)`` have one column
for each class that the head was fitted on, and ``columns[j]`` is the class of column ``j``. Images
of a class without a column are misses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TOP1 = "top-1"
"""Name of the top-1 accuracy in tables."""
BALANCED_ACCURACY = "balanced accuracy"
MEAN_AVERAGE_PRECISION = "mAP"

Labels = NDArray[np.int64]
Scores = NDArray[np.float64]


class PerClass(NamedTuple):
    """Precision, recall and F1 of each class, ``(k,)`` floats.

    ``precision`` is NaN for a class that was never predicted, ``recall`` and ``f1`` for a class
    without test images.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def predict(scores: Scores, columns: Labels) -> Labels:
    """Return the class of the highest score, ``(n,)``; the first column wins ties."""
    best: Labels = columns[scores.argmax(axis=1)]
    return best


def own_columns(y: Labels, columns: Labels) -> Labels:
    """Return the column of the true class of each row, ``(n,)``; -1 if it has none."""
    column_of = np.full(int(max(y.max(), columns.max())) + 1, -1)
    column_of[columns] = np.arange(len(columns))
    return column_of[y]


def confusion_matrix(y: Labels, predicted: Labels, k: int) -> Labels:
    """Return ``(k, k)`` counts, with true classes as rows and predicted classes as columns."""
    return np.bincount(y * k + predicted, minlength=k * k).reshape(k, k)


def top_k(scores: Scores, y: Labels, columns: Labels, k: int) -> float:
    """Return the top-k accuracy, with ties counted against the classifier.

    A row is correct if its true class is the predicted one, or if fewer than ``k`` other classes
    have a score at least as high. KNN heads give most classes the score 0; breaking such ties by
    column would favour the first classes.
    """
    own = own_columns(y, columns)
    at_least_as_high = (scores >= np.take_along_axis(scores, own[:, None], axis=1)).sum(axis=1) - 1
    hits = (own >= 0) & ((at_least_as_high < k) | (scores.argmax(axis=1) == own))
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
    """Return the mean recall over the classes with test images."""
    return float(np.nanmean(per_class(confusion).recall))


def macro_f1(confusion: Labels) -> float:
    """Return the mean F1 over the classes with test images."""
    return float(np.nanmean(per_class(confusion).f1))


def most_confused(confusion: Labels, classes: Sequence[str]) -> list[tuple[int, int]]:
    """Return the (true, predicted) pairs of all wrong predictions, the most frequent first.

    Pairs of the same count are ordered by their fraction of the true class, then by class name.
    """
    wrong = np.where(np.eye(len(confusion), dtype=bool), 0, confusion)
    shares = wrong / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    rank = np.unique(list(classes), return_inverse=True)[1]
    true, predicted = np.nonzero(wrong)
    order = np.lexsort(
        (rank[predicted], rank[true], -shares[true, predicted], -wrong[true, predicted])
    )
    return list(zip(true[order].tolist(), predicted[order].tolist(), strict=True))


def clustered_order(confusion: Labels) -> Labels:
    """Return an order of the classes ``(k,)`` in which classes that are confused are neighbours.

    The classes are clustered by average linkage, with the fraction of images confused in either
    direction as similarity; the leaves are ordered optimally.

    References:
        Bar-Joseph, Gifford and Jaakkola, "Fast optimal leaf ordering for hierarchical clustering",
        Bioinformatics 2001.
    """
    k = len(confusion)
    if k < 3:
        return np.arange(k)
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering

    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    upper = np.triu_indices(k, 1)
    distances = 1.0 - (shares + shares.T)[upper] / 2
    tree = optimal_leaf_ordering(linkage(distances, "average"), distances)
    return np.asarray(leaves_list(tree), np.int64)


def _ratio(part: Labels, whole: Labels) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(
        part, whole, out=np.full(len(whole), np.nan), where=whole > 0
    )
    return ratio
