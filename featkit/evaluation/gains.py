"""What changes when the same test images are judged by another head, or are perturbed; paired over images."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from featkit.evaluation.intervals import Interval, paired_interval

Right = NDArray[np.bool_]
_RESAMPLES = 2000


def gain(right_a: Right, right_b: Right) -> tuple[float, Interval]:
    """Return top-1 of ``a`` less that of ``b`` on the same n images, and its ``paired_interval``."""
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return (only_a - only_b) / len(right_a), paired_interval(only_a, only_b, len(right_a))


def balanced_gain(y: NDArray[np.int64], right_a: Right, right_b: Right) -> tuple[float, Interval]:
    """Return balanced accuracy of ``a`` less that of ``b`` on the same images, and its 95 % interval.

    With ``k`` classes of ``n_c`` images, each class counts the same. The interval is ``paired_interval`` at the number
    of images that, spread evenly, would tell as much: ``k**2 / sum(1 / n_c)``, as in ``balanced_interval``. It takes
    classes to be alike in how often the two differ; where they are not, and differ in size too, it is approximate.

    Args:
        y: ``(n,)`` true classes.
        right_a: ``(n,)`` whether each image is right.
        right_b: the same of the other.
    """
    _, codes, totals = np.unique(y, return_inverse=True, return_counts=True)
    only_a, only_b = (
        float(np.mean(np.bincount(codes, weights=only) / totals)) for only in (right_a & ~right_b, right_b & ~right_a)
    )
    effective = len(totals) ** 2 / float(np.sum(1 / totals))
    return only_a - only_b, paired_interval(only_a * effective, only_b * effective, effective)


def ratio_interval(over: NDArray[np.float64], under: NDArray[np.float64], seed: int = 0) -> Interval:
    """Return the 95 % interval of a mean of ratios, each of sums over the same n images: a percentile bootstrap.

    All sums of one resample are over the same images, drawn with replacement (Efron 1979); a ratio without a
    denominator there is left out of its mean.

    Args:
        over: ``(r, n)`` numerators of r ratios, image by image.
        under: their denominators.
        seed: of the 2,000 resamples.
    """
    weights = _resamples(over.shape[1], seed)
    sums, parts = weights @ under.T, weights @ over.T
    ratios = np.divide(parts, sums, out=np.full_like(parts, np.nan), where=sums != 0)
    means = np.nanmean(ratios[~np.isnan(ratios).all(axis=1)], axis=1)
    if not len(means):
        return float("nan"), float("nan")
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=1)
def _resamples(n: int, seed: int) -> NDArray[np.float64]:
    """Return how often each resample has each of n images, ``(_RESAMPLES, n)``: drawn once for many ratios."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)
