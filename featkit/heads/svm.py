"""The support vector machine, RBF and linear."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby, product
from numbers import Real
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight

from featkit.heads.base import (
    Floats,
    LogitHead,
    Trial,
    UnfitDataError,
    in_threads,
    single_threaded_blas,
    softmax,
    two_columns,
)
from featkit.heads.scaling import SCALES, apply_scale, fit_scale

MOST_ROWS = 16_384
"""Training rows up to which the whole kernel matrix is kept in memory while fitting: 2 GiB."""

_BLOCK = 2**22  # numbers of a block of kernel values while predicting: 32 MiB
_CS = (1.0, 3.0, 10.0)
_GAMMAS: tuple[str | float, ...] = ("scale", 0.3)
_KERNELS: tuple[tuple[str | None, str | float], ...] = (*product(("root", "l2", "standard"), _GAMMAS), (None, "scale"))
"""Scaling and gamma; without scaling, what gamma means depends on the unit of the vectors."""


class SVMHead(LogitHead):
    """Support vector machine with an RBF or a linear kernel.

    Vectors are scaled inside as by ``LinearHead``. One machine is trained for each pair of classes (libsvm); the
    one-vs-rest decision value of a class is the number of pairs it wins, with their margins deciding between equals.
    The scores are the soft-max of these values. They rank, but are not calibrated: 0.6 does not mean that six in ten
    such predictions are right. The defaults were chosen as those of ``LinearHead``.

    Kernel values are matrix products: all of them before fitting, up to 16,384 rows, and by blocks of rows when
    predicting. For more rows the solver evaluates the kernel as it goes; scikit-learn-intelex does this where it is
    installed.

    Parameters
    ----------
    C : float, default=3.0
        Inverse strength of the penalty.
    kernel : {"rbf", "linear"}, default="rbf"
        ``exp(-gamma |x - x'|^2)`` or ``x . x'``.
    gamma : "scale" or float, default="scale"
        Width of the RBF kernel; "scale" is one over the total variance of the scaled vectors. That is 1, unless
        ``scale`` is None.
    scale : {"root", "l2", "standard"} or None, default="root"
        As in ``LinearHead``.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Labels seen in ``fit``, sorted; the columns of the scores.
    support_vectors_ : ndarray of shape (s, d)
        Scaled training vectors that a machine depends on, class by class.
    n_support_ : ndarray of shape (k,)
        How many of them each class has.
    dual_coef_, intercept_ : ndarray of shape (k - 1, s), (k * (k - 1) / 2,)
        Coefficients and constants of the machines, in the order of libsvm.
    gamma_ : float
        Width of the RBF kernel.
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
        "scale": [StrOptions({how for how in SCALES if how}), None],
    }

    def __init__(
        self, *, C: float = 3.0, kernel: str = "rbf", gamma: str | float = "scale", scale: str | None = "root"
    ) -> None:
        self.C = C
        self.kernel = kernel
        self.gamma = gamma
        self.scale = scale

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SVMHead:
        """Fit on rows ``(n, d)`` with labels ``(n,)``, each row counting ``sample_weight`` times.

        Raises:
            UnfitDataError: if all rows of a class have weight zero.
        """
        rows, codes = self._begin(X, y)
        weights = _check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
        # libsvm would drop such rows too, but then counts the others from zero again.
        rows, codes, weights = rows[weights > 0], codes[weights > 0], weights[weights > 0]
        if missing := set(range(len(self.classes_))) - set(codes.tolist()):
            raise UnfitDataError(f"class {self.classes_[min(missing)]} has no row with a weight above zero")
        scaled = self._fit_scale(rows, weights)
        if len(rows) <= MOST_ROWS:
            support = self._solve(SVC(kernel="precomputed"), self._kernel(scaled, scaled), codes, weights)
        else:
            machine = _own_kernel_machine().set_params(kernel=self.kernel, gamma=self.gamma_)
            support = self._solve(machine, np.asarray(scaled, np.float64), codes, weights)
        self.support_vectors_ = scaled[support]
        return self

    @classmethod
    def trials(cls, x: Floats, y: NDArray[Any], x_val: Floats, seed: int = 0) -> Iterator[Trial]:
        """Yield the scores on ``x_val (m, d)`` of every head of the default search space, fitted on ``x (n, d)``.

        Distances are computed once for each scaling, and the kernel once for all C. Nothing depends on ``seed``.
        """
        if len(x) > MOST_ROWS:
            for scale, gamma, C in ((*kernel, C) for kernel in _KERNELS for C in _CS):
                head = cls(C=C, gamma=gamma, scale=scale).fit(x, y)
                yield Trial({"scale": scale, "gamma": gamma, "C": C}, head.predict_proba(x_val))
            return
        for scale, group in groupby(_KERNELS, key=itemgetter(0)):
            shared = cls(scale=scale)
            rows, codes = shared._begin(x, y)
            train, val = shared._fit_scale(rows), shared._scaled(shared._rows(x_val))
            within, across = _squared_distances(train, train), _squared_distances(val, train)
            for _, gamma in group:
                width = shared.gamma_ if gamma == "scale" else float(gamma)
                heads = [cls(C=C, gamma=gamma, scale=scale) for C in _CS]
                score = partial(_fit_and_score, codes, _rbf(within, width), _rbf(across, width))
                for C, scores in zip(_CS, in_threads(score, heads), strict=True):
                    yield Trial({"scale": scale, "gamma": gamma, "C": C}, scores)

    def _fit_scale(self, rows: Floats, weights: NDArray[np.float64] | None = None) -> Floats:
        """Learn the scaling and the width of the kernel; return the scaled rows ``(n, d)``."""
        self.centre_, self.spread_ = fit_scale(rows, self.scale, weights)
        scaled = self._scaled(rows)
        if self.gamma != "scale":
            self.gamma_ = float(self.gamma)
        elif self.scale is not None:
            self.gamma_ = 1.0
        else:
            deviations = scaled - np.average(scaled, axis=0, weights=weights)
            total = float(np.average((deviations**2).sum(axis=1), weights=weights))
            self.gamma_ = 1 / total if total > 0 else 1.0
        return scaled

    def _scaled(self, rows: Floats) -> Floats:
        return apply_scale(rows, self.scale, self.centre_, self.spread_)

    def _kernel(self, a: Floats, b: Floats) -> NDArray[np.float64]:
        """Return the kernel values ``(n, m)`` of scaled rows ``(n, d)`` and ``(m, d)``."""
        if self.kernel == "linear":
            return np.asarray(a, np.float64) @ np.asarray(b, np.float64).T
        return _rbf(_squared_distances(a, b), self.gamma_)

    def _solve(self, machine: Any, x: Floats, codes: NDArray[np.intp], weights: Any = None) -> NDArray[np.intp]:
        """Let the machine learn from rows or kernel values; return which rows became support vectors, ``(s,)``."""
        # The usual tolerance of 1e-3 would let the order of the rows, or a repeated row, show in the scores.
        machine.set_params(C=self.C, tol=1e-8, cache_size=1000).fit(x, codes, weights)
        self.n_support_, self.dual_coef_ = machine.n_support_, machine.dual_coef_
        self.intercept_ = machine.intercept_
        support: NDArray[np.intp] = machine.support_
        return support

    def _logits(self, rows: Floats) -> Floats:
        scaled, vectors = self._scaled(rows), self.support_vectors_.astype(np.float64)
        size = max(1, _BLOCK // max(len(vectors), len(self.intercept_)))
        kernels = (self._kernel(scaled[block], vectors) for block in gen_batches(len(scaled), size))
        return np.concatenate([self._values(kernel) for kernel in kernels])

    def _values(self, kernel: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return one value for each class, ``(n, k)``, from kernel values with the support vectors, ``(n, s)``."""
        stops = np.cumsum(self.n_support_)
        spans = [slice(stop - size, stop) for stop, size in zip(stops, self.n_support_, strict=True)]
        # Row j - 1 of the coefficients of class i is for the pair of i and j if i < j, and row j otherwise.
        first, second = np.triu_indices(len(spans), 1)
        with single_threaded_blas():
            parts = np.stack([self.dual_coef_[:, span] @ kernel[:, span].T for span in spans])
            pairs = (parts[first, second - 1] + parts[second, first]).T + self.intercept_
            return _one_vs_rest(pairs, first, second) if len(spans) > 2 else two_columns(pairs).astype(np.float64)


def _own_kernel_machine() -> Any:
    """Return scikit-learn's machine, or where scikit-learn-intelex is installed that one, which uses all cores."""
    return import_module("sklearnex.svm" if find_spec("sklearnex") else "sklearn.svm").SVC()


def _fit_and_score(
    codes: NDArray[np.intp], within: NDArray[np.float64], across: NDArray[np.float64], head: SVMHead
) -> NDArray[np.float64]:
    """Fit a head on the kernel ``within`` training rows ``(n, n)``; return scores by that ``across`` ``(m, n)``."""
    support = head._solve(SVC(kernel="precomputed"), within, codes)
    return softmax(head._values(across[:, support]))


def _squared_distances(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Return ``|a - b|^2`` ``(n, m)`` of rows ``(n, d)`` and ``(m, d)``."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    distances: NDArray[np.float64] = a @ b.T
    distances *= -2
    distances += np.einsum("nd,nd->n", a, a)[:, None]
    distances += np.einsum("md,md->m", b, b)
    return np.maximum(distances, 0, out=distances)


def _rbf(distances: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """Return ``exp(-gamma distances)``, with no more memory than that takes."""
    kernel: NDArray[np.float64] = distances * -gamma
    return np.exp(kernel, out=kernel)


def _one_vs_rest(pairs: NDArray[np.float64], first: Any, second: Any) -> NDArray[np.float64]:
    """Return ``(n, k)`` the pairs that each class wins, plus its summed margins squeezed into -1/3 .. 1/3.

    As scikit-learn's ``SVC(decision_function_shape="ovr")``.

    Args:
        pairs: ``(n, p)`` decision values; those above or at zero are won by the first of the two classes.
        first: ``(p,)`` the first class of each pair.
        second: ``(p,)`` the other one.
    """
    k = second.max() + 1
    sides = np.eye(k)[first] - np.eye(k)[second]
    won = (np.where(pairs < 0, -1.0, 1.0) @ sides + k - 1) / 2
    margins = pairs @ sides
    values: NDArray[np.float64] = won + margins / (3 * (np.abs(margins) + 1))
    return values
