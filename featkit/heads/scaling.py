"""Scaling inside a head: what training rows decide, applied to every row that follows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

SCALES = ("root", "l2", "standard", None)
"""``root``: square root of each number, with its sign, then as ``l2`` (Perronnin, Sánchez and Mensink, "Improving the
Fisher kernel for large-scale image classification", ECCV 2010). ``l2``: unit length, centred, one common factor.
``standard``: centred, a factor for each column. None: nothing.

After all but the last, the training rows have a mean squared length of 1, so that a penalty such as C means the same
for 64 numbers as for 2,048, and for any unit of the vectors.
"""


def unit(rows: Floats) -> Floats:
    """Return rows ``(n, d)`` at Euclidean length 1; rows of zeros stay as they are."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1, lengths)


def fit_scale(rows: Floats, how: str | None, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Return the centre ``(d,)`` and the spread ``(d,)`` that ``apply_scale`` needs, in the type of ``rows``.

    Columns that do not vary get the spread 1: they become zero.
    """
    d = rows.shape[1]
    if how is None:
        return np.zeros(d, rows.dtype), np.ones(d, rows.dtype)
    rows = _by_row(rows, how)
    weights = np.ones(len(rows)) if weights is None else weights / weights.sum() * len(rows)
    centre = weights @ rows / len(rows)
    deviations = rows - centre
    variance = np.einsum("n,nd,nd->d", weights, deviations, deviations) / len(rows)
    variance[variance <= _rounding(rows, centre)] = 0
    spread = np.sqrt(variance * np.count_nonzero(variance) if how == "standard" else np.full(d, variance.sum()))
    spread[spread == 0] = 1
    return centre.astype(rows.dtype), spread.astype(rows.dtype)


def _rounding(rows: Floats, centre: Floats) -> Floats:
    """Return the variance ``(d,)`` below which a column differs from a constant by rounding only."""
    noise: Floats = (10 * np.finfo(rows.dtype).eps * centre) ** 2
    return noise


def apply_scale(rows: Floats, how: str | None, centre: Floats, spread: Floats) -> Floats:
    """Return rows ``(n, d)`` scaled by what ``fit_scale`` returned."""
    return rows if how is None else (_by_row(rows, how) - centre) / spread


def _by_row(rows: Floats, how: str) -> Floats:
    """Return rows after the part of the scaling that needs nothing but the row itself."""
    if how == "root":
        rows = np.sign(rows) * np.sqrt(np.abs(rows))
    return rows if how == "standard" else unit(rows)
