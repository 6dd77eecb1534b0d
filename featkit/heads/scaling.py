"""Feature scaling inside a head: fitted on the training set, applied to all features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.blocks import is_large, release_pages, row_blocks

Floats = NDArray[np.floating[Any]]

SCALES = ("root", "l2", "standard", None)
"""``root``: signed square root of each feature, then as ``l2`` (Perronnin, Sánchez and Mensink,
"Improving the Fisher kernel for large-scale image classification", ECCV 2010). ``l2``: unit length,
centred, one common factor. ``standard``: each feature centred and divided by its standard
deviation. None: no scaling.

After every scaling but None the training features have a mean squared norm of 1, so that a penalty
such as C means the same for 64 dimensions as for 2,048, and for any unit of the features.
"""


def unit_norm(x: Floats) -> Floats:
    """Return rows ``(n, d)`` divided by their Euclidean norms; rows of zeros stay zero."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms == 0, 1, norms)


def fit_scale(x: Floats, scale: str | None, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Estimate the parameters of a scaling on training features.

    Args:
        x: features ``(n, d)``.
        scale: one of ``SCALES``.
        weights: sample weights ``(n,)``.

    Returns:
        Centre ``(d,)`` and spread ``(d,)`` for ``apply_scale``, in the type of ``x``. Constant
        columns get the spread 1, and so become zero.
    """
    d = x.shape[1]
    if scale is None:
        return np.zeros(d, x.dtype), np.ones(d, x.dtype)
    weights = np.ones(len(x)) if weights is None else weights / weights.sum() * len(x)
    if is_large(x):
        centre, variance = _moments_of_blocks(x, scale, weights)
    else:
        rows = _scale_rows(x, scale)
        centre = weights @ rows / len(x)
        deviations = rows - centre
        variance = np.einsum("n,nd,nd->d", weights, deviations, deviations) / len(x)
    # The variance of a constant column is not exactly zero: its mean is rounded.
    rounding = (10 * np.finfo(x.dtype).eps * centre) ** 2
    variance[variance <= rounding] = 0
    if scale == "standard":
        # The number of columns that vary, as a factor, makes the mean squared norm 1.
        spread = np.sqrt(variance * np.count_nonzero(variance))
    else:
        spread = np.sqrt(np.full(d, variance.sum()))
    spread[spread == 0] = 1
    return centre.astype(x.dtype), spread.astype(x.dtype)


def _moments_of_blocks(
    x: Floats, scale: str, weights: Floats
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and variance ``(d,)`` of the scaled rows, from two passes over blocks of them."""
    centre, variance = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for part, block in row_blocks(x):
        centre += weights[part] @ _scale_rows(block, scale)
    centre /= len(x)
    for part, block in row_blocks(x):
        deviations = _scale_rows(block, scale) - centre.astype(x.dtype)
        variance += weights[part] @ deviations**2
    return centre, variance / len(x)


class ScaledRows:
    """Rows of a large array, scaled as ``apply_scale`` does when they are read.

    Attributes:
        shape, dtype: those of the array ``(n, d)``.
    """

    def __init__(self, x: Floats, scale: str | None, centre: Floats, spread: Floats) -> None:
        self.shape, self.dtype = x.shape, x.dtype
        self._x, self._scaling = x, (scale, centre, spread)

    def __getitem__(self, rows: Any) -> Floats:
        """Return the scaled rows at a slice or at row numbers."""
        scaled = apply_scale(self._x[rows], *self._scaling)
        release_pages(self._x)
        return scaled


def apply_scale(x: Floats, scale: str | None, centre: Floats, spread: Floats) -> Floats:
    """Return features ``(n, d)`` scaled by the parameters that ``fit_scale`` estimated."""
    if scale is None:
        return x
    return (_scale_rows(x, scale) - centre) / spread


def _scale_rows(x: Floats, scale: str) -> Floats:
    """Apply the part of a scaling that needs no training set."""
    if scale == "standard":
        return x
    if scale == "root":
        x = np.sign(x) * np.sqrt(np.abs(x))
    return unit_norm(x)
