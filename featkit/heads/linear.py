"""The linear probe: logistic regression on scaled vectors."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from featkit.errors import HeadError
from featkit.heads.base import Floats, LogitHead, Trial, in_threads, softmax, two_columns
from featkit.heads.logistic import logistic_path
from featkit.heads.scaling import SCALES, apply_scale, fit_scale

TRIED = np.logspace(-6, 5, 45)
"""Values of C that a search tries."""

WARM_UP = np.logspace(-6, 0, 13)
"""Parts of C that are solved on the way to it: faster than starting from nothing."""

ROUGH = 1e-3
"""Tolerance, as a part of the objective, of solutions that are compared or passed by, not kept."""


class LinearHead(LogitHead):
    """Multinomial logistic regression with an L2 penalty, the linear probe.

    The vectors are scaled inside (see ``scale``); the defaults had the best cross-validated accuracy on the training
    images of Caltech-101, for ResNet-18 and ResNet-50.

    Parameters
    ----------
    C : float, default=20.0
        Inverse strength of the penalty on the weights, for the summed loss.
    max_iter : int, default=1000
        Most iterations of the solver (``logistic_path``). What did not converge by then says so in ``warnings_``.
    scale : {"root", "l2", "standard"} or None, default="root"
        Signed square root of each number, then as "l2": unit length, centred, one common factor. "standard": each
        column centred and divided by its spread. None (``none`` in a spec): nothing.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Labels seen in ``fit``, sorted; the columns of the scores.
    coef_, intercept_ : ndarray of shape (k, d), (k,)
        Weights on scaled vectors; a single row for two classes.
    centre_, spread_ : ndarray of shape (d,)
        What the scaling subtracts and divides by.
    n_iter_ : int
        Iterations used.
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
        "scale": [StrOptions({how for how in SCALES if how}), None],
    }

    def __init__(self, *, C: float = 20.0, max_iter: int = 1000, scale: str | None = "root") -> None:
        self.C = C
        self.max_iter = max_iter
        self.scale = scale

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LinearHead:
        """Fit on rows ``(n, d)`` with labels ``(n,)``, each row counting ``sample_weight`` times."""
        rows, codes = self._begin(X, y)
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, rows)
        self.centre_, self.spread_ = fit_scale(rows, self.scale, weights)
        tol = 1e-5 if rows.dtype == np.float32 else 1e-10
        *_, fitted = logistic_path(
            apply_scale(rows, self.scale, self.centre_, self.spread_),
            codes,
            self.C * WARM_UP,
            n_classes=len(self.classes_),
            sample_weight=weights,
            tol=[ROUGH] * (len(WARM_UP) - 1) + [tol],
            max_iter=self.max_iter,
        )
        self.coef_, self.intercept_, self.n_iter_ = fitted.coef, fitted.intercept, fitted.n_iter
        if not fitted.converged:
            self.warnings_ = (f"linear did not converge in {self.n_iter_} iterations",)
        return self

    @classmethod
    def from_weights(cls, coef: Floats, intercept: Floats, classes: NDArray[Any]) -> LinearHead:
        """Return a fitted head with weights that something else has found, on vectors as they are.

        Args:
            coef: ``(k, d)``.
            intercept: ``(k,)``.
            classes: ``(k,)`` labels, sorted.
        """
        head = cls(scale=None)
        head.classes_, head.n_features_in_ = np.asarray(classes), coef.shape[1]
        head.centre_, head.spread_ = fit_scale(coef, None)
        binary = len(coef) == 2  # a single row then, of the second class over the first
        head.coef_ = coef[1:] - coef[:1] if binary else coef
        head.intercept_ = intercept[1:] - intercept[:1] if binary else intercept
        head.n_iter_, head.warnings_ = 0, ()
        return head

    def to_weights(self) -> tuple[Floats, Floats]:
        """Return weights ``(k, d)`` and intercepts ``(k,)`` for vectors as they are, two rows for two classes.

        Raises:
            HeadError: if the scaling divides each vector by its own length, which no weights can do.
        """
        check_is_fitted(self)
        if self.scale not in (None, "standard"):
            raise HeadError(f"scale={self.scale} is not linear: fit with scale=standard or none")
        coef, intercept = self.coef_ / self.spread_, self.intercept_ - self.coef_ @ (self.centre_ / self.spread_)
        if len(self.classes_) > 2:
            return coef, intercept
        return np.concatenate([0 * coef, coef]), np.concatenate([0 * intercept, intercept])

    @classmethod
    def trials(cls, x: Floats, y: NDArray[Any], x_val: Floats, seed: int = 0) -> Iterator[Trial]:
        """Yield, for every scale and every C of ``TRIED``, the scores of a head with these options.

        One path of penalties is solved for each scale, on one core each, to the tolerance ``ROUGH``.

        Args:
            x: training rows ``(n, d)``.
            y: their labels ``(n,)``.
            x_val: rows ``(n_val, d)`` to score; columns of the scores are as in ``np.unique(y)``.
            seed: taken as by other heads; nothing here is random.
        """

        def path(scale: str | None) -> list[Trial]:
            head = cls(scale=scale)
            rows, codes = head._begin(x, y)
            head.centre_, head.spread_ = fit_scale(rows, scale)
            scaled = apply_scale(rows, scale, head.centre_, head.spread_)
            points = apply_scale(head._rows(x_val), scale, head.centre_, head.spread_)
            fits = logistic_path(scaled, codes, TRIED, n_classes=len(head.classes_), tol=ROUGH)
            logits = (two_columns(points @ fitted.coef.T + fitted.intercept) for fitted in fits)
            return [
                Trial({"C": fitted.C, "scale": scale}, softmax(each)) for fitted, each in zip(fits, logits, strict=True)
            ]

        for trials in in_threads(path, (None, "standard", "l2", "root")):
            yield from trials

    def _logits(self, rows: Floats) -> Floats:
        scaled = apply_scale(rows, self.scale, self.centre_, self.spread_)
        return two_columns(scaled @ self.coef_.T + self.intercept_)
