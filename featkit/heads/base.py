"""What the heads share: checked input, labels as positions, predictions as the best score."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from featkit.errors import HeadError

Floats = NDArray[np.floating[Any]]
Item = TypeVar("Item")
Result = TypeVar("Result")


class UnfitDataError(HeadError, ValueError):
    """Training data on which a head cannot be fitted; a ValueError too, as scikit-learn's callers expect."""


class Trial(NamedTuple):
    """One try of a search: the options of a head, and its scores ``(n, k)`` on validation rows."""

    options: dict[str, Any]
    scores: NDArray[np.float64]


class Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier on vectors whose prediction is the class of the highest score.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Labels seen in ``fit``, sorted; the columns of the scores. They need not be 0..k-1.
    n_features_in_ : int
        Length d of a vector.
    warnings_ : tuple of str
        What a reader of the results must know, such as that the solver did not converge.
    """

    def _begin(self, X: Any, y: Any) -> tuple[Floats, NDArray[np.intp]]:
        """Check everything that ``fit`` is given; return rows ``(n, d)`` and positions in ``classes_`` ``(n,)``.

        Raises:
            ValueError: for a wrong parameter, rows that are not finite or do not match ``y``.
            UnfitDataError: for fewer than two classes.
        """
        self._validate_params()
        x, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        with warnings.catch_warnings():
            # Few images of many classes are what few-shot heads are for.
            warnings.filterwarnings("ignore", "The number of unique classes is greater", UserWarning)
            check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.warnings_: tuple[str, ...] = ()
        if len(self.classes_) < 2:
            raise UnfitDataError(f"{type(self).__name__} needs images of two classes or more, but y holds 1 class")
        return x, codes

    def _rows(self, X: Any) -> Floats:
        """Check the vectors that ``predict`` is given; return them as floats ``(n, d)``."""
        check_is_fitted(self)
        rows: Floats = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return rows

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the scores ``(n, k)``: columns as in ``classes_``, rows that sum to 1."""
        raise NotImplementedError

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the label of the highest score, ``(n,)``; the first in ``classes_`` among equals."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels


class LogitHead(Head):
    """A head with one value for each class, of which the scores are the soft-max."""

    def _logits(self, rows: Floats) -> Floats:
        """Return one value for each row and class, ``(n, k)``."""
        raise NotImplementedError

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return one value for each class, ``(n, k)``; for two classes that of the second over the first, ``(n,)``."""
        logits = self._logits(self._rows(X)).astype(np.float64)
        return logits if logits.shape[1] > 2 else logits[:, 1] - logits[:, 0]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the scores ``(n, k)``: columns as in ``classes_``, rows that sum to 1."""
        return softmax(self._logits(self._rows(X)))


def single_threaded_blas() -> threadpool_limits:
    """Return a context in which a matrix product uses one core.

    The products of a solver's step are small: on a machine that does anything else, threads that wait for each other
    make it four to ten times slower. The numbers then do not depend on the number of cores either.
    """
    return threadpool_limits(1, user_api="blas")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in order, as many at a time as there are cores, each on one core.

    ``LOKY_MAX_CPU_COUNT``, which scikit-learn follows too, says how many of the cores are there to be used.

    For work that NumPy or libsvm does outside Python's lock. Solvers that stop early do not warn.
    """
    cores = int(os.environ.get("LOKY_MAX_CPU_COUNT") or os.cpu_count() or 1)
    # Filters of warnings and limits of BLAS belong to the process: two threads that set and restore their own would
    # undo each other's. What is set here is what they restore.
    with single_threaded_blas(), warnings.catch_warnings(), ThreadPoolExecutor(cores) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield from pool.map(function, items)


def softmax(logits: Floats) -> NDArray[np.float64]:
    """Return ``exp(logits)`` ``(n, k)``, each row divided by its sum, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scores: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return scores


def two_columns(logits: Floats) -> Floats:
    """Return logits ``(n, k)``; a single column or vector, of the second of two classes, gets zeros before it."""
    if logits.ndim == 2 and logits.shape[1] > 1:
        return logits
    return np.column_stack([np.zeros(len(logits), logits.dtype), logits])
