"""The linear probe: logistic regression on scaled vectors."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, ClassVar

from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight

from featkit.heads.base import Floats, LogitHead, one_thread, two_columns
from featkit.heads.scaling import SCALES, apply_scale, fit_scale


class LinearHead(LogitHead):
    """Multinomial logistic regression with an L2 penalty, the linear probe.

    The vectors are scaled inside (see ``scale``); the defaults had the best cross-validated accuracy on the training
    images of Caltech-101, for ResNet-18 and ResNet-50.

    Parameters
    ----------
    C : float, default=20.0
        Inverse strength of the penalty on the weights, for the summed loss.
    max_iter : int, default=1000
        Most iterations of the solver (L-BFGS). What did not converge by then says so in ``warnings_``.
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
        solver = LogisticRegression(C=self.C, max_iter=self.max_iter)
        converged = _converges(solver, apply_scale(rows, self.scale, self.centre_, self.spread_), codes, weights)
        self.coef_, self.intercept_ = solver.coef_, solver.intercept_
        self.n_iter_ = int(solver.n_iter_[0])
        if not converged:
            self.warnings_ = (f"linear did not converge in {self.n_iter_} iterations",)
        return self

    def _logits(self, rows: Floats) -> Floats:
        scaled = apply_scale(rows, self.scale, self.centre_, self.spread_)
        return two_columns(scaled @ self.coef_.T + self.intercept_)


def _converges(solver: LogisticRegression, *data: Any) -> bool:
    """Fit the solver and return whether it converged; warnings of any other kind are passed on."""
    with warnings.catch_warnings(record=True) as caught, one_thread():
        warnings.simplefilter("always")
        solver.fit(*data)
    late = [warning for warning in caught if issubclass(warning.category, ConvergenceWarning)]
    for warning in caught:
        if warning not in late:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return not late
