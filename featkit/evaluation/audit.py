"""Data audit on features: near copies across splits, label errors and small classes.

In all functions ``x (n, d)`` are features, ``y (n,)`` labels as indices 0..k-1, and ``p (n, k)``
class probabilities whose rows sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from featkit import similarity
from featkit.blocks import RowView, is_view, row_blocks
from featkit.similarity import (
    NEIGHBOURS,
    Labels,
    Neighbours,
    Probabilities,
    distance_ratio,
    most_similar,
    nearest_of_unit_rows,
    unit_rows,
)

CHANCE_COPIES = 0.1
"""Near copies across splits expected by chance in a whole data set, see ``near_copies``."""
_SAMPLE = 128
"""Images from which the distances to neighbours are estimated before copies are searched."""
_CAP = 0.75
"""Quantile of the distances to neighbours that bounds the threshold of near copies."""
_DIMENSIONS = 64
"""Dimensions of the projection that excludes most pairs of images before they are compared."""
_ROWS_PER_PASS = 2**15
"""Rows that are compared with all rows of a large file while these are read once."""
_MAX_CANDIDATES = 0.05
"""Fraction of the pairs of a block from which it is faster to compare all of them."""


@dataclass(frozen=True)
class NearCopies:
    """Test rows that have a near copy among the other rows, the most similar pair first.

    Attributes:
        rows: ``(c,)`` int64 rows of the test set, each once.
        originals: ``(c,)`` int64, the most similar other row of each.
        cosines: ``(c,)`` float64.
        cosine: the threshold as a cosine, for the median row; 1 if there is no threshold.
    """

    rows: Labels
    originals: Labels
    cosines: Probabilities
    cosine: float


@dataclass(frozen=True)
class LabelErrors:
    """Rows whose label is probably wrong, the most probable first.

    Attributes:
        rows: ``(s,)`` int64.
        suggested: ``(s,)`` int64, the most probable other class.
        odds: ``(s,)`` float64, probability of that class divided by that of the given class.
    """

    rows: Labels
    suggested: Labels
    odds: Probabilities


def near_copies(
    x: NDArray[np.floating[Any]] | RowView,
    is_test: NDArray[np.bool_],
    *,
    chance: float = CHANCE_COPIES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> NearCopies:
    """Return the test rows that have a near copy among the other rows.

    A pair is a near copy by the criterion of ``near_duplicates``: it is closer than the density of
    images around both explains. A fixed cosine would flag every pair of images of a uniform class,
    such as water seen from above, and would depend on the network. Here ``chance`` is 0.1, so that
    at most one in ten data sets without copies has one; ``near_duplicates``, whose pairs are
    reviewed by eye, expects one. On ResNet-18 features of Caltech-101 this is a cosine above 0.953
    for the median image and finds 62 test images, all of them copies that were mirrored, rotated,
    framed or compressed again; on EuroSAT 0.945, two images of water.

    Comparing all pairs takes ``n_test * n_other * d`` operations. To be cheap, the distances to
    neighbours are estimated on a random sample first. In sparse regions, the threshold is that of
    the row at the 75th percentile of the sample. A pair is compared only if an upper bound of its
    cosine reaches this threshold: the product of two projections plus the product of the lengths of
    what the projections leave out (Cauchy-Schwarz). The neighbours of a row are searched only if it
    is in such a pair. Of each test row the most similar other row is considered.

    As with ``near_duplicates``, an image of which there are more than ``NEIGHBOURS`` near copies,
    such as a frame of a video, is not found: its copies are the density around it.

    Args:
        x: ``(n, d)`` features of images with distinct contents.
        is_test: ``(n,)`` whether a row is in the test set.
        chance: number of test rows expected to be found by chance if there are no copies.
        seed: of the sample.
        progress: called with the number of pairs that were compared, and of all pairs.
    """
    none = np.empty(0, np.int64)
    tests, others = np.flatnonzero(is_test), np.flatnonzero(~is_test)
    n, k = len(x), min(NEIGHBOURS, len(x) - 1) // 2 * 2
    if not len(tests) or not len(others) or k < 2:
        return NearCopies(none, none, np.empty(0), 1.0)
    unit: Any = RowView(_UnitRows(x)) if isinstance(x, RowView) else unit_rows(x)
    sample = np.random.default_rng(seed).permutation(n)[:_SAMPLE]
    sampled = _nearest(unit, k, sample).distances
    ratio, _ = distance_ratio(sampled, chance / n)
    if not ratio:
        return NearCopies(none, none, np.empty(0), 1.0)
    limit, median = ratio * np.quantile(sampled[:, -1], [_CAP, 0.5])
    search = _pairs_in_blocks if is_view(unit) else _most_similar_pairs
    cosine = 1 - float(limit) ** 2 / 2
    rows, originals, cosines = search(
        unit, tests, others, _directions(unit[sample]), cosine, progress=progress
    )
    involved, place = np.unique(np.concatenate([rows, originals]), return_inverse=True)
    if len(involved):
        spread = _nearest(unit, k, involved).distances[:, -1][place]
        distances = np.sqrt(np.maximum(2 - 2 * cosines, 0))
        close = distances <= ratio * np.minimum(spread[: len(rows)], spread[len(rows) :])
        rows, originals, cosines = rows[close], originals[close], cosines[close]
    order = np.argsort(-cosines, kind="stable")
    threshold = 1 - float(median) ** 2 / 2
    return NearCopies(rows[order], originals[order], cosines[order], threshold)


class _UnitRows:
    """Rows of a ``RowView`` scaled to length 1 when they are read; see ``blocks.RowSource``."""

    def __init__(self, x: RowView) -> None:
        self.shape, self.dtype = x.shape, x.dtype
        self._x = x

    def read(self, rows: Labels) -> NDArray[np.floating[Any]]:
        """Return the rows ``(b, d)`` at row numbers ``(b,)``."""
        return unit_rows(self._x[rows])


def _batches(n: int, size: int) -> Iterator[slice]:
    """Yield slices of ``size`` rows that cover ``n`` rows."""
    for first in range(0, n, size):
        yield slice(first, min(n, first + size))


def _nearest(unit: Any, k: int, of: Labels) -> Neighbours:
    """Return the ``k`` nearest other rows of the rows ``of``; features ``unit`` have length 1."""
    if not isinstance(unit, RowView):
        return nearest_of_unit_rows(unit, k, of)
    parts = [_nearest_in_blocks(unit, k, of[part]) for part in _batches(len(of), _ROWS_PER_PASS)]
    return Neighbours(*(np.concatenate(found) for found in zip(*parts, strict=True)))


def _nearest_in_blocks(unit: RowView, k: int, of: Labels) -> tuple[Labels, Probabilities]:
    """Do what ``nearest_of_unit_rows`` does, reading all rows once."""
    queries = unit[of]
    rows, cosines = np.empty((len(of), 0), np.int64), np.empty((len(of), 0))
    for part, block in row_blocks(unit):
        places, values = [], []
        size = max(1, similarity.BLOCK_NUMBERS // len(block))
        for own in _batches(len(of), size):
            products = queries[own] @ block.T
            columns = of[own] - part.start
            inside = (columns >= 0) & (columns < len(block))
            products[np.flatnonzero(inside), columns[inside]] = -np.inf
            found = most_similar(products, min(k, len(block)))
            places.append(found[0] + part.start)
            values.append(found[1])
        rows = np.hstack([rows, np.concatenate(places)])
        cosines = np.hstack([cosines, np.concatenate(values)])
        columns, cosines = most_similar(cosines, min(k, cosines.shape[1]))
        rows = np.take_along_axis(rows, columns, axis=1)
    return rows, cosines


def _directions(rows: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return the ``r`` leading directions ``(r, d)`` of a sample of rows ``(m, d)``."""
    dimensions = min(_DIMENSIONS, *rows.shape)
    found: NDArray[np.floating[Any]] = np.linalg.svd(rows, full_matrices=False)[2][:dimensions]
    return found


def _projection(
    unit: NDArray[np.floating[Any]], directions: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Return ``(n, r + 1)`` coordinates whose products are upper bounds of cosines.

    These are the coordinates in ``r`` directions, and the length of the rest of each row.
    """
    coordinates = unit @ directions.T
    rest = np.sqrt(np.maximum(1 - (coordinates**2).sum(axis=1), 0))
    return np.column_stack([coordinates, rest]).astype(unit.dtype)


def _most_similar_pairs(
    unit: NDArray[np.floating[Any]],
    tests: Labels,
    others: Labels,
    directions: NDArray[np.floating[Any]],
    cosine: float,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Labels, Labels, Probabilities]:
    """Return test rows, the most similar other row of each, and cosines, of at least ``cosine``.

    Args:
        unit: ``(n, d)`` features of length 1.
        tests: ``(a,)`` rows of the test set.
        others: ``(b,)`` all other rows.
        directions: from ``_directions``.
        cosine: smallest cosine.
        progress: as for ``near_copies``.
    """
    bounds = _projection(unit, directions)
    rows, originals, cosines = [], [], []
    other_bounds = bounds[others]
    size = max(1, similarity.BLOCK_NUMBERS // (4 * len(others)))
    for start in range(0, len(tests), size):
        own = tests[start : start + size]
        found = _most_similar_of(unit[own], bounds[own] @ other_bounds.T, unit, others, cosine)
        rows.append(own[found[0]])
        originals.append(others[found[1]])
        cosines.append(found[2].astype(np.float64))
        if progress:
            progress((start + len(own)) * len(others), len(tests) * len(others))
    return np.concatenate(rows), np.concatenate(originals), np.concatenate(cosines)


def _most_similar_of(
    own: NDArray[np.floating[Any]],
    bounds: NDArray[np.floating[Any]],
    unit: NDArray[np.floating[Any]],
    others: Labels | slice,
    cosine: float,
) -> tuple[Labels, Labels, NDArray[np.floating[Any]]]:
    """Return the most similar pair of each of some rows, if its cosine is at least ``cosine``.

    Args:
        own: ``(a, d)`` rows of length 1.
        bounds: ``(a, b)`` upper bounds of their cosines with the other rows.
        unit: ``(n, d)`` rows of length 1.
        others: which of these are the ``b`` other rows.
        cosine: smallest cosine.

    Returns:
        Positions in ``own``, positions in the other rows, and cosines.
    """
    width = bounds.shape[1]
    flat = bounds.ravel()
    candidates = np.flatnonzero(flat >= cosine - 1e-5)  # rounding of float32
    if len(candidates) > _MAX_CANDIDATES * flat.size:
        flat = (own @ unit[others].T).ravel()
        candidates = np.flatnonzero(flat >= cosine)
        values = flat[candidates]
        first, second = np.divmod(candidates, width)
    else:
        first, second = np.divmod(candidates, width)
        rows = unit[second] if isinstance(others, slice) else unit[others[second]]
        values = np.einsum("ij,ij->i", own[first], rows)
    order = np.lexsort((-second, values, first))
    best = order[np.flatnonzero(np.diff(first[order], append=-1))]
    best = best[values[best] >= cosine]
    return first[best], second[best], values[best]


def _pairs_in_blocks(
    unit: RowView,
    tests: Labels,
    others: Labels,
    directions: NDArray[np.floating[Any]],
    cosine: float,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Labels, Labels, Probabilities]:
    """Do what ``_most_similar_pairs`` does with rows that are read block by block."""
    best, originals = np.full(len(tests), -np.inf), np.zeros(len(tests), np.int64)
    for batch in _batches(len(tests), _ROWS_PER_PASS):
        rows = unit[tests[batch]]
        bounds = _projection(rows, directions)
        for part, block in row_blocks(unit.select(others)):
            other_bounds = _projection(block, directions).T
            for own in _batches(len(rows), max(1, similarity.BLOCK_NUMBERS // len(block))):
                first, second, values = _most_similar_of(
                    rows[own], bounds[own] @ other_bounds, block, slice(None), cosine
                )
                places = first + own.start + batch.start
                better = values > best[places]
                best[places[better]] = values[better]
                originals[places[better]] = others[part][second[better]]
            if progress:
                compared = batch.start * len(others) + len(rows) * part.stop
                progress(compared, len(tests) * len(others))
    found = np.flatnonzero(np.isfinite(best))
    return tests[found], originals[found], best[found]


def neighbour_class_frequencies(
    neighbours: Neighbours, y: Labels, k: int, groups: NDArray[np.str_] | None = None
) -> Probabilities:
    """Return the fraction of each of ``k`` classes among the neighbours of each row, ``(n, k)``.

    Args:
        neighbours: of the rows.
        y: ``(n,)`` classes.
        k: number of classes.
        groups: ``(n,)`` group of each row, or None. Neighbours of the same group, which may share
            a wrong label, do not count; a row without others has equal fractions.
    """
    rows, size = neighbours.rows.shape
    cells = np.arange(rows)[:, None] * k + y[neighbours.rows]
    if groups is None:
        frequencies: Probabilities = (
            np.bincount(cells.ravel(), minlength=rows * k).reshape(rows, k) / size
        )
        return frequencies
    codes = np.unique(groups, return_inverse=True)[1]
    counts = codes[neighbours.rows] != codes[:, None]
    found = np.bincount(cells[counts], minlength=rows * k).reshape(rows, k).astype(np.float64)
    found[~counts.any(axis=1)] = 1.0
    shares: Probabilities = found / found.sum(axis=1, keepdims=True)
    return shares


def pool_probabilities(estimates: Sequence[tuple[Probabilities, float]]) -> Probabilities:
    """Return the normalized geometric mean of probability estimates, ``(n, k)``.

    Args:
        estimates: probabilities ``(n, k)`` and a floor that is added to them, so that a 0 of one
            estimate does not rule out a class.

    Source: the logarithmic opinion pool; Genest and Zidek, "Combining probability distributions",
    Statistical Science 1 (1986), 114-135.
    """
    logs = np.mean([np.log(p + floor) for p, floor in estimates], axis=0)
    pooled: Probabilities = softmax(logs, axis=1)
    return pooled


def find_label_errors(p: Probabilities, y: Labels) -> LabelErrors:
    """Return the rows whose label is probably wrong.

    Their number is estimated as in confident learning: it counts the rows where another class has
    at least the mean probability that it has in the rows labelled with it. The rows are selected by
    the odds of the most probable other class against the given class.

    Args:
        p: out-of-sample probabilities ``(n, k)``, above 0 for the given classes.
        y: ``(n,)`` given classes.

    Source: Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset
    labels", JAIR 70 (2021), 1373-1411, eq. 1 for the count.
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
    """Return a random stratified fold 0..folds-1 for each row, ``(n,)``.

    The sizes of the folds of each class differ by at most one row.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(y))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    assigned = np.empty(len(y), np.int64)
    assigned[by_class] = np.arange(len(y)) % folds
    return assigned


def small_classes(y: Labels, splits: NDArray[np.str_], k: int, few: int) -> tuple[Labels, Labels]:
    """Return the small classes, and the sizes of all classes.

    A class is small if it has fewer than ``few`` rows in train or none in test.

    Returns:
        Classes ``(c,)``, smallest in train first, and ``(k, 2)`` numbers of rows in train and in
        test.
    """
    sizes = np.column_stack(
        [np.bincount(y[splits == split], minlength=k) for split in ("train", "test")]
    )
    small = np.flatnonzero((sizes[:, 0] < few) | (sizes[:, 1] == 0))
    return small[np.lexsort((sizes[small, 1], sizes[small, 0]))], sizes
