"""What may be wrong with labelled images, judged by their vectors: copies, near copies, labels, small classes.

Throughout: ``x (n, d)`` vectors, ``y (n,)`` labels as positions 0..k-1, ``p (n, k)`` shares of classes that sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError

Labels = NDArray[np.int64]
Shares = NDArray[np.float64]
Track = Callable[[Sequence[int]], Iterable[int]]
"""Passes steps of work on, and may show how many are done."""

NEIGHBOURS = 10
_BLOCK_NUMBERS = 2**24


@dataclass(frozen=True)
class Neighbours:
    """The nearest other rows of each row, nearest first.

    Attributes:
        rows: ``(n, k)`` int64.
        cosines: ``(n, k)`` float64.
    """

    rows: Labels
    cosines: Shares

    @property
    def distances(self) -> Shares:
        """Euclidean distances ``(n, k)`` between the vectors at unit length."""
        distances: Shares = np.sqrt(np.maximum(2 - 2 * self.cosines, 0))
        return distances


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of rows that are closer than chance explains, the most surprising first.

    Attributes:
        pairs: ``(p, 2)`` int64 rows, the lower one first.
        cosines: ``(p,)`` float64.
        ratio: a pair is closer than this times the distance of both its rows to their ``k``-th neighbour; 0 where
            the vectors are too few, or too much alike, for such a threshold.
        k: which neighbour that is.
        dimension: intrinsic dimension of the vectors, from which ``ratio`` follows.
        cosine: what ``ratio`` comes to as a cosine, for the median row.
    """

    pairs: Labels
    cosines: Shares
    ratio: float
    k: int
    dimension: float
    cosine: float


@dataclass(frozen=True)
class LabelErrors:
    """Rows whose label is probably wrong, the surest first.

    Attributes:
        rows: ``(s,)`` int64.
        suggested: ``(s,)`` int64, the likeliest other class.
        odds: ``(s,)`` float64, how many times likelier that class is than the given one.
    """

    rows: Labels
    suggested: Labels
    odds: Shares


def exact_duplicates(keys: Sequence[str]) -> list[Labels]:
    """Return the rows of each content that occurs more than once; the empty key is no content.

    Args:
        keys: n digests of contents.
    """
    places: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        places.setdefault(key, []).append(row)
    return [np.array(rows) for key, rows in places.items() if key and len(rows) > 1]


def nearest_neighbours(x: NDArray[np.floating[Any]], k: int = NEIGHBOURS, *, track: Track = iter) -> Neighbours:
    """Return the ``k`` nearest other rows of each row by cosine, or all others where there are fewer.

    The similarities are computed in blocks of rows of at most 64 MiB.

    Raises:
        DataError: if there are fewer than two rows.
    """
    n = len(x)
    if n < 2:
        raise DataError(f"{n} vectors have no neighbours: give at least two")
    k = min(k, n - 1)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(x.dtype).tiny)
    rows, cosines = np.empty((n, k), np.int64), np.empty((n, k))
    size = max(1, _BLOCK_NUMBERS // n)
    for start in track(range(0, n, size)):
        block = unit[start : start + size] @ unit.T
        here = np.arange(len(block))
        block[here, start + here] = -np.inf
        best = np.argpartition(block, n - k, axis=1)[:, n - k :]
        values = np.take_along_axis(block, best, axis=1)
        order = np.lexsort((best, -values), axis=1)
        rows[start : start + size] = np.take_along_axis(best, order, axis=1)
        cosines[start : start + size] = np.take_along_axis(values, order, axis=1)
    return Neighbours(rows, cosines)


def near_duplicates(neighbours: Neighbours, expected: float = 1.0) -> NearDuplicates:
    """Return the pairs that are nearer than the density around them explains.

    Where points lie evenly in ``m`` dimensions, the ``k - 1`` nearer ones of the ``k`` nearest neighbours are at
    distances ``r`` of which ``(r / r_k) ** m`` is uniform, whatever the density is there. So ``m`` follows from the
    median of ``r_(k/2) / r_k``, which is a half to the power of ``1 / m`` and does not mind up to ``k / 2`` copies of
    every image; and from ``m`` the ratio ``r_1 / r_k`` below which there are ``expected`` rows by chance. No cosine
    means the same in a dense and in a sparse region. Of copies in groups of more than ``k``, none is found.

    Args:
        neighbours: of vectors with distinct contents; an odd last neighbour is left out.
        expected: number of rows, of all n, that may have such a neighbour by chance.

    Source: the ratios as in Facco et al., "Estimating the intrinsic dimension of datasets by a minimal neighborhood
    information", Scientific Reports 7 (2017), 12140, there for k = 2.
    """
    n, k = neighbours.rows.shape[0], neighbours.rows.shape[1] // 2 * 2
    distances = neighbours.distances[:, :k]
    spread = distances[:, -1] if k else np.zeros(n)
    apart = spread > 0
    median = float(np.median(distances[apart, k // 2 - 1] / spread[apart])) if apart.any() else 1.0
    if not 0 < median < 1:
        return NearDuplicates(np.empty((0, 2), np.int64), np.empty(0), 0.0, k, float("nan"), 1.0)
    dimension = np.log(0.5) / np.log(median)
    ratio = float((-np.expm1(np.log1p(-min(0.5, expected / n)) / (k - 1))) ** (1 / dimension))
    others = neighbours.rows[:, :k]
    close = distances <= ratio * np.minimum(spread[:, None], spread[others])
    first, place = np.nonzero(close)
    pairs, kept = np.unique(np.sort(np.column_stack([first, others[first, place]])), axis=0, return_index=True)
    scale = np.maximum(np.minimum(*spread[pairs.T]), np.finfo(np.float64).tiny)
    order = np.argsort(distances[first, place][kept] / scale, kind="stable")
    cosine = float(np.median(1 - (ratio * spread) ** 2 / 2))
    return NearDuplicates(
        pairs[order], neighbours.cosines[first, place][kept][order], ratio, k, float(dimension), cosine
    )


def connected_groups(pairs: Labels) -> Labels:
    """Return the group of each pair, ``(p,)``: pairs that share a row, at once or through others, are one group.

    Groups are numbered in the order in which they first occur.
    """
    leader: dict[int, int] = {}

    def find(row: int) -> int:
        while leader.setdefault(row, row) != row:
            leader[row] = row = leader[leader[row]]
        return row

    for first, second in pairs.tolist():
        leader[find(first)] = find(second)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(find(first), len(numbers)) for first in pairs[:, 0].tolist()], dtype=np.int64)


def neighbour_class_frequencies(neighbours: Neighbours, y: Labels, k: int) -> Shares:
    """Return the share of each of ``k`` classes among the neighbours, ``(n, k)``: a row has no vote on itself."""
    rows, size = neighbours.rows.shape
    places = (np.arange(rows)[:, None] * k + y[neighbours.rows]).ravel()
    shares: Shares = np.bincount(places, minlength=rows * k).reshape(rows, k) / size
    return shares


def pool_probabilities(judges: Sequence[tuple[Shares, float]]) -> Shares:
    """Return the geometric mean of shares ``(n, k)``, each with a floor added that keeps one judge from a veto.

    Source: the logarithmic opinion pool; Genest and Zidek, "Combining probability distributions", Statistical
    Science 1 (1986), 114-135.
    """
    logs = np.mean([np.log(p + floor) for p, floor in judges], axis=0)
    shares = np.exp(logs - logs.max(axis=1, keepdims=True))
    normal: Shares = shares / shares.sum(axis=1, keepdims=True)
    return normal


def find_label_errors(p: Shares, y: Labels) -> LabelErrors:
    """Return the rows whose label is probably wrong.

    How many is counted as in confident learning: the rows where a class other than the given one is as likely as it
    is, on average, for the rows that carry it. Which ones is decided by the odds of the likeliest other class against
    the given one.

    Args:
        p: out-of-sample probabilities ``(n, k)``, above 0 for the given classes.
        y: the given classes ``(n,)``.

    Source: Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 70
    (2021), 1373-1411, eq. 1 for the count.
    """
    rows = np.arange(len(y))
    given = p[rows, y]
    totals = np.bincount(y, minlength=p.shape[1])
    own = np.bincount(y, given, minlength=p.shape[1]) / np.maximum(totals, 1)
    confident = np.where((p >= own) & (totals > 0), p, -1.0)
    count = int(((confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != y)).sum())
    others = p.copy()
    others[rows, y] = -1.0
    suggested = others.argmax(axis=1)
    odds = others.max(axis=1) / given
    order = np.argsort(-odds, kind="stable")[:count]
    order = order[odds[order] > 1]
    return LabelErrors(order, suggested[order], odds[order])


def stratified_folds(y: Labels, folds: int, seed: int = 0) -> Labels:
    """Return a fold 0..folds-1 for each row, ``(n,)``, at random; of a class no fold has two rows more than another."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(y))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    assigned = np.empty(len(y), np.int64)
    assigned[by_class] = np.arange(len(y)) % folds
    return assigned


def small_classes(y: Labels, splits: NDArray[np.str_], k: int, few: int) -> tuple[Labels, Labels]:
    """Return the classes with fewer than ``few`` rows in train or none in test, and all classes' sizes there.

    Returns:
        Classes ``(c,)``, fewest train rows first, and ``(k, 2)`` numbers of rows in train and in test.
    """
    sizes = np.column_stack([np.bincount(y[splits == split], minlength=k) for split in ("train", "test")])
    small = np.flatnonzero((sizes[:, 0] < few) | (sizes[:, 1] == 0))
    return small[np.lexsort((sizes[small, 1], sizes[small, 0]))], sizes
