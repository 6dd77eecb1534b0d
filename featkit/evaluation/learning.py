"""Power law of a learning curve: what more training images would bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from featkit.evaluation.intervals import Interval

_DRAWS = 400
_Z95 = 1.959964
_FEWEST_POINTS = 4


@dataclass(frozen=True)
class PowerLaw:
    """Error rate as a function of the number k of training images per class: ``c + a * k ** -b``.

    Attributes:
        a, b, c: fitted constants; c is the error that no number of images removes.
        last: largest k that was measured.
        doubled: predicted accuracy at twice that number.
        gain: predicted increase of the accuracy, a fraction.
        gain_interval95: its 95% interval, from curves drawn within the intervals of the points.
    """

    a: float
    b: float
    c: float
    last: int
    doubled: float
    gain: float
    gain_interval95: Interval


def fit_power_law(
    shots: Sequence[int], accuracy: Sequence[float], intervals: Sequence[Interval], seed: int = 0
) -> PowerLaw | None:
    """Fit a power law to a learning curve; None for fewer than four points.

    The points are weighted by their intervals. The interval of the gain is that of the parametric
    bootstrap: each point is drawn from a normal distribution with the width of its interval, as if
    the points were independent, which makes the interval somewhat wide.

    Args:
        shots: training images per class of each point, increasing.
        accuracy: of each point.
        intervals: 95% interval of each point.
        seed: of the bootstrap.

    Source: Hestness et al., "Deep Learning Scaling is Predictable, Empirically" (2017); Viering and
        Loog, "The Shape of Learning Curves: a Review", TPAMI 45 (2023).
    """
    if len(shots) < _FEWEST_POINTS:
        return None
    k = np.asarray(shots, float)
    error = 1 - np.asarray(accuracy, float)
    widths = np.array([high - low for low, high in intervals])
    deviation = np.maximum(widths / (2 * _Z95), 1e-3)
    a, b, c = _fit(k, error, deviation)
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(_DRAWS):
        drawn = np.clip(error + deviation * rng.standard_normal(len(k)), 0, 1)
        gains.append(_gain(_fit(k, drawn, deviation), k[-1]))
    low, high = np.quantile(gains, [0.025, 0.975])
    gain = _gain((a, b, c), k[-1])
    doubled = 1 - (c + a * (2 * k[-1]) ** -b)
    return PowerLaw(a, b, c, int(k[-1]), float(doubled), gain, (float(low), float(high)))


def _fit(
    k: NDArray[np.float64], error: NDArray[np.float64], deviation: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Return a, b and c of the weighted least-squares fit."""

    def residuals(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = (values[2] + values[0] * k ** -values[1] - error) / deviation
        return found

    start = [max(float(error[0] - error[-1]), 0.05), 0.5, max(float(error[-1]) / 2, 0.0)]
    solved = least_squares(residuals, start, bounds=([0, 0.01, 0], [2, 3, 1]), max_nfev=200)
    a, b, c = solved.x
    return float(a), float(b), float(c)


def _gain(law: tuple[float, float, float], last: float) -> float:
    """Return the increase of the accuracy from ``last`` to twice as many images."""
    a, b, _ = law
    return float(a * (last**-b - (2 * last) ** -b))
