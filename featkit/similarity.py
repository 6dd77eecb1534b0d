"""Similar rows of feature arrays: nearest neighbours, duplicates and near duplicates.

In all functions ``x (n, d)`` are features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]
Track = Callable[[Sequence[int]], Iterable[int]]
"""Wraps an iterable of steps, for example in a progress bar."""

NEIGHBOURS = 10
BLOCK_NUMBERS = 2**24


@dataclass(frozen=True)
class Neighbours:
    """Nearest neighbours of each row, nearest first.

    Attributes:
        rows: ``(n, k)`` int64.
        cosines: ``(n, k)`` float64.
    """

    rows: Labels
    cosines: Probabilities

    @property
    def distances(self) -> Probabilities:
        """Euclidean distances ``(n, k)`` between the features scaled to unit length."""
        distances: Probabilities = np.sqrt(np.maximum(2 - 2 * self.cosines, 0))
        return distances


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of rows that are closer than expected by chance, the most extreme first.

    Attributes:
        pairs: ``(p, 2)`` int64 rows, the lower one first.
        cosines: ``(p,)`` float64.
        ratio: the distance of a pair is below this times the distance of each of its rows to its
            ``k``-th neighbour; 0 if there are too few features, or too many equal ones, for such a
            threshold.
        k: see ``ratio``.
        dimension: intrinsic dimension of the features, which determines ``ratio``.
        cosine: the threshold as a cosine, for the median row.
    """

    pairs: Labels
    cosines: Probabilities
    ratio: float
    k: int
    dimension: float
    cosine: float


def exact_duplicates(keys: Sequence[str]) -> list[Labels]:
    """Return the rows of each group of identical images.

    Args:
        keys: n digests of image contents; rows with an empty key are ignored.
    """
    rows_of: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows_of.setdefault(key, []).append(row)
    return [np.array(rows) for key, rows in rows_of.items() if key and len(rows) > 1]


def nearest_neighbours(
    x: NDArray[np.floating[Any]],
    k: int = NEIGHBOURS,
    *,
    of: Labels | None = None,
    track: Track = iter,
) -> Neighbours:
    """Return the ``k`` nearest other rows of each row by cosine, or all others if there are fewer.

    The similarities are computed in blocks of rows of at most 64 MiB.

    Args:
        x: features.
        k: number of neighbours.
        of: ``(m,)`` the rows whose neighbours are searched; None for all.
        track: shows the progress over blocks.

    Raises:
        DataError: if there are fewer than two rows.
    """
    n = len(x)
    if n < 2:
        raise DataError(f"cannot search neighbours among {n} images: give at least two")
    of = np.arange(n) if of is None else of
    return nearest_of_unit_rows(unit_rows(x), min(k, n - 1), of, track)


def nearest_of_unit_rows(
    unit: NDArray[np.floating[Any]], k: int, of: Labels, track: Track = iter
) -> Neighbours:
    """Return the ``k < n`` nearest other rows of the rows ``of``, of features of length 1."""
    n = len(unit)
    rows, cosines = np.empty((len(of), k), np.int64), np.empty((len(of), k))
    size = max(1, BLOCK_NUMBERS // n)
    for start in track(range(0, len(of), size)):
        own = of[start : start + size]
        block = unit[own] @ unit.T
        block[np.arange(len(own)), own] = -np.inf
        stop = start + len(own)
        rows[start:stop], cosines[start:stop] = most_similar(block, k)
    return Neighbours(rows, cosines)


def most_similar(similarities: NDArray[Any], k: int) -> tuple[Labels, Probabilities]:
    """Return columns and values ``(m, k)`` of the k largest values of each row, largest first.

    Args:
        similarities: ``(m, n)``.
        k: between 1 and n.
    """
    n = similarities.shape[1]
    best = np.argpartition(similarities, n - k, axis=1)[:, n - k :]
    values = np.take_along_axis(similarities, best, axis=1)
    order = np.lexsort((best, -values), axis=1)
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(values, order, axis=1)


def unit_rows(x: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return the rows scaled to length 1; zeros stay zero."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    scaled: NDArray[np.floating[Any]] = x / np.maximum(lengths, np.finfo(x.dtype).tiny)
    return scaled


def near_duplicates(neighbours: Neighbours, expected: float = 1.0) -> NearDuplicates:
    """Return the pairs that are closer than the local density explains.

    For points of locally constant density in ``m`` dimensions, the distances ``r`` of the ``k - 1``
    nearest neighbours satisfy that ``(r / r_k) ** m`` is uniform, whatever the density is. So ``m``
    follows from the median of ``r_(k/2) / r_k``, which is ``0.5 ** (1 / m)`` and robust to up to
    ``k / 2`` copies of every image; and ``m`` gives the ratio ``r_1 / r_k`` below which
    ``expected`` rows are expected by chance. A fixed cosine threshold would have different meanings
    in dense and sparse regions. Groups of more than ``k`` copies are not found.

    Args:
        neighbours: of images with distinct contents; if ``k`` is odd, the last neighbour is
            ignored.
        expected: number of false positives expected by chance among all n rows.

    Source: the ratios as in Facco et al., "Estimating the intrinsic dimension of datasets by a
    minimal neighborhood information", Scientific Reports 7 (2017), 12140, there for k = 2.
    """
    n, k = neighbours.rows.shape[0], neighbours.rows.shape[1] // 2 * 2
    distances = neighbours.distances[:, :k]
    ratio, dimension = distance_ratio(distances, expected / n)
    if not ratio:
        return NearDuplicates(np.empty((0, 2), np.int64), np.empty(0), 0.0, k, float("nan"), 1.0)
    spread = distances[:, -1]
    others = neighbours.rows[:, :k]
    close = distances <= ratio * np.minimum(spread[:, None], spread[others])
    first, rank = np.nonzero(close)
    both_orders = np.column_stack([first, others[first, rank]])
    pairs, kept = np.unique(np.sort(both_orders), axis=0, return_index=True)
    scale = np.maximum(np.minimum(*spread[pairs.T]), np.finfo(np.float64).tiny)
    order = np.argsort(distances[first, rank][kept] / scale, kind="stable")
    cosine = float(np.median(1 - (ratio * spread) ** 2 / 2))
    return NearDuplicates(
        pairs[order],
        neighbours.cosines[first, rank][kept][order],
        ratio,
        k,
        dimension,
        cosine,
    )


def distance_ratio(distances: Probabilities, chance: float) -> tuple[float, float]:
    """Return the ratio of ``near_duplicates``, and the intrinsic dimension it follows from.

    Args:
        distances: ``(m, k)`` distances to the nearest neighbours, ``k`` even; of all rows or of a
            random sample.
        chance: probability that a row has a neighbour below the ratio by chance.

    Returns:
        0 and NaN if there are too few neighbours, or too many at the same distance.
    """
    k = distances.shape[1]
    spread = distances[:, -1] if k else np.zeros(len(distances))
    distinct = spread > 0
    median = 1.0
    if distinct.any():
        median = float(np.median(distances[distinct, k // 2 - 1] / spread[distinct]))
    if not 0 < median < 1:
        return 0.0, float("nan")
    dimension = float(np.log(0.5) / np.log(median))
    # The chance that the nearest of k - 1 uniform values is below ratio ** dimension is ``chance``.
    # expm1 and log1p keep precision where it is tiny.
    ratio = (-np.expm1(np.log1p(-min(0.5, chance)) / (k - 1))) ** (1 / dimension)
    return float(ratio), dimension


def connected_groups(pairs: Labels) -> Labels:
    """Return the connected component of each pair, ``(p,)``, numbered in order of first occurrence.

    Pairs that share a row, directly or through other pairs, are in the same component.
    """
    leader: dict[int, int] = {}

    def find(row: int) -> int:
        while leader.setdefault(row, row) != row:
            leader[row] = row = leader[leader[row]]
        return row

    for first, second in pairs.tolist():
        leader[find(first)] = find(second)
    numbers: dict[int, int] = {}
    return np.array(
        [numbers.setdefault(find(first), len(numbers)) for first in pairs[:, 0].tolist()],
        dtype=np.int64,
    )
