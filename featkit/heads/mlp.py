"""A perceptron with one hidden layer."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions

from featkit.heads.base import Floats, LogitHead, Trial, in_threads, single_threaded_blas, two_columns
from featkit.heads.perceptron import train_perceptron
from featkit.heads.scaling import SCALES, apply_scale, fit_scale

_SPACE: tuple[dict[str, Any], ...] = (
    {"scale": "root", "width": 512, "alpha": 0.1},
    {"scale": "root", "width": 256, "alpha": 0.1},
    {"scale": "root", "width": 256, "alpha": 1.0},
    {"scale": "l2", "width": 256, "alpha": 0.1},
    {"scale": "standard", "width": 256, "alpha": 0.1},
    {"scale": None, "width": 256, "alpha": 0.1},
)
"""The defaults and one step away from them in each direction, as each fit takes seconds."""


class MLPHead(LogitHead):
    """Multi-layer perceptron: one hidden layer of rectified units, soft-max, cross-entropy.

    Trained by Adam for a fixed number of epochs, in batches of a sixteenth of the images (16 to 128). Vectors are
    scaled inside as by ``LinearHead`` and, unless ``scale`` is None, multiplied by the square root of d. The defaults
    were chosen as those of ``LinearHead``.

    Parameters
    ----------
    width : int, default=512
        Number of hidden units.
    epochs : int, default=30
        Passes over the training rows.
    alpha : float, default=0.1
        Weight decay, per batch.
    seed : int, default=0
        Decides the initial weights and the order of the rows; the same seed gives the same network.
    scale : {"root", "l2", "standard"} or None, default="root"
        As in ``LinearHead``.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Labels seen in ``fit``, sorted; the columns of the scores.
    hidden_coef_, hidden_intercept_ : ndarray of shape (d, width), (width,)
        Weights of the hidden layer, on scaled vectors.
    coef_, intercept_ : ndarray of shape (width, k), (k,)
        Weights of the output; a single column for two classes.
    centre_, spread_ : ndarray of shape (d,)
        What the scaling subtracts and divides by.
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
        "scale": [StrOptions({how for how in SCALES if how}), None],
    }

    def __init__(
        self, *, width: int = 512, epochs: int = 30, alpha: float = 0.1, seed: int = 0, scale: str | None = "root"
    ) -> None:
        self.width = width
        self.epochs = epochs
        self.alpha = alpha
        self.seed = seed
        self.scale = scale

    def fit(self, X: Any, y: Any) -> MLPHead:
        """Fit on rows ``(n, d)`` with labels ``(n,)``."""
        rows, codes = self._begin(X, y)
        self.centre_, spread = fit_scale(rows, self.scale)
        # Adam's step and the initial weights suppose inputs of variance 1 each, not 1 together.
        self.spread_ = spread / np.sqrt(rows.shape[1], dtype=rows.dtype)
        with single_threaded_blas():
            network = train_perceptron(
                apply_scale(rows, self.scale, self.centre_, self.spread_),
                codes,
                width=self.width,
                decay=self.alpha,
                epochs=self.epochs,
                seed=self.seed,
            )
        self.hidden_coef_, self.coef_, self.hidden_intercept_, self.intercept_ = network
        return self

    @classmethod
    def trials(cls, x: Floats, y: NDArray[Any], x_val: Floats, seed: int = 0) -> Iterator[Trial]:
        """Yield the scores on ``x_val (m, d)`` of every head of the default search space, fitted on ``x (n, d)``."""

        def scores(options: dict[str, Any]) -> NDArray[np.float64]:
            return cls(**options, seed=seed).fit(x, y).predict_proba(x_val)

        yield from map(Trial, _SPACE, in_threads(scores, _SPACE))

    def _logits(self, rows: Floats) -> Floats:
        scaled = apply_scale(rows, self.scale, self.centre_, self.spread_)
        hidden = np.maximum(scaled @ self.hidden_coef_ + self.hidden_intercept_, 0)
        return two_columns(hidden @ self.coef_ + self.intercept_)
