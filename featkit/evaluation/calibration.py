"""Calibration of probabilities: log loss, calibration error and temperature scaling.

In all functions ``scores (n, m)`` are probabilities whose rows sum to 1, ``y (n,)`` true classes as
indices 0..k-1, and ``columns[j]`` is the class of column ``j``, as in ``metrics``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError
from featkit.evaluation.clusters import Clusters, proportion_interval
from featkit.evaluation.intervals import Interval, wilson
from featkit.evaluation.metrics import Labels, Scores, own_columns

BINS = 15
_SMALLEST = float(np.finfo(np.float64).eps)
_SUM_TOLERANCE = 1e-5
TEMPERATURES = (1e-3, 1e3)
"""Smallest and largest temperature that ``fit_temperature`` returns."""
SMOOTHINGS = (float(np.finfo(np.float64).tiny), _SMALLEST, 1e-6, 1e-4, 1e-3, 1e-2)
"""Candidates of ``fit_temperature``. The first only makes the logarithm of 0 finite: scores far
below 2.2e-16 still measure how wrong an overconfident head is."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Test images of similar confidence.

    Attributes:
        confidence: mean confidence.
        accuracy: fraction of correct predictions.
        count: number of images.
        interval95: Wilson score interval of ``accuracy``.
    """

    confidence: float
    accuracy: float
    count: int
    interval95: Interval


@dataclass(frozen=True)
class Temperature:
    """Parameters of temperature scaling.

    Attributes:
        value: divisor of the logarithms of the scores, above 1 for an overconfident head.
        smoothing: added to every score before. KNN heads give exact zeros and SVM heads extremely
            small scores; a temperature alone that corrects these would make all other confidences
            too low.
    """

    value: float
    smoothing: float


def are_probabilities(scores: Scores) -> bool:
    """Return whether scores are non-negative with rows that sum to 1, up to float32 rounding."""
    if not (scores >= 0).all():
        return False
    # A sum that is NaN or infinite makes the comparison false.
    return bool(np.abs(scores.sum(axis=1) - 1).max(initial=0) <= _SUM_TOLERANCE)


def nll(scores: Scores, y: Labels, columns: Labels) -> float:
    """Return the mean negative log-likelihood of the true classes, in nats.

    As in scikit-learn, probabilities are clipped at 2.2e-16 (a loss of 36.0), because KNN heads
    give exact zeros. A class without a column has probability zero.
    """
    likelihoods = np.maximum(_true_class_scores(scores, y, columns), _SMALLEST)
    # Rounding can make a probability larger than 1, and the negative of a sum of zeros is -0.0.
    return max(0.0, -fsum(np.log(likelihoods)) / len(y))


def _true_class_scores(scores: Scores, y: Labels, columns: Labels) -> NDArray[np.float64]:
    """Return the score of the true class, ``(n,)``; 0 if it has no column."""
    column = own_columns(y, columns)
    values: NDArray[np.float64] = np.where(column >= 0, scores[np.arange(len(y)), column], 0.0)
    return values


def reliability_bins(
    scores: Scores,
    y: Labels,
    columns: Labels,
    *,
    bins: int = BINS,
    clusters: Clusters | None = None,
) -> tuple[ReliabilityBin, ...]:
    """Return at most ``bins`` bins of equal size by ascending confidence, as far as ties allow.

    Confidence is the highest score of a row. Images of the same confidence are in the same bin,
    that of their median rank: KNN heads give most images confidence 1, and the result must not
    depend on the order of the images.

    Args:
        scores: ``(n, m)`` probabilities.
        y: ``(n,)`` true classes.
        columns: ``(m,)`` the class of each column.
        bins: largest number of bins.
        clusters: groups of the images, for the intervals; None for independent images.
    """
    best = scores.argmax(axis=1)
    return equal_mass_bins(scores.max(axis=1), columns[best] == y, bins=bins, clusters=clusters)


def equal_mass_bins(
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    *,
    bins: int = BINS,
    clusters: Clusters | None = None,
) -> tuple[ReliabilityBin, ...]:
    """Return at most ``bins`` bins of equal size by ascending confidence, see ``reliability_bins``.

    Args:
        confidence: ``(n,)`` probability that a prediction is correct.
        correct: ``(n,)`` whether it is.
        bins: largest number of bins.
        clusters: groups of the images, for the intervals; None for independent images.
    """
    levels, level_of, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    bin_of = (bins * middle / len(correct)).astype(np.int64)[level_of]
    confidence = levels[level_of]
    # The images in the order of their bins, in which each bin is a slice.
    order = np.argsort(bin_of, kind="stable")
    confidences, are_correct = confidence[order].tolist(), correct[order].tolist()
    ends = (np.flatnonzero(np.diff(bin_of[order])) + 1).tolist()
    found = []
    for start, end in pairwise([0, *ends, len(order)]):
        count, hits = end - start, sum(are_correct[start:end])
        if clusters is None:
            interval = wilson(hits, count)
        else:
            rows = order[start:end]
            interval = proportion_interval(correct[rows], clusters.take(rows))
        mean = fsum(confidences[start:end]) / count
        found.append(ReliabilityBin(mean, hits / count, count, interval))
    return tuple(found)


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the mean absolute difference between confidence and accuracy, weighted by count."""
    return fsum(each.count * abs(each.accuracy - each.confidence) for each in bins) / sum(
        each.count for each in bins
    )


def ece(scores: Scores, y: Labels, columns: Labels) -> float:
    """Return the expected calibration error of the predicted class, over 15 bins of equal mass.

    It is biased upwards: even a perfectly calibrated head has a positive value, and a larger one on
    fewer images.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, eq. 3; bins of equal
    mass as in Nguyen and O'Connor, "Posterior calibration and exploratory analysis for NLP models",
    EMNLP 2015.
    """
    return calibration_error(reliability_bins(scores, y, columns))


def fit_temperature(scores: Scores, y: Labels, columns: Labels) -> Temperature:
    """Return the temperature that maximizes the likelihood of the true classes.

    For a given smoothing the problem is convex in 1/T; the best of a few smoothing values is
    chosen. One pseudo-image is added, an average image whose true class is the one with the
    second-highest score (Laplace's rule): without it, the optimum is T = 0, and every confidence 1,
    if all predictions are correct. Images of a class without a column are ignored.

    Args:
        scores: ``(n, m)`` of images on which nothing was fitted, such as the validation set; at
            least two columns.
        y: ``(n,)`` their true classes.
        columns: ``(m,)`` the class of each column.

    Raises:
        DataError: if the scores are not probabilities of two classes or more, or no image has a
            class with a column.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2. The
        smoothing is featkit's.
    """
    if len(columns) < 2 or not are_probabilities(scores):
        raise DataError(
            f"scores {scores.shape} are not probabilities: a temperature needs two columns or "
            "more, and rows that are non-negative and sum to 1"
        )
    own = own_columns(y, columns)
    known = own >= 0
    if not known.any():
        raise DataError(
            f"none of {len(y)} images is of a class of the head: a temperature needs at least one"
        )
    fits = [
        _fit(_logits(scores[known], smoothing), own[known], smoothing) for smoothing in SMOOTHINGS
    ]
    return min(fits, key=lambda fit: fit[0])[1]


def _fit(logits: Scores, own: Labels, smoothing: float) -> tuple[float, Temperature]:
    """Return the smallest loss for one smoothing, and the temperature that gives it."""
    # Imported here, since exported classifiers predict without SciPy.
    from scipy.optimize import brentq

    n = len(own)
    true = fsum(logits[np.arange(n), own])
    runner_up = fsum(np.partition(logits, -2, axis=1)[:, -2]) / n

    def slope(inverse: float) -> float:
        # The maximum of each row of logits is 0. SciPy's softmax takes several times as long for
        # the few images of a small validation set.
        exponentials = np.exp(inverse * logits)
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        mean = fsum((probabilities * logits).sum(axis=1))
        return (n + 1) / n * mean - true - runner_up

    def loss(inverse: float) -> float:
        return (n + 1) / n * fsum(np.log(np.exp(inverse * logits).sum(axis=1))) - inverse * (
            true + runner_up
        )

    low, high = (1 / value for value in reversed(TEMPERATURES))
    if slope(low) >= 0 or slope(high) <= 0:
        best = low if slope(low) >= 0 else high
    else:
        best = float(brentq(slope, low, high, xtol=1e-12, rtol=1e-12))
    return loss(best), Temperature(1 / best, smoothing)


def apply_temperature(scores: Scores, temperature: Temperature) -> Scores:
    """Return ``(scores + smoothing) ** (1 / T)``, normalized to sum 1 in each row.

    Predictions do not change.

    Raises:
        DataError: if the temperature or its smoothing is not a positive number.
    """
    if not (0 < temperature.value < np.inf and 0 < temperature.smoothing < np.inf):
        raise DataError(
            f"{temperature} is invalid: value and smoothing must be positive numbers, as "
            "fit_temperature returns them"
        )
    # The softmax; the maximum of each row of logits is 0.
    exponentials = np.exp(_logits(scores, temperature.smoothing) / temperature.value)
    calibrated: Scores = exponentials / exponentials.sum(axis=1, keepdims=True)
    best = scores.argmax(axis=1)
    # Scores that differ in the last digit can become equal, which would change the prediction to
    # the first of them.
    changed = np.flatnonzero(calibrated.argmax(axis=1) != best)
    calibrated[changed, best[changed]] = np.nextafter(calibrated[changed].max(axis=1), np.inf)
    return calibrated


def _logits(scores: Scores, smoothing: float) -> Scores:
    """Return the logarithms of smoothed probabilities ``(n, m)``, minus the maximum of each row."""
    logs = np.log(scores + smoothing)
    relative: Scores = logs - logs.max(axis=1, keepdims=True)
    return relative
