"""Images whose quality differs from that of the others of a data set, by robust statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LIMIT = 3.5
"""Modified z-score from which a value is an outlier (Iglewicz and Hoaglin 1993)."""

_NORMAL = 1.4826
"""Standard deviation of normal values over their median absolute deviation."""


@dataclass(frozen=True)
class QualityLimit:
    """Limits of one measure of quality in a data set.

    Attributes:
        measure: name of the measure.
        median: of all images.
        deviation: 1.4826 times the median absolute deviation, or the smallest one that counts if
            that is smaller.
        low, high: values outside these are outliers; None for a side that is not one.
    """

    measure: str
    median: float
    deviation: float
    low: float | None
    high: float | None


def quality_limits(
    values: NDArray[np.float64],
    measures: tuple[str, ...],
    floors: tuple[float, ...],
    sides: tuple[tuple[bool, bool], ...],
) -> tuple[QualityLimit, ...]:
    """Return the limits of each measure: median plus and minus 3.5 robust standard deviations.

    Args:
        values: ``(n, k)`` of n images; not finite for images that were not measured.
        measures: k names.
        floors: smallest standard deviation of each measure that counts, so that images which
            differ imperceptibly from others that are all alike are no outliers.
        sides: whether small, and whether large values of each measure are outliers.

    Source: Iglewicz and Hoaglin, "How to detect and handle outliers", ASQC 1993.
    """
    limits = []
    for column, measure in enumerate(measures):
        known = values[np.isfinite(values[:, column]), column]
        median = float(np.median(known)) if len(known) else 0.0
        spread = float(np.median(np.abs(known - median))) if len(known) else 0.0
        deviation = max(_NORMAL * spread, floors[column])
        is_low, is_high = sides[column]
        limits.append(
            QualityLimit(
                measure=measure,
                median=median,
                deviation=deviation,
                low=median - LIMIT * deviation if is_low else None,
                high=median + LIMIT * deviation if is_high else None,
            )
        )
    return tuple(limits)


def outliers(values: NDArray[np.float64], limit: QualityLimit) -> NDArray[np.float64]:
    """Return the distance ``(n,)`` of outliers from the median, in deviations, and 0 for others.

    Args:
        values: ``(n,)`` of one measure; not finite for images that were not measured.
        limit: of the measure.
    """
    outside = np.zeros(len(values), bool)
    if limit.low is not None:
        outside |= values < limit.low
    if limit.high is not None:
        outside |= values > limit.high
    distance = (values - limit.median) / limit.deviation
    return np.where(outside & np.isfinite(values), distance, 0.0)
