"""Similarity search: the nearest rows of one set of features for each row of another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError
from featkit.evaluation.audit import Neighbours

_BLOCK_NUMBERS = 2**24


def nearest_rows(
    queries: NDArray[np.floating[Any]], x: NDArray[np.floating[Any]], k: int
) -> Neighbours:
    """Return the ``k`` rows of ``x (n, d)`` most similar to each row of ``queries (q, d)``.

    Similarity is the cosine. With fewer than ``k`` rows all of them are returned, most similar
    first; of equal similarities the lower row comes first.

    Raises:
        DataError: if ``x`` has no row.
    """
    if not len(x):
        raise DataError("there are no images to search for similar ones")
    k = min(k, len(x))
    unit, searched = _unit_length(x), _unit_length(queries)
    rows, cosines = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    size = max(1, _BLOCK_NUMBERS // len(x))
    for start in range(0, len(queries), size):
        similarity = searched[start : start + size] @ unit.T
        best = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(similarity, best, axis=1)
        order = np.lexsort((best, -values), axis=1)
        stop = start + len(similarity)
        rows[start:stop] = np.take_along_axis(best, order, axis=1)
        cosines[start:stop] = np.take_along_axis(values, order, axis=1)
    return Neighbours(rows, cosines)


def _unit_length(x: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    unit: NDArray[np.floating[Any]] = x / np.maximum(lengths, np.finfo(x.dtype).tiny)
    return unit
