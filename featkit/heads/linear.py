"""Linear probe: logistic regression on scaled features."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from featkit.blocks import is_large
from featkit.errors import HeadError
from featkit.heads.base import (
    Floats,
    LogitHead,
    Trial,
    binary_to_two_columns,
    checked_weights,
    fit_in_threads,
    logits_to_scores,
)
from featkit.heads.logistic import logistic_path
from featkit.heads.scaling import SCALES, ScaledRows, apply_scale, fit_scale
from featkit.heads.streamed import fit_streamed, log_loss
from featkit.parallel import blas_threads

SEARCH_CS = np.logspace(-6, 5, 45)
"""Values of C in the search space."""

WARM_UP = np.logspace(-4, 0, 5)
"""Fractions of C that are solved on the way to it, which is faster than starting from zero."""

START_ROWS = 50_000
"""Rows that the fit of a large array starts with."""

COARSE_TOLERANCE = 1e-3
"""Tolerance, relative to the objective, of solutions that are compared or start other fits."""


class LinearHead(LogitHead):
    """Multinomial logistic regression with an L2 penalty (linear probe).

    The features are scaled inside (see ``scale``); the defaults had the best cross-validated
    accuracy on the training images of Caltech-101, for ResNet-18 and ResNet-50.

    Parameters
    ----------
    C : float, default=20.0
        Inverse regularization strength, for the loss summed over the samples.
    max_iter : int, default=1000
        Maximum number of solver iterations (see ``logistic_path``). ``warnings_`` reports if the
        solver did not converge within them.
    scale : {"root", "l2", "standard"} or None, default="root"
        "root": signed square root of each feature, then as "l2". "l2": unit length, centred, one
        common factor. "standard": each feature centred and divided by its standard deviation. None
        (``none`` in a spec): no scaling.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Sorted training labels; the columns of the scores.
    coef_, intercept_ : ndarray of shape (k, d), (k,)
        Weights and intercepts for scaled features; a single row for two classes.
    centre_, spread_ : ndarray of shape (d,)
        Parameters of the scaling.
    n_iter_ : int
        Number of iterations.
    warnings_ : tuple of str
        Whether the solver stopped early.

    References
    ----------
    Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016.
    Kornblith, Shlens and Le, "Do better ImageNet models transfer better?", CVPR 2019.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "C": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "scale": [StrOptions({each for each in SCALES if each}), None],
    }

    def __init__(
        self, *, C: float = 20.0, max_iter: int = 1000, scale: str | None = "root"
    ) -> None:
        self.C = C
        self.max_iter = max_iter
        self.scale = scale

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LinearHead:
        """Fit on features ``(n, d)`` with labels ``(n,)`` and sample weights ``(n,)``."""
        x, codes = self._check_training_data(X, y)
        weights = None if sample_weight is None else checked_weights(sample_weight, x)
        self.centre_, self.spread_ = fit_scale(x, self.scale, weights)
        if is_large(x):
            self._fit_in_blocks(x, codes, weights)
            return self
        final_tolerance = 1e-5 if x.dtype == np.float32 else 1e-10
        path = logistic_path(
            apply_scale(x, self.scale, self.centre_, self.spread_),
            codes,
            self.C * WARM_UP,
            n_classes=len(self.classes_),
            sample_weight=weights,
            tol=[COARSE_TOLERANCE] * (len(WARM_UP) - 1) + [final_tolerance],
            max_iter=self.max_iter,
        )
        final = path[-1]
        self.coef_, self.intercept_, self.n_iter_ = final.coef, final.intercept, final.n_iter
        if not final.converged:
            self.warnings_ = (f"linear did not converge in {self.n_iter_} iterations",)
        return self

    def _fit_in_blocks(
        self, x: Floats, codes: NDArray[np.intp], weights: NDArray[np.float64] | None
    ) -> None:
        """Fit on features that are not copied, starting from the solution for a part of them."""
        k, n = len(self.classes_), len(x)
        rows = np.sort(np.random.default_rng(0).choice(n, min(n, START_ROWS), replace=False))
        some_weights = None if weights is None else weights[rows]
        total, some = (n, len(rows)) if weights is None else (weights.sum(), weights[rows].sum())
        scaled = ScaledRows(x, self.scale, self.centre_, self.spread_)
        start = logistic_path(
            scaled[rows],
            codes[rows],
            self.C * total / some * WARM_UP,
            n_classes=k,
            sample_weight=some_weights,
            tol=COARSE_TOLERANCE,
            max_iter=self.max_iter,
        )[-1]
        coef, intercept = start.coef, start.intercept
        if k == 2:  # opposite rows, with half the penalty
            coef, intercept = np.vstack([-coef, coef]) / 2, np.append(-intercept, intercept) / 2
        with blas_threads(None):
            fit = fit_streamed(
                scaled,
                codes,
                log_loss,
                n_classes=k,
                penalty=(2 if k == 2 else 1) / (self.C * total),
                weights=weights,
                start=(coef, intercept),
                tol=1e-5,
                max_iter=self.max_iter,
            )
        coef, intercept = fit.coef - fit.coef.mean(axis=0), fit.intercept - fit.intercept.mean()
        if k == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        self.coef_, self.intercept_ = coef.astype(x.dtype), intercept.astype(x.dtype)
        self.n_iter_ = start.n_iter + fit.n_iter
        if not fit.converged:
            self.warnings_ = (f"linear did not converge in {self.n_iter_} iterations",)

    @classmethod
    def from_weights(cls, coef: Floats, intercept: Floats, classes: NDArray[Any]) -> LinearHead:
        """Create a fitted head without scaling from given weights.

        Args:
            coef: weights ``(k, d)``.
            intercept: intercepts ``(k,)``.
            classes: sorted labels ``(k,)``.
        """
        head = cls(scale=None)
        head.classes_ = np.asarray(classes)
        head.n_features_in_ = coef.shape[1]
        head.centre_, head.spread_ = fit_scale(coef, None)
        if len(coef) == 2:  # binary heads store the difference of the two classes
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        head.coef_, head.intercept_ = coef, intercept
        head.n_iter_, head.warnings_ = 0, ()
        return head

    def to_weights(self) -> tuple[Floats, Floats]:
        """Return weights ``(k, d)`` and intercepts ``(k,)`` for unscaled features.

        For two classes, too, there are k = 2 rows.

        Raises:
            HeadError: if the scaling normalises each feature vector, which is not linear.
        """
        check_is_fitted(self)
        if self.scale not in (None, "standard"):
            raise HeadError(f"scale={self.scale} is not linear: fit with scale=standard or none")
        coef = self.coef_ / self.spread_
        intercept = self.intercept_ - self.coef_ @ (self.centre_ / self.spread_)
        if len(self.classes_) > 2:
            return coef, intercept
        return np.concatenate([0 * coef, coef]), np.concatenate([0 * intercept, intercept])

    @classmethod
    def trials(cls, x: Floats, y: NDArray[Any], x_val: Floats, seed: int = 0) -> Iterator[Trial]:
        """Yield the scores on ``x_val`` of heads with every scale and every C of ``SEARCH_CS``.

        One regularization path is solved for each scale, in a thread each, to ``COARSE_TOLERANCE``.

        Args:
            x: training features ``(n, d)``.
            y: labels ``(n,)``.
            x_val: features ``(m, d)`` to score; the columns of the scores are ``np.unique(y)``.
            seed: unused; the solver is deterministic.
        """
        x = np.asarray(x)  # the paths of all scalings work on copies

        def solve_path(scale: str | None) -> list[Trial]:
            head = cls(scale=scale)
            train, codes = head._check_training_data(x, y)
            head.centre_, head.spread_ = fit_scale(train, scale)
            val = head._check_features(x_val)
            train = apply_scale(train, scale, head.centre_, head.spread_)
            val = apply_scale(val, scale, head.centre_, head.spread_)
            path = logistic_path(
                train, codes, SEARCH_CS, n_classes=len(head.classes_), tol=COARSE_TOLERANCE
            )
            trials = []
            for solution in path:
                logits = binary_to_two_columns(val @ solution.coef.T + solution.intercept)
                options = {"C": solution.C, "scale": scale}
                trials.append(Trial(options, logits_to_scores(logits)))
            return trials

        for trials in fit_in_threads(solve_path, (None, "standard", "l2", "root")):
            yield from trials

    def _logits(self, x: Floats) -> Floats:
        scaled = apply_scale(x, self.scale, self.centre_, self.spread_)
        return binary_to_two_columns(scaled @ self.coef_.T + self.intercept_)
