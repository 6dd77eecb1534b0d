"""Feature scaling inside a head: fitted on the training set, applied to all features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    x = _scale_rows(x, scale)
    weights = np.ones(len(x)) if weights is None else weights / weights.sum() * len(x)
    centre = weights @ x / len(x)
    deviations = x - centre
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
