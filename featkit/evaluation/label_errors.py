"""Errors of a classifier with several labels per image: labels missed, added, taken for others.

In all functions ``targets (n, k)`` and ``predicted (n, k)`` are zeros and ones, and ``probabilities
(n, k)`` the calibrated probability of each label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featkit.evaluation.calibration import ReliabilityBin, equal_mass_bins
from featkit.evaluation.clusters import Clusters

Floats = NDArray[np.float64]
Targets = NDArray[np.uint8]


@dataclass(frozen=True)
class LabelError:
    """A label that an image has and was not given, or was given and does not have.

    Attributes:
        row: of the image.
        column: of the label.
        probability: of the label.
    """

    row: int
    column: int
    probability: float


def largest_errors(
    wrong: NDArray[np.bool_], probabilities: Floats, *, highest: bool, count: int
) -> list[LabelError]:
    """Return the errors with the most extreme probabilities, at most one for each image.

    Args:
        wrong: ``(n, k)`` whether a label is an error of this kind.
        probabilities: of the labels.
        highest: whether the highest probabilities come first, for labels that were wrongly added;
            else the lowest, for labels that were missed.
        count: largest number of errors.
    """
    rows, columns = np.nonzero(wrong)
    found = probabilities[rows, columns]
    order = np.argsort(-found if highest else found, kind="stable")
    errors: dict[int, LabelError] = {}
    for place in order.tolist():
        row = int(rows[place])
        errors.setdefault(row, LabelError(row, int(columns[place]), float(found[place])))
        if len(errors) == count:
            break
    return list(errors.values())


def label_confusion(targets: Targets, predicted: Targets) -> NDArray[np.int64]:
    """Return the confusion matrix of labels, ``(k + 1, k + 1)`` numbers of test images.

    Row i, column j: images of which label i was missed and label j was wrongly added. On the
    diagonal are the images whose label i was found. The last column has the images of which label i
    was missed and none was wrongly added, the last row those to which label j was added and no
    label of which was missed. An image with several errors counts in several cells.

    Source: Heydarian, Doyle and Samavi, "MLCM: multi-label confusion matrix", IEEE Access 10
    (2022), 19083-19095, without its weights.
    """
    has, given = targets.astype(np.int64), predicted.astype(np.int64)
    missed, added = has * (1 - given), given * (1 - has)
    nothing_added = (added.sum(axis=1) == 0).astype(np.int64)
    nothing_missed = (missed.sum(axis=1) == 0).astype(np.int64)
    k = targets.shape[1]
    matrix = np.zeros((k + 1, k + 1), np.int64)
    matrix[:k, :k] = missed.T @ added
    matrix[:k, k] = missed.T @ nothing_added
    matrix[k, :k] = nothing_missed @ added
    matrix[np.arange(k), np.arange(k)] = (has * given).sum(axis=0)
    return matrix


def cooccurrence(targets: Targets) -> NDArray[np.int64]:
    """Return the number of images with both of two labels ``(k, k)``; on the diagonal, with one."""
    counts = targets.astype(np.int64)
    together: NDArray[np.int64] = counts.T @ counts
    return together


def pooled_reliability(
    targets: Targets, probabilities: Floats, groups: Sequence[str] | None = None
) -> tuple[ReliabilityBin, ...]:
    """Return bins of all pairs of image and label; intervals resample images, or their groups."""
    n, k = targets.shape
    units = np.arange(n) if groups is None else np.asarray(groups)
    clusters = Clusters.of(np.repeat(units, k), n * k)
    return equal_mass_bins(probabilities.ravel(), targets.ravel() == 1, clusters=clusters)


def label_reliability(
    targets: Targets, probabilities: Floats, groups: Sequence[str] | None = None, *, bins: int
) -> tuple[tuple[ReliabilityBin, ...], ...]:
    """Return bins of the probability of each label, see ``equal_mass_bins``."""
    clusters = Clusters.of(groups, len(targets))
    found = []
    for target, score in zip(targets.T, probabilities.T, strict=True):
        found.append(equal_mass_bins(score, target == 1, bins=bins, clusters=clusters))
    return tuple(found)
