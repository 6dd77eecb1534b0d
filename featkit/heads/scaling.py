"""Scaling inside a head: what training rows decide, applied to every row that follows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

SCALES = ("l2", "standard", "none")
"""``l2``: unit length, centred, one common factor. ``standard``: centred, a factor for each column. ``none``.

After the first two the training rows have a mean squared length of 1, so that a penalty such as C means the same
for 64 numbers as for 2,048, and for any unit of the vectors.
"""


def unit(rows: Floats) -> Floats:
    """Return rows ``(n, d)`` at Euclidean length 1; rows of zeros stay as they are."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1, lengths)


def fit_scale(rows: Floats, how: str, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Return the centre ``(d,)`` and the spread ``(d,)`` that ``apply_scale`` needs, in the type of ``rows``.

    Columns that do not vary get the spread 1: they become zero, and stay small if they vary later.
    """
    d = rows.shape[1]
    if how == "none":
        return np.zeros(d, rows.dtype), np.ones(d, rows.dtype)
    rows = unit(rows) if how == "l2" else rows
    weights = np.ones(len(rows)) if weights is None else weights / weights.sum() * len(rows)
    centre = weights @ rows / len(rows)
    deviations = rows - centre
    variance = np.einsum("n,nd,nd->d", weights, deviations, deviations) / len(rows)
    variance[variance <= _rounding(rows, centre)] = 0
    spread = np.sqrt(np.full(d, variance.sum()) if how == "l2" else variance * np.count_nonzero(variance))
    spread[spread == 0] = 1
    return centre.astype(rows.dtype), spread.astype(rows.dtype)


def _rounding(rows: Floats, centre: Floats) -> Floats:
    """Return the variance ``(d,)`` below which a column differs from a constant by rounding only."""
    noise: Floats = (10 * np.finfo(rows.dtype).eps * centre) ** 2
    return noise


def apply_scale(rows: Floats, how: str, centre: Floats, spread: Floats) -> Floats:
    """Return rows ``(n, d)`` scaled by what ``fit_scale`` returned."""
    if how == "none":
        return rows
    return ((unit(rows) if how == "l2" else rows) - centre) / spread
