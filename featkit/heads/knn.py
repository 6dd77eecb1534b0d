"""k nearest neighbours, with Euclidean or cosine distance."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval, StrOptions

from featkit.blocks import RowView, is_large, is_view, release_pages, row_blocks
from featkit.heads.base import Floats, Head, Trial, UnfitDataError
from featkit.heads.scaling import SCALES, ScaledRows, apply_scale, fit_scale, unit_norm

MIN_RELATIVE_DISTANCE = 1e-4
"""Lower bound of distances relative to the farthest neighbour: that of a copy is zero. It is above
the rounding of a network in float32, so that a copy has the same scores on every machine."""

TIE_SHARE = 1e-4
"""Share of the scores that is distributed by the distance to the nearest image of each class."""

TIE_SHARPNESS = 8.0
"""Factor of these distances, relative to their mean over the classes, in a softmax."""

BLOCK_VALUES = 2**22
"""Distances per block of rows in prediction: 32 MiB; 16 MiB in a large search."""

SEARCHED_AT_ONCE = 256
"""Rows of a large search that are compared with a block at once."""

SEARCH_VALUES = 2**25
"""Numbers that a large search keeps of the rows that it predicts in one pass over all rows."""

SPARE = 8
"""Rows more than k whose distances a large search computes exactly."""

SEARCH_KS = (1, 3, 5, 10, 20, 50, 100, 200)
SEARCH_WEIGHTS = {
    "cosine": ("uniform", "distance", "temperature"),
    "euclidean": ("uniform", "distance"),
}
"""Weightings in the search space, by metric: the temperature is defined for cosine similarities."""


class Neighbours(NamedTuple):
    """Nearest training rows of n points.

    Attributes:
        distances: of the k nearest rows, nearest first, ``(n, k)``.
        codes: their classes ``(n, k)``, as positions in ``classes_``.
        class_distances: distance to the nearest row of each class, ``(n, n_classes)``.
    """

    distances: NDArray[np.float64]
    codes: NDArray[np.intp]
    class_distances: NDArray[np.float64]

    def first(self, k: int) -> Neighbours:
        """Return the same for a smaller k."""
        return Neighbours(self.distances[:, :k], self.codes[:, :k], self.class_distances)


class _Nearest:
    """Nearest of the rows that were seen so far, by squared distances in the type of the rows.

    Args:
        x: ``(b, d)`` whose neighbours are searched.
        wanted: number m of neighbours.
        n_classes: number of classes.
        dtype: type of the rows.

    Attributes:
        x: as given.
        places: numbers of the nearest rows ``(b, m)``, in no order.
        class_squares: squared distance to the nearest row of each class, ``(b, n_classes)``.
    """

    def __init__(self, x: Floats, wanted: int, n_classes: int, dtype: Any) -> None:
        self.x = x
        self._queries = x.astype(dtype, copy=False)
        self._lengths = np.einsum("nd,nd->n", self._queries, self._queries)[:, None]
        self._wanted = wanted
        self._best = np.empty((len(x), 0), dtype)
        self.places = np.empty((len(x), 0), np.intp)
        self.class_squares = np.full((len(x), n_classes), np.inf, dtype)

    def add(
        self, rows: Floats, lengths: Floats, places: NDArray[np.intp], codes: NDArray[np.intp]
    ) -> None:
        """Compare with more rows.

        Args:
            rows: ``(n, d)``, sorted by class.
            lengths: their squared lengths ``(n,)``.
            places: their numbers ``(n,)``.
            codes: their classes ``(n,)``.
        """
        squares = self._queries @ rows.T
        squares *= -2
        squares += lengths
        squares += self._lengths
        present, starts = np.unique(codes, return_index=True)
        closest = np.minimum.reduceat(squares, starts, axis=1)
        self.class_squares[:, present] = np.minimum(self.class_squares[:, present], closest)
        kept = min(self._wanted, squares.shape[1])
        columns = np.argpartition(squares, kept - 1, axis=1)[:, :kept]
        self._best = np.hstack([self._best, np.take_along_axis(squares, columns, axis=1)])
        self.places = np.hstack([self.places, places[columns]])
        if self._best.shape[1] > self._wanted:
            columns = np.argpartition(self._best, self._wanted - 1, axis=1)[:, : self._wanted]
            self._best = np.take_along_axis(self._best, columns, axis=1)
            self.places = np.take_along_axis(self.places, columns, axis=1)


class _ScaledSource(ScaledRows):
    """Training rows that stay in their file, scaled as ``KNNHead`` does when they are read."""

    def __init__(self, x: Any, head: KNNHead) -> None:
        super().__init__(x, head.scale, head.centre_, head.spread_)
        self._to_unit_length = head.metric == "cosine"

    def read(self, rows: NDArray[np.int64]) -> Floats:
        """Return the scaled rows ``(b, d)`` at row numbers ``(b,)``."""
        scaled = self[rows]
        return unit_norm(scaled) if self._to_unit_length else scaled


class KNNHead(Head):
    """Vote of the k nearest training images.

    The score of a class is its fraction of the votes. A share of 1e-4 of the scores is distributed
    over all classes by the distance to their nearest training image: it breaks ties, and ranks the
    classes without a vote, so that top-5 accuracy is meaningful. The defaults were chosen as those
    of ``LinearHead``.

    Parameters
    ----------
    k : int, default=5
        Number of neighbours.
    metric : {"cosine", "euclidean"}, default="cosine"
        Distance between scaled features. "cosine" is the Euclidean distance between features of
        unit length, which has the same order as the cosine distance.
    weights : {"distance", "temperature", "uniform"}, default="distance"
        Weight of a vote: inverse distance, ``exp(similarity / temperature)``, or 1. With "distance"
        an exact copy of an image outvotes all others. The similarity is the cosine; for the
        Euclidean metric minus half the squared distance, which differs by a constant for features
        of unit length.
    temperature : float, default=0.07
        For ``weights="temperature"``: lower values give nearer neighbours more weight. The default
        is that of Wu et al. and DINO.
    scale : {"root", "l2", "standard"} or None, default=None
        As in ``LinearHead``.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Sorted training labels; the columns of the scores.
    rows_ : ndarray of shape (n, d)
        Scaled training features, of unit length if the metric is cosine. A ``blocks.RowView`` of
        many features in a cache file, which must then stay where it is until the head is saved.
    codes_ : ndarray of shape (n,)
        Their positions in ``classes_``.
    centre_, spread_ : ndarray of shape (d,)
        Parameters of the scaling.
    warnings_ : tuple of str
        Empty: nothing is optimised.

    References
    ----------
    Cover and Hart, "Nearest neighbor pattern classification", IEEE Trans. Inf. Theory 1967.
    Dudani, "The distance-weighted k-nearest-neighbor rule", IEEE Trans. SMC 1976.
    Wu, Xiong, Yu and Lin, "Unsupervised feature learning via non-parametric instance
    discrimination", CVPR 2018, eq. 5.
    Caron et al., "Emerging properties in self-supervised vision transformers" (DINO), ICCV 2021.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "k": [Interval(Integral, 1, None, closed="left")],
        "metric": [StrOptions({"cosine", "euclidean"})],
        "weights": [StrOptions({"distance", "temperature", "uniform"})],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "scale": [StrOptions({each for each in SCALES if each}), None],
    }

    def __init__(
        self,
        *,
        k: int = 5,
        metric: str = "cosine",
        weights: str = "distance",
        temperature: float = 0.07,
        scale: str | None = None,
    ) -> None:
        self.k = k
        self.metric = metric
        self.weights = weights
        self.temperature = temperature
        self.scale = scale

    def fit(self, X: Any, y: Any) -> KNNHead:
        """Store the features ``(n, d)`` and their labels ``(n,)``.

        Raises:
            UnfitDataError: if there are fewer than k samples.
        """
        x, codes = self._check_training_data(X, y)
        if len(x) < self.k:
            raise UnfitDataError(
                f"knn needs at least k={self.k} training images, but n_samples = {len(x)}: "
                "choose a smaller k"
            )
        self.centre_, self.spread_ = fit_scale(x, self.scale)
        self.rows_: Any
        self.codes_: NDArray[np.intp]
        if is_view(x):
            self.rows_, self.codes_ = RowView(_ScaledSource(x, self)), codes
        elif is_large(x):
            # Sorted by class, so that the search needs no other copy.
            order = np.argsort(codes, kind="stable")
            self.rows_, self.codes_ = np.empty(x.shape, x.dtype), codes[order]
            for part, block in row_blocks(order[:, None], BLOCK_VALUES // x.shape[1]):
                self.rows_[part] = self._scaled(x[block[:, 0]])
                release_pages(x)
        else:
            self.rows_, self.codes_ = self._scaled(x), codes
        return self

    @classmethod
    def trials(cls, x: Floats, y: NDArray[Any], x_val: Floats, seed: int = 0) -> Iterator[Trial]:
        """Yield the scores on ``x_val (m, d)`` of all candidates fitted on ``x (n, d)``, ``y``.

        The neighbours are searched once for each scaling and metric. ``seed`` is unused.
        """
        ks = [k for k in SEARCH_KS if k <= len(x)]
        for scale, metric in product(SCALES, SEARCH_WEIGHTS):
            largest = cls(k=ks[-1], metric=metric, scale=scale).fit(x, y)
            neighbours = largest._neighbours(x_val)
            for k, weights in product(ks, SEARCH_WEIGHTS[metric]):
                options: dict[str, Any] = {
                    "scale": scale,
                    "metric": metric,
                    "k": k,
                    "weights": weights,
                }
                yield Trial(options, cls(**options)._scores(neighbours.first(k)))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class scores ``(n, k)``, columns as in ``classes_``; each row sums to 1."""
        return self._scores(self._neighbours(X))

    def _neighbours(self, X: Any) -> Neighbours:
        """Return the k nearest training rows of features ``(n, d)``."""
        from sklearn.metrics import euclidean_distances  # imports half of scikit-learn

        checked = self._check_features(X)
        if is_large(self.rows_):
            return self._neighbours_in_blocks(self._scaled(checked))
        x = self._scaled(checked).astype(np.float64)
        # Rows are sorted by class, so that the rows of a class are adjacent.
        order = np.argsort(self.codes_, kind="stable")
        rows, codes = self.rows_[order].astype(np.float64), self.codes_[order]
        class_starts = np.searchsorted(codes, np.arange(len(self.classes_)))
        lengths = np.einsum("nd,nd->n", rows, rows)[None]
        blocks = []
        for block in gen_batches(len(x), max(1, BLOCK_VALUES // len(rows))):
            distances = euclidean_distances(x[block], rows, Y_norm_squared=lengths)
            nearest, places = _smallest(distances, self.k)
            class_distances = np.minimum.reduceat(distances, class_starts, axis=1)
            blocks.append(Neighbours(nearest, codes[places], class_distances))
        return Neighbours(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))

    def _neighbours_in_blocks(self, x: Floats) -> Neighbours:
        """Return the neighbours of scaled features ``(n, d)`` among rows too many to be copied.

        Squared distances to blocks of rows are computed in float32. Those of the nearest
        ``k + SPARE`` rows are computed again without subtracting large numbers, in float64, and
        decide which of them are the k nearest.
        """
        blocks = []
        values_of_one = len(self.classes_) + 4 * (self.k + SPARE)
        for part in gen_batches(len(x), max(SEARCHED_AT_ONCE, SEARCH_VALUES // values_of_one)):
            for found in self._search(x[part]):
                blocks.append(self._exact(found))
        return Neighbours(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))

    def _search(self, x: Floats) -> list[_Nearest]:
        """Return the nearest ``k + SPARE`` rows of features ``(n, d)``; all rows are read once."""
        rows = self.rows_
        wanted = min(self.k + SPARE, len(rows))
        searches = [
            _Nearest(x[own], wanted, len(self.classes_), rows.dtype)
            for own in gen_batches(len(x), SEARCHED_AT_ONCE)
        ]
        size = max(wanted, BLOCK_VALUES // SEARCHED_AT_ONCE)
        for part, block in row_blocks(rows, size * rows.shape[1]):
            places, codes = np.arange(part.start, part.stop), self.codes_[part]
            if (np.diff(codes) < 0).any():
                order = np.argsort(codes, kind="stable")
                places, codes, block = places[order], codes[order], block[order]
            lengths = np.einsum("nd,nd->n", block, block)
            for search in searches:
                search.add(block, lengths, places, codes)
        return searches

    def _exact(self, found: _Nearest) -> Neighbours:
        """Return the k nearest of the rows that were found, by exact distances."""
        rows = self.rows_[found.places.ravel()].reshape(*found.places.shape, -1)
        differences = rows.astype(np.float64) - found.x[:, None]
        exact = np.sqrt(np.einsum("nkd,nkd->nk", differences, differences))
        nearest, columns = _smallest(exact, self.k)
        codes = self.codes_[np.take_along_axis(found.places, columns, axis=1)]
        class_distances = np.sqrt(np.maximum(found.class_squares, 0)).astype(np.float64)
        # Of the nearest rows the exact distance is known, which matters close to zero.
        rows_of = np.arange(len(codes))[:, None]
        class_distances[rows_of, codes] = np.inf
        np.minimum.at(class_distances, (rows_of, codes), nearest)
        return Neighbours(nearest, codes, class_distances)

    def _scores(self, neighbours: Neighbours) -> NDArray[np.float64]:
        """Return the scores ``(n, n_classes)``: shares of the votes, ties broken by distance."""
        n, n_classes = neighbours.class_distances.shape
        # A weighted count of (row, class) pairs, each encoded as one number, sums all votes.
        pairs = np.arange(n)[:, None] * n_classes + neighbours.codes
        weights = self._vote_weights(neighbours.distances)
        votes = np.bincount(pairs.ravel(), weights.ravel(), minlength=n * n_classes)
        votes = votes.reshape(n, n_classes)
        shares = votes / votes.sum(axis=1, keepdims=True)
        scores: NDArray[np.float64] = (1 - TIE_SHARE) * shares + TIE_SHARE * _closeness(
            neighbours.class_distances
        )
        return scores

    def _vote_weights(self, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weight of the vote of each neighbour, ``(n, k)``."""
        if self.weights == "uniform":
            return np.ones(distances.shape)
        if self.weights == "distance":
            farthest = np.maximum(distances[:, -1:], np.finfo(np.float32).tiny)
            inverse: NDArray[np.float64] = 1 / np.maximum(
                distances / farthest, MIN_RELATIVE_DISTANCE
            )
            return inverse
        # Relative to the nearest neighbour, which avoids underflow: for unit vectors with
        # similarities s and s' and distances d and d', d'^2 - d^2 = 2 (s - s').
        differences = distances[:, :1] ** 2 - distances**2
        votes: NDArray[np.float64] = np.exp(differences / (2 * self.temperature))
        return votes

    def _scaled(self, x: Floats) -> Floats:
        scaled = apply_scale(x, self.scale, self.centre_, self.spread_)
        return unit_norm(scaled) if self.metric == "cosine" else scaled


def _smallest(
    distances: NDArray[np.float64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the k smallest distances ``(n, k)`` of each row, ascending, and their columns."""
    places = np.argpartition(distances, k - 1, axis=1)[:, :k]
    order = np.argsort(np.take_along_axis(distances, places, axis=1), axis=1, kind="stable")
    places = np.take_along_axis(places, order, axis=1)
    return np.take_along_axis(distances, places, axis=1), places


def _closeness(class_distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return weights ``(n, n_classes)`` that decrease with the distance; each row sums to 1."""
    means = class_distances.mean(axis=1, keepdims=True)
    relative = class_distances / np.where(means == 0, 1, means)
    return np.asarray(softmax(-TIE_SHARPNESS * relative, axis=1), np.float64)
