"""k nearest neighbours, with Euclidean or cosine distance."""

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
from featkit.heads.scaling import SCALES, apply_scale, fit_scale, unit_norm

MIN_RELATIVE_DISTANCE = 1e-9
"""Lower bound of distances relative to the farthest neighbour: that of a copy is zero."""

SEARCH_KS = (1, 3, 5, 10, 20, 50, 100, 200)
SEARCH_WEIGHTS = {
    "cosine": ("uniform", "distance", "temperature"),
    "euclidean": ("uniform", "distance"),
}
"""Weightings in the search space, by metric: the temperature is defined for cosine similarities."""


class KNNHead(Head):
    """Vote of the k nearest training images.

    The score of a class is its fraction of the votes; classes without a neighbour score 0. The
    defaults were chosen as those of ``LinearHead``.

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
        Scaled training features, of unit length if the metric is cosine.
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
            distances, codes = largest._neighbours(x_val)
            n_classes = len(largest.classes_)
            for k, weights in product(ks, SEARCH_WEIGHTS[metric]):
                options: dict[str, Any] = {
                    "scale": scale,
                    "metric": metric,
                    "k": k,
                    "weights": weights,
                }
                scores = cls(**options)._vote(distances[:, :k], codes[:, :k], n_classes)
                yield Trial(options, scores)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class scores ``(n, k)``, columns as in ``classes_``; each row sums to 1."""
        distances, codes = self._neighbours(X)
        return self._vote(distances, codes, len(self.classes_))

    def _neighbours(self, X: Any) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Return distances and class codes ``(n, k)`` of the k nearest rows, nearest first."""
        x = self._scaled(self._check_features(X))
        index = NearestNeighbors(n_neighbors=self.k, algorithm="brute").fit(self.rows_)
        distances, places = index.kneighbors(x)
        return distances.astype(np.float64), self.codes_[places]

    def _vote(
        self, distances: NDArray[np.float64], codes: NDArray[np.intp], n_classes: int
    ) -> NDArray[np.float64]:
        """Return the vote shares of all classes ``(n, n_classes)`` from neighbours ``(n, k)``."""
        n = len(codes)
        # A weighted count of (row, class) pairs, each encoded as one number, sums all votes.
        pairs = np.arange(n)[:, None] * n_classes + codes
        votes = np.bincount(
            pairs.ravel(), self._vote_weights(distances).ravel(), minlength=n * n_classes
        )
        scores = votes.reshape(n, n_classes)
        shares: NDArray[np.float64] = scores / scores.sum(axis=1, keepdims=True)
        return shares

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
