"""Nearest neighbours, Euclidean or by angle."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from sklearn.utils._param_validation import Interval, StrOptions

from featkit.heads.base import Floats, Head, UnfitDataError
from featkit.heads.scaling import unit

_SMALLEST = 1e-9


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
        are.
    weights : {"distance", "uniform"}, default="distance"
        Whether a vote counts one over the distance, or 1. An exact copy of an image outvotes all that is not one.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Labels seen in ``fit``, sorted; the columns of the scores.
    rows_ : ndarray of shape (n, d)
        Training vectors, of unit length if the metric is cosine.
    codes_ : ndarray of shape (n,)
        Their positions in ``classes_``.
    warnings_ : tuple of str
        Empty: nothing is optimised.

    References
    ----------
    Cover and Hart, "Nearest neighbor pattern classification", IEEE Trans. Inf. Theory 1967.
    Dudani, "The distance-weighted k-nearest-neighbor rule", IEEE Trans. SMC 1976.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "k": [Interval(Integral, 1, None, closed="left")],
        "metric": [StrOptions({"cosine", "euclidean"})],
        "weights": [StrOptions({"distance", "uniform"})],
    }

    def __init__(self, *, k: int = 5, metric: str = "cosine", weights: str = "distance") -> None:
        self.k = k
        self.metric = metric
        self.weights = weights

    def fit(self, X: Any, y: Any) -> KNNHead:
        """Keep the rows ``(n, d)`` and their labels ``(n,)``.

        Raises:
            UnfitDataError: if there are fewer than k rows.
        """
        rows, codes = self._begin(X, y)
        if len(rows) < self.k:
            raise UnfitDataError(f"knn asks for k={self.k} neighbours, but n_samples = {len(rows)}: choose a smaller k")
        self.rows_, self.codes_ = self._prepared(rows), codes
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the scores ``(n, k)``: columns as in ``classes_``, rows that sum to 1."""
        rows = self._prepared(self._rows(X))
        search = NearestNeighbors(n_neighbors=self.k, algorithm="brute").fit(self.rows_)
        distances, places = search.kneighbors(rows)
        votes = np.ones(distances.shape) if self.weights == "uniform" else _inverse(distances)
        scores = np.zeros((len(rows), len(self.classes_)))
        np.add.at(scores, (np.arange(len(rows))[:, None], self.codes_[places]), votes)
        shares: NDArray[np.float64] = scores / scores.sum(axis=1, keepdims=True)
        return shares

    def _prepared(self, rows: Floats) -> Floats:
        return unit(rows) if self.metric == "cosine" else rows


def _inverse(distances: Floats) -> NDArray[np.float64]:
    """Return one over distances ``(n, k)``, relative to the farthest of the row."""
    relative = distances.astype(np.float64) / np.maximum(distances[:, -1:], np.finfo(np.float32).tiny)
    inverse: NDArray[np.float64] = 1 / np.maximum(relative, _SMALLEST)
    return inverse
