"""Support vector machine with an RBF or a linear kernel."""

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
    binary_to_two_columns,
    fit_in_threads,
    logits_to_scores,
    single_threaded_blas,
)
from featkit.heads.scaling import SCALES, apply_scale, fit_scale

MAX_KERNEL_ROWS = 16_384
"""Training rows up to which the complete kernel matrix is precomputed in ``fit``: 2 GiB."""

BLOCK_VALUES = 2**22
"""Kernel values per block of rows in prediction: 32 MiB."""

SEARCH_CS = (1.0, 3.0, 10.0)
SEARCH_GAMMAS: tuple[str | float, ...] = ("scale", 0.3)
SEARCH_KERNELS: tuple[tuple[str | None, str | float], ...] = (
    *product(("root", "l2", "standard"), SEARCH_GAMMAS),
    (None, "scale"),
)
"""Combinations of scale and gamma: without scaling, the meaning of a number for gamma depends on
the unit of the features."""


class SVMHead(LogitHead):
    """Support vector machine with an RBF or a linear kernel.

    Features are scaled as by ``LinearHead``. One binary machine is trained for each pair of classes
    (libsvm); the one-vs-rest decision value of a class is the number of pairs that it wins, with
    ties broken by the margins. The scores are the softmax of these values: they rank the classes,
    but are not calibrated probabilities. The defaults were chosen as those of ``LinearHead``.

    Kernel values are computed as matrix products: all of them before fitting, for up to 16,384
    rows, and in blocks of rows for prediction. With more rows the solver evaluates the kernel
    itself; scikit-learn-intelex is used there if it is installed.

    Parameters
    ----------
    C : float, default=3.0
        Inverse regularization strength.
    kernel : {"rbf", "linear"}, default="rbf"
        ``exp(-gamma |x - x'|^2)`` or ``x . x'``.
    gamma : "scale" or float, default="scale"
        Coefficient of the RBF kernel; "scale" is one over the total variance of the scaled
        features, which is 1 unless ``scale`` is None.
    scale : {"root", "l2", "standard"} or None, default="root"
        As in ``LinearHead``.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Sorted training labels; the columns of the scores.
    support_vectors_ : ndarray of shape (s, d)
        Scaled support vectors, class by class.
    n_support_ : ndarray of shape (k,)
        Number of support vectors of each class.
    dual_coef_, intercept_ : ndarray of shape (k - 1, s), (k * (k - 1) / 2,)
        Coefficients and intercepts of the pairwise machines, in the order of libsvm.
    gamma_ : float
        Coefficient of the RBF kernel.
    centre_, spread_ : ndarray of shape (d,)
        Parameters of the scaling.
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
        "scale": [StrOptions({each for each in SCALES if each}), None],
    }

    def __init__(
        self,
        *,
        C: float = 3.0,
        kernel: str = "rbf",
        gamma: str | float = "scale",
        scale: str | None = "root",
    ) -> None:
        self.C = C
        self.kernel = kernel
        self.gamma = gamma
        self.scale = scale

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SVMHead:
        """Fit on features ``(n, d)`` with labels ``(n,)`` and sample weights ``(n,)``.

        Raises:
            UnfitDataError: if all samples of a class have weight zero.
        """
        x, codes = self._check_training_data(X, y)
        weights = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
        # libsvm ignores samples of weight zero too, but then renumbers the remaining ones, which
        # would make its indices of support vectors wrong here.
        positive = weights > 0
        x, codes, weights = x[positive], codes[positive], weights[positive]
        if missing := set(range(len(self.classes_))) - set(codes.tolist()):
            label = self.classes_[min(missing)]
            raise UnfitDataError(f"all images of class {label} have sample weight zero")
        scaled = self._fit_scale(x, weights)
        if len(x) <= MAX_KERNEL_ROWS:
            kernel = self._kernel(scaled, scaled)
            support = self._fit_machine(SVC(kernel="precomputed"), kernel, codes, weights)
        else:
            # scikit-learn-intelex uses all cores, but does not speed up a precomputed kernel.
            package = "sklearnex.svm" if find_spec("sklearnex") else "sklearn.svm"
            machine = import_module(package).SVC(kernel=self.kernel, gamma=self.gamma_)
            support = self._fit_machine(machine, np.asarray(scaled, np.float64), codes, weights)
        self.support_vectors_ = scaled[support]
        return self

    @classmethod
    def trials(cls, x: Floats, y: NDArray[Any], x_val: Floats, seed: int = 0) -> Iterator[Trial]:
        """Yield the scores on ``x_val (m, d)`` of all candidates fitted on ``x (n, d)``, ``y``.

        Distances are computed once for each scaling, and the kernel once for all C. ``seed`` is
        unused.
        """
        if len(x) > MAX_KERNEL_ROWS:
            for (scale, gamma), C in product(SEARCH_KERNELS, SEARCH_CS):
                head = cls(C=C, gamma=gamma, scale=scale).fit(x, y)
                yield Trial({"scale": scale, "gamma": gamma, "C": C}, head.predict_proba(x_val))
            return
        for scale, group in groupby(SEARCH_KERNELS, key=itemgetter(0)):
            shared = cls(scale=scale)
            checked, codes = shared._check_training_data(x, y)
            train = shared._fit_scale(checked)
            val = shared._scaled(shared._check_features(x_val))
            train_distances = _squared_distances(train, train)
            val_distances = _squared_distances(val, train)
            for _, gamma in group:
                number = shared.gamma_ if gamma == "scale" else float(gamma)
                train_kernel = _rbf(train_distances, number)
                val_kernel = _rbf(val_distances, number)
                score = partial(_fit_and_score, codes, train_kernel, val_kernel)
                heads = [cls(C=C, gamma=gamma, scale=scale) for C in SEARCH_CS]
                for C, scores in zip(SEARCH_CS, fit_in_threads(score, heads), strict=True):
                    yield Trial({"scale": scale, "gamma": gamma, "C": C}, scores)

    def _fit_scale(self, x: Floats, weights: NDArray[np.float64] | None = None) -> Floats:
        """Fit the scaling and set ``gamma_``; return the scaled features ``(n, d)``."""
        self.centre_, self.spread_ = fit_scale(x, self.scale, weights)
        scaled = self._scaled(x)
        if self.gamma != "scale":
            self.gamma_ = float(self.gamma)
        elif self.scale is not None:
            self.gamma_ = 1.0  # one over the total variance, which the scaling made 1
        else:
            deviations = scaled - np.average(scaled, axis=0, weights=weights)
            total = float(np.average((deviations**2).sum(axis=1), weights=weights))
            self.gamma_ = 1 / total if total > 0 else 1.0
        return scaled

    def _scaled(self, x: Floats) -> Floats:
        return apply_scale(x, self.scale, self.centre_, self.spread_)

    def _kernel(self, a: Floats, b: Floats) -> NDArray[np.float64]:
        """Return the kernel values ``(n, m)`` of scaled features ``(n, d)`` and ``(m, d)``."""
        if self.kernel == "linear":
            return np.asarray(a, np.float64) @ np.asarray(b, np.float64).T
        return _rbf(_squared_distances(a, b), self.gamma_)

    def _fit_machine(
        self, machine: Any, x: Floats, codes: NDArray[np.intp], weights: Any = None
    ) -> NDArray[np.intp]:
        """Fit a ``SVC`` on features or kernel values; return its support indices ``(s,)``."""
        # With the usual tolerance of 1e-3, the scores would depend on the order of the samples.
        machine.set_params(C=self.C, tol=1e-8, cache_size=1000).fit(x, codes, weights)
        self.n_support_, self.dual_coef_ = machine.n_support_, machine.dual_coef_
        self.intercept_ = machine.intercept_
        support: NDArray[np.intp] = machine.support_
        return support

    def _logits(self, x: Floats) -> Floats:
        scaled, vectors = self._scaled(x), self.support_vectors_.astype(np.float64)
        block_rows = max(1, BLOCK_VALUES // max(len(vectors), len(self.intercept_)))
        logits = []
        for block in gen_batches(len(scaled), block_rows):
            logits.append(self._kernel_logits(self._kernel(scaled[block], vectors)))
        return np.concatenate(logits)

    def _kernel_logits(self, kernel: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the logits ``(n, k)`` for kernel values with the support vectors, ``(n, s)``."""
        n_classes = len(self.n_support_)
        stops = np.cumsum(self.n_support_)
        first, second = np.triu_indices(n_classes, 1)
        with single_threaded_blas():
            parts = []
            for size, stop in zip(self.n_support_, stops, strict=True):
                members = slice(stop - size, stop)
                parts.append(self.dual_coef_[:, members] @ kernel[:, members].T)
            by_class = np.stack(parts)  # (k, k - 1, n)
            # Of class i, row j - 1 of the coefficients belongs to the pair (i, j) if i < j, and row
            # j to the pair (j, i) otherwise.
            pairs = (by_class[first, second - 1] + by_class[second, first]).T + self.intercept_
            if n_classes == 2:
                return binary_to_two_columns(pairs).astype(np.float64)
            return _one_vs_rest(pairs, first, second)


def _fit_and_score(
    codes: NDArray[np.intp],
    train_kernel: NDArray[np.float64],
    val_kernel: NDArray[np.float64],
    head: SVMHead,
) -> NDArray[np.float64]:
    """Fit a head on kernel values ``(n, n)``; return scores for those of other rows ``(m, n)``."""
    support = head._fit_machine(SVC(kernel="precomputed"), train_kernel, codes)
    return logits_to_scores(head._kernel_logits(val_kernel[:, support]))


def _squared_distances(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Return ``|a - b|^2`` ``(n, m)`` for rows ``(n, d)`` and ``(m, d)``."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    # In place, as the matrix may take gigabytes.
    distances: NDArray[np.float64] = a @ b.T
    distances *= -2
    distances += np.einsum("nd,nd->n", a, a)[:, None]
    distances += np.einsum("md,md->m", b, b)
    return np.maximum(distances, 0, out=distances)


def _rbf(distances: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """Return ``exp(-gamma distances)``, allocating a single array."""
    kernel: NDArray[np.float64] = distances * -gamma
    return np.exp(kernel, out=kernel)


def _one_vs_rest(pairs: NDArray[np.float64], first: Any, second: Any) -> NDArray[np.float64]:
    """Return one-vs-rest values ``(n, k)`` from pairwise ones.

    The value of a class is the number of pairs won plus its summed margins scaled to -1/3 .. 1/3,
    equal to scikit-learn's ``SVC(decision_function_shape="ovr")``.

    Args:
        pairs: pairwise decision values ``(n, p)``; at zero and above, the first class of the pair
            wins.
        first: first class of each pair ``(p,)``.
        second: second class of each pair ``(p,)``.
    """
    k = second.max() + 1
    signs = np.eye(k)[first] - np.eye(k)[second]
    won = (np.where(pairs < 0, -1.0, 1.0) @ signs + k - 1) / 2
    margins = pairs @ signs
    values: NDArray[np.float64] = won + margins / (3 * (np.abs(margins) + 1))
    return values
