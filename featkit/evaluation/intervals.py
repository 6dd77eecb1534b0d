"""Confidence intervals for accuracies and paired differences, over the sampling of test images."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError

Interval = tuple[float, float]


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Return the Wilson score interval of a binomial proportion.

    Unlike the normal approximation and the percentile bootstrap, it has a width even if all
    predictions are correct.

    Args:
        successes: number of correct predictions, 0..n; may be fractional if ``n`` is an effective
            sample size.
        n: number of predictions.
        level: confidence level.

    Raises:
        DataError: if ``n`` is not positive or ``successes`` is not in 0..n.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
        (1927), 209-212.
    """
    if not (n > 0 and 0 <= successes <= n):
        raise DataError(
            f"no interval for {successes} correct of {n} predictions: give 0 <= successes <= n and "
            "n > 0"
        )
    z2 = _normal_quantile((1 + level) / 2) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def effective_images(share: float, interval: Interval, level: float = 0.95) -> float:
    """Return the number of images for which ``wilson`` gives an interval of a proportion.

    Args:
        share: the proportion, such as the accuracy on images in groups.
        interval: Wilson's interval at an effective number of images, which is returned; 0 for the
            interval from 0 to 1.
        level: its confidence level.
    """
    width = min(1.0, interval[1] - interval[0])
    # Wilson's half width solved for z**2 / n, of which a quadratic equation has one positive root.
    linear, constant = 2 * width**2 - 4 * share * (1 - share), width**2
    leading = 1 - constant
    if leading <= 0:
        return 0.0
    ratio = (linear + sqrt(linear**2 + 4 * leading * constant)) / (2 * leading)
    return float(_normal_quantile((1 + level) / 2) ** 2 / ratio)


_normal_quantile = lru_cache(maxsize=16)(NormalDist().inv_cdf)


def balanced_interval(
    hits: NDArray[np.int64],
    totals: NDArray[np.int64],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return an interval of balanced accuracy: bootstrap, widened to the Wilson interval.

    The percentile bootstrap (Efron 1979) resamples the test images; classes that are not drawn do
    not count in that resample. It has no width if all predictions are correct, and with few images
    in a class its coverage is far below the level (65 % with classes of 95 and 5 images, 78 % with
    37 classes of 4, both at a recall of 0.99). The interval is therefore widened to contain the
    Wilson interval of the same proportion at the effective sample size ``k**2 / sum(1 / totals)``
    of ``k`` classes. The union covered 95 % or more in every simulation, and is too wide if recalls
    differ strongly between classes.

    Args:
        hits: ``(k,)`` number of correct predictions in each class.
        totals: ``(k,)`` number of test images of each class; classes without any are ignored.
        level: confidence level.
        resamples: number of bootstrap resamples.
        seed: of the resamples. The result does not depend on the order of images and classes.

    Raises:
        DataError: if there is no test image.
    """
    hits, totals = hits[totals > 0], totals[totals > 0]
    if not len(totals):
        raise DataError("no test images: balanced accuracy has no interval without them")
    order = np.lexsort((hits, totals))
    hits, totals = hits[order], totals[order]
    low, high = _percentiles(
        tuple(hits.tolist()), tuple(totals.tolist()), level, resamples=resamples, seed=seed
    )
    effective = len(totals) ** 2 / float(np.sum(1 / totals))
    share = min(1.0, float(np.mean(hits / totals)))
    floor, ceiling = wilson(share * effective, effective, level)
    return min(low, floor), max(high, ceiling)


@lru_cache(maxsize=256)
def _percentiles(
    hits: tuple[int, ...], totals: tuple[int, ...], level: float, *, resamples: int, seed: int
) -> Interval:
    """Return the percentiles of the bootstrap of balanced accuracy.

    Kept, as classifiers of a grid often have the same numbers on a small test set, and resampling
    takes longer than everything else in their evaluation.
    """
    rng = np.random.default_rng(seed)
    means = _resampled_means(np.array(hits), np.array(totals), resamples, rng)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_means(
    hits: NDArray[np.int64], totals: NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the mean recall in each resample, ``(resamples,)``.

    Resampling images and counting them by class and correctness is one multinomial draw over these
    counts, so memory grows with the number of classes, not of images.
    """
    n = int(totals.sum())
    drawn = rng.multinomial(n, np.concatenate([hits, totals - hits]) / n, size=resamples)
    correct, wrong = np.split(drawn, 2, axis=1)
    present = (correct + wrong) > 0
    recall = correct / np.maximum(correct + wrong, 1)
    means: NDArray[np.float64] = recall.sum(axis=1) / present.sum(axis=1)
    return means


def paired_interval(only_a: float, only_b: float, n: float, level: float = 0.95) -> Interval:
    """Return the score interval of the difference between two accuracies on the same n images.

    It contains the differences that a score test does not reject, given the numbers of images that
    one classifier alone predicts correctly, as the Wilson interval does for a proportion. A
    bootstrap over images (Efron 1979) has no width if there is no such image, and too little
    coverage if there are few (0.92 at a level of 0.95 for 50 images, accuracies of 0.95 and 0.90
    and a correlation of 0.3; this interval: 0.96). If only one or two images are expected to
    differ, this interval is conservative (coverage 0.985 for 148 images, accuracies of 0.99 and a
    correlation of 0.3); narrower ones there have a coverage below 0.93 for independent errors.

    Args:
        only_a: number of images that the first classifier alone predicts correctly.
        only_b: number of images that the second alone predicts correctly.
        n: number of images; all three may be fractional if ``n`` is an effective sample size.
        level: confidence level.

    Returns:
        The ends of the interval of ``(only_a - only_b) / n``, within -1..1.

    Raises:
        DataError: if the counts are negative or exceed ``n``, or ``n`` is not positive.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Statistics in Medicine 17 (1998), 891-908, section 3.
    """
    if not (n > 0 and only_a >= 0 and only_b >= 0 and only_a + only_b <= n):
        raise DataError(
            f"no interval for counts of {only_a} and {only_b} of {n} images: give non-negative "
            "counts of at most n > 0 images"
        )
    z = _normal_quantile((1 + level) / 2)
    return -_upper_end(only_b, only_a, n, z), _upper_end(only_a, only_b, n, z)


def _upper_end(only_a: float, only_b: float, n: float, z: float) -> float:
    """Return the largest difference at most ``z`` standard errors from the observed one.

    Found by bisection.
    """
    low, high = (only_a - only_b) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        distance, variance = (
            n * middle - (only_a - only_b),
            _score_variance(middle, only_a, only_b, n),
        )
        low, high = (middle, high) if distance <= z * sqrt(variance) else (low, middle)
    return (low + high) / 2


def _score_variance(difference: float, only_a: float, only_b: float, n: float) -> float:
    """Return the variance of ``only_a - only_b`` under a given true difference.

    The maximum-likelihood probability that only the second classifier is correct solves a quadratic
    (Tango's eq. 9).
    """
    linear = (2 * n - only_a + only_b) * difference - only_a - only_b
    constant = -only_b * difference * (1 - difference)
    root = (sqrt(max(0.0, linear * linear - 8 * n * constant)) - linear) / (4 * n)
    return max(0.0, n * (2 * root + difference * (1 - difference)))
