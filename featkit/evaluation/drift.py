"""Embedding drift: how much features change when the network is changed, for example quantized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError

Features = NDArray[np.floating]

NEIGHBOURS = 10
_BLOCK = 1024


@dataclass(frozen=True)
class Drift:
    """Similarity of the features of the same n images before and after a change.

    Attributes:
        n: number of images.
        mean_cosine, worst_cosine: mean and minimum over images of the cosine between the two
            feature vectors; None if these have different dimensions.
        neighbours_kept: fraction of the 10 nearest neighbours by cosine (or all others, if there
            are fewer) that are the same after the change.
    """

    n: int
    mean_cosine: float | None
    worst_cosine: float | None
    neighbours_kept: float


def drift(before: Features, after: Features) -> Drift:
    """Compare features ``(n, d)`` and ``(n, d')`` of the same images, in the same order.

    Raises:
        DataError: if there are fewer than two images, or the numbers of images differ.
    """
    if len(before) != len(after) or len(before) < 2:
        raise DataError(
            f"cannot compare features of {len(before)} and {len(after)} images: give the same 2 or "
            "more images"
        )
    a, b = _unit(before), _unit(after)
    same_length = a.shape[1] == b.shape[1]
    cosines = np.einsum("nd,nd->n", a, b) if same_length else np.empty(0)
    k = min(NEIGHBOURS, len(a) - 1)
    kept = 0
    for start in range(0, len(a), _BLOCK):
        neighbours = zip(_nearest(a, start, k), _nearest(b, start, k), strict=True)
        kept += sum(len(np.intersect1d(one, other)) for one, other in neighbours)
    return Drift(
        n=len(a),
        mean_cosine=float(cosines.mean()) if same_length else None,
        worst_cosine=float(cosines.min()) if same_length else None,
        neighbours_kept=kept / (k * len(a)),
    )


def _unit(rows: Features) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    unit: NDArray[np.float64] = rows / np.where(lengths == 0, 1, lengths)
    return unit


def _nearest(rows: NDArray[np.float64], start: int, k: int) -> NDArray[np.intp]:
    """Return the k nearest other rows of each row in a block, ``(block, k)``, unordered."""
    similarities = rows[start : start + _BLOCK] @ rows.T
    own = np.arange(len(similarities))
    similarities[own, start + own] = -np.inf
    return np.argpartition(-similarities, k - 1, axis=1)[:, :k]
