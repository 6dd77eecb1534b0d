"""Do scores mean what they say? Log loss, calibration error, and the one number that mends it.

Throughout: ``scores (n, m)`` are probabilities, rows that sum to 1; ``y (n,)`` true classes as positions 0..k-1;
column ``j`` is about the class ``columns[j]``, as in ``metrics``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from featkit.errors import DataError
from featkit.evaluation.intervals import Interval, wilson
from featkit.evaluation.metrics import Labels, Scores, own_columns

BINS = 15
_SMALLEST = float(np.finfo(np.float64).eps)
TEMPERATURES = (1e-3, 1e3)
"""The lowest and the highest that ``fit_temperature`` gives."""
SMOOTHINGS = (float(np.finfo(np.float64).tiny), _SMALLEST, 1e-6, 1e-4, 1e-3, 1e-2)
"""What ``fit_temperature`` chooses from. The first does no more than make a logarithm of 0 possible: scores far below
2.2e-16 still tell a head that is much too confident how wrong it was."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Test images of like confidence: their mean confidence, share of right predictions with its interval, number."""

    confidence: float
    accuracy: float
    count: int
    interval95: Interval


@dataclass(frozen=True)
class Temperature:
    """What divides the logarithms of scores, above 1 for a head that is too confident.

    Before that, ``smoothing`` is added to every score. The zeros of a KNN head, and the far tails of an SVM, are not
    to be taken literally; a temperature alone that undoes them leaves every confidence too low.
    """

    value: float
    smoothing: float


def are_probabilities(scores: Scores) -> bool:
    """Return whether every row is non-negative and sums to 1, give or take the rounding of float32."""
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, rtol=0, atol=1e-5))


def nll(scores: Scores, y: Labels, columns: Labels) -> float:
    """Return the mean negative log likelihood of the true classes, in nats.

    A probability below 2.2e-16 counts as that, at a loss of 36.0, as in scikit-learn: a KNN head gives exact zeros. A
    class without a column has probability zero.
    """
    return -fsum(np.log(np.maximum(_own(scores, y, columns), _SMALLEST))) / len(y)


def _own(scores: Scores, y: Labels, columns: Labels) -> NDArray[np.float64]:
    """Return ``(n,)`` the score of the true class, 0 where it has no column."""
    own = own_columns(y, columns)
    taken: NDArray[np.float64] = np.where(own >= 0, scores[np.arange(len(y)), own], 0.0)
    return taken


def reliability_bins(scores: Scores, y: Labels, columns: Labels, *, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Return at most ``bins`` bins of as equal a number of images as ties allow, by rising confidence.

    Confidence is the highest score of a row. Images of the same confidence share a bin, that of the middle one among
    them: a KNN head is unanimous about most images, and what order these come in must not matter.
    """
    best = scores.argmax(axis=1)
    levels, level_of, counts = np.unique(scores.max(axis=1), return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    place = (bins * middle / len(y)).astype(np.int64)[level_of]
    confidence, right = levels[level_of], columns[best] == y
    return tuple(_bin(confidence[place == each], right[place == each]) for each in np.unique(place))


def _bin(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> ReliabilityBin:
    count, hits = len(right), int(right.sum())
    return ReliabilityBin(fsum(confidence) / count, hits / count, count, wilson(hits, count))


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the mean distance between confidence and accuracy of the bins, weighted by their counts."""
    return fsum(each.count * abs(each.accuracy - each.confidence) for each in bins) / sum(each.count for each in bins)


def ece(scores: Scores, y: Labels, columns: Labels) -> float:
    """Return the expected calibration error of the predicted class, over 15 bins of equal mass.

    Chance alone lifts it above 0: a head that is perfectly calibrated has a larger one on fewer images.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, eq. 3; bins of equal mass as in Nguyen
    and O'Connor, "Posterior calibration and exploratory analysis for NLP models", EMNLP 2015.
    """
    return calibration_error(reliability_bins(scores, y, columns))


def fit_temperature(scores: Scores, y: Labels, columns: Labels) -> Temperature:
    """Return the temperature under which ``apply_temperature`` makes the true classes likeliest.

    For a given smoothing the problem is convex in 1/T; of a few, the one with the likeliest true classes is taken.
    One more image is imagined, like the others but with the runner-up as its true class (Laplace's rule): where every
    prediction is right, the likelihood alone would send T to 0 and every confidence to 1. An image whose class has no
    column says nothing about T and is left out.

    Args:
        scores: ``(n, m)`` of images on which nothing was fitted, such as those of val; at least two columns.
        y: ``(n,)`` their classes.
        columns: ``(m,)`` the class of each column.

    Raises:
        DataError: if the scores are not probabilities of two classes or more, or no image has a class with a column.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2. The smoothing is featkit's.
    """
    if len(columns) < 2 or not are_probabilities(scores):
        raise DataError(
            f"scores {scores.shape} are not probabilities: a temperature needs two columns or more, rows that are "
            "non-negative and sum to 1"
        )
    own = own_columns(y, columns)
    known = own >= 0
    if not known.any():
        raise DataError(f"none of {len(y)} images has a class that the head knows: a temperature needs at least one")
    fits = [_fit(_logits(scores[known], smoothing), own[known], smoothing) for smoothing in SMOOTHINGS]
    return min(fits, key=lambda fit: fit[0])[1]


def _fit(logits: Scores, own: Labels, smoothing: float) -> tuple[float, Temperature]:
    """Return the best temperature over one smoothing, after the loss that it leaves."""
    n = len(own)
    true = fsum(logits[np.arange(n), own])
    runner_up = fsum(np.partition(logits, -2, axis=1)[:, -2]) / n

    def slope(inverse: float) -> float:
        return (n + 1) / n * fsum((_softmax(inverse * logits) * logits).sum(axis=1)) - true - runner_up

    def loss(inverse: float) -> float:
        return (n + 1) / n * fsum(np.log(np.exp(inverse * logits).sum(axis=1))) - inverse * (true + runner_up)

    low, high = (1 / value for value in reversed(TEMPERATURES))
    if slope(low) >= 0 or slope(high) <= 0:
        best = low if slope(low) >= 0 else high
    else:
        best = float(brentq(slope, low, high, xtol=1e-12, rtol=1e-12))
    return loss(best), Temperature(1 / best, smoothing)


def apply_temperature(scores: Scores, temperature: Temperature) -> Scores:
    """Return ``(scores + smoothing) ** (1 / T)``, each row divided by its sum; predictions stay what they were.

    Raises:
        DataError: if the temperature or its smoothing is not a positive number.
    """
    if not (0 < temperature.value < np.inf and 0 < temperature.smoothing < np.inf):
        raise DataError(f"{temperature} is no temperature over 0 with a smoothing over 0: take it from fit_temperature")
    powers = _softmax(_logits(scores, temperature.smoothing) / temperature.value)
    best = scores.argmax(axis=1)
    # Scores that differ in the last digit can become equal, and the first of equals is predicted.
    moved = np.flatnonzero(powers.argmax(axis=1) != best)
    powers[moved, best[moved]] = np.nextafter(powers[moved].max(axis=1), np.inf)
    return powers


def _logits(scores: Scores, smoothing: float) -> Scores:
    """Return the logarithms of smoothed probabilities ``(n, m)``, relative to the highest of the row."""
    logs = np.log(scores + smoothing)
    relative: Scores = logs - logs.max(axis=1, keepdims=True)
    return relative


def _softmax(logits: Scores) -> Scores:
    """Return the soft-max of rows whose highest logit is 0."""
    powers = np.exp(logits)
    shares: Scores = powers / powers.sum(axis=1, keepdims=True)
    return shares
