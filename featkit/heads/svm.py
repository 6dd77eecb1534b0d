"""The support vector machine, RBF and linear."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.svm import SVC
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight

from featkit.heads.base import Floats, LogitHead, two_columns
from featkit.heads.scaling import apply_scale, fit_scale


class SVMHead(LogitHead):
    """Support vector machine with an RBF or a linear kernel.

    Vectors are scaled inside as by ``LinearHead(scale="root")``. One machine is trained for each pair of classes
    (libsvm); the one-vs-rest decision value of a class is the number of pairs it wins, with their margins deciding
    between equals. The scores are the soft-max of these values. They rank, but are not calibrated: 0.6 does not mean
    that six in ten such predictions are right. The defaults were chosen as those of ``LinearHead``.

    Parameters
    ----------
    C : float, default=3.0
        Inverse strength of the penalty.
    kernel : {"rbf", "linear"}, default="rbf"
        ``exp(-gamma |x - x'|^2)`` or ``x . x'``.
    gamma : "scale" or float, default="scale"
        Width of the RBF kernel. The scaled vectors have a mean squared length of 1, for which "scale" (one over the
        total variance) is 1.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Labels seen in ``fit``, sorted; the columns of the scores.
    machine_ : sklearn.svm.SVC
        The fitted machine, on scaled vectors and positions in ``classes_``.
    centre_, spread_ : ndarray of shape (d,)
        What the scaling subtracts and divides by.
    warnings_ : tuple of str
        Empty: the solver runs until it has converged.

    References
    ----------
    Chang and Lin, "LIBSVM: a library for support vector machines", ACM TIST 2011.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "C": [Interval(Real, 0, None, closed="neither")],
        "kernel": [StrOptions({"rbf", "linear"})],
        "gamma": [StrOptions({"scale"}), Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, *, C: float = 3.0, kernel: str = "rbf", gamma: str | float = "scale") -> None:
        self.C = C
        self.kernel = kernel
        self.gamma = gamma

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SVMHead:
        """Fit on rows ``(n, d)`` with labels ``(n,)``, each row counting ``sample_weight`` times."""
        rows, codes = self._begin(X, y)
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, rows)
        self.centre_, self.spread_ = fit_scale(rows, "root", weights)
        gamma = 1.0 if self.gamma == "scale" else self.gamma
        # The usual tolerance of 1e-3 would let the order of the rows, or a repeated row, show in the scores.
        self.machine_ = SVC(C=self.C, kernel=self.kernel, gamma=gamma, tol=1e-8, cache_size=1000)
        self.machine_.fit(apply_scale(rows, "root", self.centre_, self.spread_), codes, weights)
        return self

    def _logits(self, rows: Floats) -> Floats:
        values = self.machine_.decision_function(apply_scale(rows, "root", self.centre_, self.spread_))
        return two_columns(np.asarray(values))
