"""Nearest neighbours, Euclidean or by angle."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from sklearn.utils._param_validation import Interval, StrOptions

from featkit.heads.base import Floats, Head, Trial, UnfitDataError
from featkit.heads.scaling import SCALES, apply_scale, fit_scale, unit

_SMALLEST = 1e-9
_KS = (1, 3, 5, 10, 20, 50, 100, 200)
_METRICS = {"cosine": ("uniform", "distance", "temperature"), "euclidean": ("uniform", "distance")}
"""For each metric the votes that a search tries: the temperature is one of cosine similarities."""


class KNNHead(Head):
    """Vote of the k nearest training images.

    A class's score is its share of the votes; classes without a neighbour score 0. The defaults were chosen as those
    of ``LinearHead``.

    Parameters
    ----------
    k : int, default=5
        Number of neighbours.
    metric : {"cosine", "euclidean"}, default="cosine"
        Euclidean distance between vectors of unit length, which orders as the angle does, or between vectors as they
        are; after ``scale``.
    weights : {"distance", "temperature", "uniform"}, default="distance"
        Whether a vote counts one over the distance, ``exp(similarity / temperature)``, or 1. With "distance" an exact
        copy of an image outvotes all that is not one. The similarity is the cosine; for the Euclidean metric minus
        half the squared distance, which is the same up to a constant where vectors have unit length.
    temperature : float, default=0.07
        For the weights of that name: the lower, the more the nearest count. The default is that of Wu et al. and DINO.
    scale : {"root", "l2", "standard"} or None, default=None
        As in ``LinearHead``.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Labels seen in ``fit``, sorted; the columns of the scores.
    rows_ : ndarray of shape (n, d)
        Training vectors, scaled, and of unit length if the metric is cosine.
    codes_ : ndarray of shape (n,)
        Their positions in ``classes_``.
    centre_, spread_ : ndarray of shape (d,)
        What the scaling subtracts and divides by.
    warnings_ : tuple of str
        Empty: nothing is optimised.

    References
    ----------
    Cover and Hart, "Nearest neighbor pattern classification", IEEE Trans. Inf. Theory 1967.
    Dudani, "The distance-weighted k-nearest-neighbor rule", IEEE Trans. SMC 1976.
    Wu, Xiong, Yu and Lin, "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018, eq. 5.
    Caron et al., "Emerging properties in self-supervised vision transformers" (DINO), ICCV 2021.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "k": [Interval(Integral, 1, None, closed="left")],
        "metric": [StrOptions({"cosine", "euclidean"})],
        "weights": [StrOptions({"distance", "temperature", "uniform"})],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "scale": [StrOptions({how for how in SCALES if how}), None],
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
        """Keep the rows ``(n, d)`` and their labels ``(n,)``.

        Raises:
            UnfitDataError: if there are fewer than k rows.
        """
        rows, codes = self._begin(X, y)
        if len(rows) < self.k:
            raise UnfitDataError(f"knn asks for k={self.k} neighbours, but n_samples = {len(rows)}: choose a smaller k")
        self.centre_, self.spread_ = fit_scale(rows, self.scale)
        self.rows_, self.codes_ = self._prepared(rows), codes
        return self

    @classmethod
    def trials(cls, x: Floats, y: NDArray[Any], x_val: Floats, seed: int = 0) -> Iterator[Trial]:
        """Yield the scores on ``x_val (m, d)`` of every head of the default search space, fitted on ``x (n, d)``.

        The neighbours are found once for each scaling and metric. Nothing depends on ``seed``.
        """
        ks = [k for k in _KS if k <= len(x)]
        for scale, metric in product(SCALES, _METRICS):
            shared = cls(k=ks[-1], metric=metric, scale=scale).fit(x, y)
            distances, codes = shared._neighbours(x_val)
            for k, weights in product(ks, _METRICS[metric]):
                options: dict[str, Any] = {"scale": scale, "metric": metric, "k": k, "weights": weights}
                head = cls(**options)
                yield Trial(options, head._shares(distances[:, :k], codes[:, :k], len(shared.classes_)))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the scores ``(n, k)``: columns as in ``classes_``, rows that sum to 1."""
        return self._shares(*self._neighbours(X), len(self.classes_))

    def _neighbours(self, X: Any) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Return the distances to the k nearest training rows, nearest first, and their classes, both ``(n, k)``."""
        rows = self._prepared(self._rows(X))
        search = NearestNeighbors(n_neighbors=self.k, algorithm="brute").fit(self.rows_)
        distances, places = search.kneighbors(rows)
        return distances.astype(np.float64), self.codes_[places]

    def _shares(self, distances: NDArray[np.float64], codes: NDArray[np.intp], classes: int) -> NDArray[np.float64]:
        """Return the share of the votes ``(n, classes)`` that neighbours ``(n, k)`` give to each class."""
        cells = np.arange(len(codes))[:, None] * classes + codes
        votes = np.bincount(cells.ravel(), self._votes(distances).ravel(), minlength=len(codes) * classes)
        scores = votes.reshape(len(codes), classes)
        shares: NDArray[np.float64] = scores / scores.sum(axis=1, keepdims=True)
        return shares

    def _votes(self, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the vote of each neighbour counts, ``(n, k)``."""
        if self.weights == "uniform":
            return np.ones(distances.shape)
        if self.weights == "distance":
            return _inverse(distances)
        # Relative to the nearest: of unit vectors with similarities s and s', d'^2 - d^2 = 2 (s - s').
        votes: NDArray[np.float64] = np.exp((distances[:, :1] ** 2 - distances**2) / (2 * self.temperature))
        return votes

    def _prepared(self, rows: Floats) -> Floats:
        scaled = apply_scale(rows, self.scale, self.centre_, self.spread_)
        return unit(scaled) if self.metric == "cosine" else scaled


def _inverse(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one over distances ``(n, k)``, relative to the farthest of the row."""
    relative = distances / np.maximum(distances[:, -1:], np.finfo(np.float32).tiny)
    inverse: NDArray[np.float64] = 1 / np.maximum(relative, _SMALLEST)
    return inverse
