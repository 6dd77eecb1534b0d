"""Multi-layer perceptron with one hidden layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions

from featkit.blocks import BLOCK_VALUES, is_large
from featkit.heads.base import (
    Floats,
    LogitHead,
    Trial,
    binary_to_two_columns,
    fit_in_threads,
    single_threaded_blas,
)
from featkit.heads.scaling import SCALES, ScaledRows, apply_scale, fit_scale

LEARNING_RATE = 5e-4

SEARCH_SPACE: tuple[dict[str, Any], ...] = (
    {"scale": "root", "width": 512, "alpha": 0.1},
    {"scale": "root", "width": 256, "alpha": 0.1},
    {"scale": "root", "width": 256, "alpha": 1.0},
    {"scale": "l2", "width": 256, "alpha": 0.1},
    {"scale": "standard", "width": 256, "alpha": 0.1},
    {"scale": None, "width": 256, "alpha": 0.1},
)
"""The defaults, and one change at a time: each fit takes seconds."""


class MLPHead(LogitHead):
    """Multi-layer perceptron: one hidden ReLU layer, softmax, cross-entropy loss.

    scikit-learn's ``MLPClassifier``, trained with Adam for a fixed number of epochs. The batch size
    is n / 16, between 16 and 128. Features are scaled as by ``LinearHead`` and, unless ``scale`` is
    None, multiplied by the square root of d. The defaults were chosen as those of ``LinearHead``.

    Parameters
    ----------
    width : int, default=512
        Number of hidden units.
    epochs : int, default=30
        Passes over the training set.
    alpha : float, default=0.1
        L2 penalty on the weights.
    seed : int, default=0
        Seed of the initial weights and of the order of the samples.
    scale : {"root", "l2", "standard"} or None, default="root"
        As in ``LinearHead``.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Sorted training labels; the columns of the scores.
    hidden_coef_, hidden_intercept_ : ndarray of shape (d, width), (width,)
        Weights and intercepts of the hidden layer, for scaled features.
    coef_, intercept_ : ndarray of shape (width, k), (k,)
        Weights and intercepts of the output layer; a single column for two classes.
    centre_, spread_ : ndarray of shape (d,)
        Parameters of the scaling.
    warnings_ : tuple of str
        Empty: the number of epochs is fixed.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "width": [Interval(Integral, 1, None, closed="left")],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "seed": [Interval(Integral, 0, 2**32 - 1, closed="both")],
        "scale": [StrOptions({each for each in SCALES if each}), None],
    }

    def __init__(
        self,
        *,
        width: int = 512,
        epochs: int = 30,
        alpha: float = 0.1,
        seed: int = 0,
        scale: str | None = "root",
    ) -> None:
        self.width = width
        self.epochs = epochs
        self.alpha = alpha
        self.seed = seed
        self.scale = scale

    def fit(self, X: Any, y: Any) -> MLPHead:
        """Fit on features ``(n, d)`` with labels ``(n,)``."""
        x, codes = self._check_training_data(X, y)
        self.fit_network(x, codes)
        return self

    def fit_network(self, x: Floats, y: NDArray[Any]) -> None:
        """Fit scaling and weights on checked features ``(n, d)``.

        Args:
            x: the features.
            y: ``(n,)`` numbers of the classes; or ``(n, k)`` zeros and ones, for ``k`` labels of
                which an image has any number. The outputs are then the logits of sigmoids, and the
                loss is the sum of the binary cross-entropies.
        """
        from sklearn.neural_network import MLPClassifier  # imports half of scikit-learn

        self.centre_, spread = fit_scale(x, self.scale)
        # The learning rate and the initial weights assume unit variance per feature, while the
        # scaling makes the variances sum to 1.
        self.spread_ = spread / np.sqrt(x.shape[1], dtype=x.dtype)
        network = MLPClassifier(
            (self.width,),
            alpha=self.alpha,
            batch_size=min(len(x), int(np.clip(len(x) // 16, 16, 128))),
            learning_rate_init=LEARNING_RATE,
            max_iter=self.epochs,
            n_iter_no_change=self.epochs,  # never stop early
            random_state=self.seed,
        )
        with single_threaded_blas(), warnings.catch_warnings():
            # Every fit ends with this warning, as the number of epochs is fixed.
            warnings.simplefilter("ignore", ConvergenceWarning)
            if is_large(x):
                self._fit_in_blocks(network, x, y)
            else:
                network.fit(apply_scale(x, self.scale, self.centre_, self.spread_), y)
        self.hidden_coef_, self.coef_ = network.coefs_
        self.hidden_intercept_, self.intercept_ = network.intercepts_

    def _fit_in_blocks(self, network: Any, x: Floats, y: NDArray[Any]) -> None:
        """Train on features that are not copied: in each epoch, on parts of them drawn at random.

        A part holds rows from anywhere, as those of an array may be sorted by class.
        """
        rng = np.random.default_rng(self.seed)
        scaled = ScaledRows(x, self.scale, self.centre_, self.spread_)
        size = max(1, BLOCK_VALUES // x.shape[1])
        classes = np.unique(y) if y.ndim == 1 else np.arange(y.shape[1])
        for _ in range(self.epochs):
            order = rng.permutation(len(x))
            for first in range(0, len(x), size):
                rows = np.sort(order[first : first + size])  # reads a file forwards
                network.partial_fit(scaled[rows], y[rows], classes=classes)

    @classmethod
    def trials(cls, x: Floats, y: NDArray[Any], x_val: Floats, seed: int = 0) -> Iterator[Trial]:
        """Yield the scores on ``x_val (m, d)`` of all candidates fitted on ``x (n, d)``, ``y``."""

        def score(options: dict[str, Any]) -> NDArray[np.float64]:
            return cls(**options, seed=seed).fit(x, y).predict_proba(x_val)

        for options, scores in zip(SEARCH_SPACE, fit_in_threads(score, SEARCH_SPACE), strict=True):
            yield Trial(options, scores)

    def _logits(self, x: Floats) -> Floats:
        scaled = apply_scale(x, self.scale, self.centre_, self.spread_)
        hidden = np.maximum(scaled @ self.hidden_coef_ + self.hidden_intercept_, 0)
        return binary_to_two_columns(hidden @ self.coef_ + self.intercept_)
