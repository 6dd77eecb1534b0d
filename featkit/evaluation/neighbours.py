"""Similarity search: the nearest rows of one set of features for each row of another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError
from featkit.similarity import Neighbours, most_similar, unit_rows

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
    unit, searched = unit_rows(x), unit_rows(queries)
    rows, cosines = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    size = max(1, _BLOCK_NUMBERS // len(x))
    for start in range(0, len(queries), size):
        similarities = searched[start : start + size] @ unit.T
        stop = start + len(similarities)
        rows[start:stop], cosines[start:stop] = most_similar(similarities, k)
    return Neighbours(rows, cosines)
