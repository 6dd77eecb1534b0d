"""Rejection of images of none of the classes by the confidence of a classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from pathlib import PurePath
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featkit.errors import DataError
from featkit.evaluation.clusters import Clusters
from featkit.evaluation.intervals import Interval, wilson

Confidences = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class UnknownImages:
    """How well images of none of the classes are told from test images by confidence.

    Attributes:
        data: absolute path of the folder of unknown images.
        n: number of unknown images.
        n_test: number of test images.
        auroc: probability that a test image has a higher confidence than an unknown image.
        interval95: of ``auroc``, see ``auroc_interval``.
        threshold: rejection threshold, chosen on validation images; None without one.
        accepted: number of unknown images whose confidence reaches it; None without one.
        accepted_interval95: Wilson score interval of their fraction; None without a threshold.
    """

    data: str
    n: int
    n_test: int
    auroc: float
    interval95: Interval
    threshold: float | None = None
    accepted: int | None = None
    accepted_interval95: Interval | None = None

    @property
    def name(self) -> str:
        """Name of the folder of the unknown images."""
        return PurePath(self.data).name


def score_unknown(
    known: Confidences,
    unknown: Confidences,
    *,
    data: str,
    threshold: float | None = None,
    groups: ArrayLike | None = None,
) -> UnknownImages:
    """Compare the confidences of test images with those of images of none of the classes.

    Args:
        known: ``(n,)`` confidences of test images.
        unknown: ``(m,)`` confidences of unknown images, which count as independent.
        data: folder of the unknown images.
        threshold: confidence below which an image is rejected.
        groups: ``(n,)`` group of each test image, as for ``evaluate``.

    Raises:
        DataError: if one of the two is empty.
    """
    if not len(known) or not len(unknown):
        raise DataError("there must be at least one test image and one unknown image")
    area, above_unknown, below_known = _placements(known, unknown)
    interval = auroc_interval(above_unknown, below_known, Clusters.of(groups, len(known)))
    accepted = None if threshold is None else int(np.sum(unknown >= threshold))
    return UnknownImages(
        data=data,
        n=len(unknown),
        n_test=len(known),
        auroc=area,
        interval95=interval,
        threshold=threshold,
        accepted=accepted,
        accepted_interval95=None if accepted is None else wilson(accepted, len(unknown)),
    )


def unknown_sentence(found: UnknownImages) -> str:
    """Return the comparison in words, in percent, with 95 % intervals in parentheses."""
    low, high = found.interval95
    text = (
        f"{found.n} images of none of the classes ({found.name}): AUROC {100 * found.auroc:.1f} % "
        f"({100 * low:.1f} to {100 * high:.1f}) of the confidences of {found.n_test} test images"
    )
    if found.accepted is None or found.accepted_interval95 is None or found.threshold is None:
        return f"{text}; --reject chooses a threshold"
    low, high = found.accepted_interval95
    return (
        f"{text}; {100 * found.accepted / found.n:.1f} % ({100 * low:.1f} to {100 * high:.1f}) are "
        f"accepted, with a confidence of {found.threshold:.3f} or more"
    )


def _placements(
    known: Confidences, unknown: Confidences
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Return the AUROC, and the fraction of the other kind that each image is ordered right with.

    Equal confidences count half.
    """
    above = _share_below(known, unknown)
    below = 1 - _share_below(unknown, known)
    return float(above.mean()), above, below


def _share_below(values: Confidences, others: Confidences) -> NDArray[np.float64]:
    """Return the fraction of ``others`` below each value; equal ones count half."""
    ordered = np.sort(others)
    lower = np.searchsorted(ordered, values, "left")
    upper = np.searchsorted(ordered, values, "right")
    share: NDArray[np.float64] = (lower + upper) / (2 * len(others))
    return share


def auroc_interval(
    above: NDArray[np.float64], below: NDArray[np.float64], clusters: Clusters | None = None
) -> Interval:
    """Return the 95 % interval of an AUROC: DeLong's variance, widened to Newcombe's interval.

    The first is Wilson's interval at the number of images at which a proportion would have DeLong's
    variance; it is too narrow near 1, where few pairs are ordered wrong (66 to 92 % coverage at an
    AUROC of 0.995). The second assumes exponential distributions, and is too narrow where the
    confidences of unknown images spread more (85 to 93 %). The interval contains both. Groups of
    test images count by their sums.

    Args:
        above: ``(n,)`` fraction of unknown images below each test image.
        below: ``(m,)`` fraction of test images above each unknown image.
        clusters: groups of the test images; None for independent images.

    Returns:
        The ends; 0 and 1 if all test images belong to one group.

    Source: DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated
    receiver operating characteristic curves", Biometrics 44 (1988), 837-845; Obuchowski,
    "Nonparametric analysis of clustered ROC curve data", Biometrics 53 (1997), 567-578; Newcombe,
    "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2",
    Statistics in Medicine 25 (2006), 559-573, method 5.
    """
    area, n, m = float(above.mean()), float(len(above)), float(len(below))
    if clusters is not None:
        smoothed = (area * n + 2) / (n + 4)
        n *= clusters.effective_fraction(above - area, smoothed * (1 - smoothed))
        if not n:
            return 0.0, 1.0
    variance = _variance(above, n) + _variance(below, m)
    low, high = _newcombe(area, n, m)
    if variance > 0:
        effective = area * (1 - area) / variance
        wilson_low, wilson_high = wilson(area * effective, effective)
        low, high = min(low, wilson_low), max(high, wilson_high)
    return low, high


def _variance(values: NDArray[np.float64], n: float) -> float:
    """Return the variance of the mean of values that are worth ``n`` independent ones."""
    return float(np.var(values, ddof=1)) / n if len(values) > 1 else 0.0


def _newcombe(area: float, n: float, m: float) -> Interval:
    """Return the values whose distance from ``area`` is less than 1.96 of their own error."""
    z = NormalDist().inv_cdf(0.975)
    pairs = max((n + m) / 2 - 1, 0.0)

    def is_inside(value: float) -> bool:
        shape = (1 - value) / (2 - value) + value / (1 + value)
        error = sqrt(value * (1 - value) * (1 + pairs * shape) / (n * m))
        return abs(area - value) <= z * error

    return _boundary(area, 0.0, is_inside), _boundary(area, 1.0, is_inside)


def _boundary(inside: float, outside: float, is_inside: Callable[[float], bool]) -> float:
    """Return the end of an interval between a value inside and one at its limit, by bisection."""
    for _ in range(60):
        middle = (inside + outside) / 2
        if is_inside(middle):
            inside = middle
        else:
            outside = middle
    return inside
