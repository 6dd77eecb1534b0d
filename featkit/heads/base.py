"""Base classes of the heads, and helpers for threads and binary classification."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    has_fit_parameter,
    validate_data,
)

from featkit.blocks import RowView, all_finite, is_large, row_blocks
from featkit.errors import HeadError
from featkit.parallel import blas_threads, in_threads
from featkit.storage import available_cores

Floats = NDArray[np.floating[Any]]
Item = TypeVar("Item")
Result = TypeVar("Result")


class UnfitDataError(HeadError, ValueError):
    """Training data on which a head cannot be fitted.

    Also a ValueError, which is what scikit-learn's callers expect.
    """


class InvalidFeaturesError(HeadError, ValueError):
    """Features that a head cannot use, such as those of another network.

    Also a ValueError, which is what scikit-learn's callers expect.
    """


class Trial(NamedTuple):
    """Hyperparameters of a head and its class scores ``(m, k)`` on the validation set."""

    options: dict[str, Any]
    scores: NDArray[np.float64]


class Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier on feature vectors that predicts the class with the highest score.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Sorted training labels; the columns of the scores. They need not be 0..k-1.
    n_features_in_ : int
        Dimension d of the features.
    warnings_ : tuple of str
        Warnings for reports, such as a solver that did not converge.
    """

    def _check_training_data(self, X: Any, y: Any) -> tuple[Floats, NDArray[np.intp]]:
        """Validate parameters and training data, and set ``classes_`` and ``warnings_``.

        Returns:
            Features ``(n, d)``, and the position of each label in ``classes_``, ``(n,)``.

        Raises:
            ValueError: for an invalid parameter, features that are not finite, or lengths that
                differ.
            UnfitDataError: for fewer than two classes, or several labels per sample.
        """
        self._validate_params()
        shape = np.asarray(y).shape
        if len(shape) == 2 and shape[1] > 1:
            # The words that imbalanced-learn's checks of classifiers expect.
            raise UnfitDataError(
                f"Multilabel and multioutput targets are not supported. y has shape {shape}: "
                "give one label per row"
            )
        if isinstance(X, RowView) and is_large(X):
            x, y = self._check_view(X, y)
        else:
            # The check of scikit-learn would keep all pages of a memory-mapped array in memory.
            in_blocks = isinstance(X, np.ndarray) and is_large(X) and all_finite(X)
            x, y = validate_data(
                self, X, y, dtype=(np.float64, np.float32), ensure_all_finite=not in_blocks
            )
        with warnings.catch_warnings():
            # Few-shot training sets legitimately have almost as many classes as samples.
            warnings.filterwarnings(
                "ignore", "The number of unique classes is greater", UserWarning
            )
            check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.warnings_: tuple[str, ...] = ()
        if len(self.classes_) < 2:
            raise UnfitDataError(
                f"{type(self).__name__} needs at least two classes, "
                "but the training data has 1 class"
            )
        return x, codes

    def _check_view(self, X: RowView, y: Any) -> tuple[Any, NDArray[Any]]:
        """Do what ``validate_data`` does with features that stay in their file, and are finite."""
        validate_data(self, X[:1], dtype=(np.float64, np.float32))
        check_consistent_length(X, y)
        return X, column_or_1d(y, warn=True)

    def _check_features(self, X: Any) -> Floats:
        """Validate the features ``(n, d)`` given for prediction.

        Raises:
            InvalidFeaturesError: if they are not finite, or of another dimension than in training.
        """
        check_is_fitted(self)
        try:
            x: Floats = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        except ValueError as error:
            raise InvalidFeaturesError(" ".join(str(error).split())) from error
        return x

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class scores ``(n, k)``, columns as in ``classes_``; each row sums to 1."""
        raise NotImplementedError

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the labels ``(n,)`` with the highest scores; the first of equals wins."""
        # The scores come first: predict_proba raises NotFittedError if there are no classes_ yet.
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels


class LogitHead(Head):
    """A head whose scores are the softmax of one logit per class."""

    def _logits(self, x: Floats) -> Floats:
        """Return the logits ``(n, k)`` of validated features ``(n, d)``."""
        raise NotImplementedError

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return the logits ``(n, k)``; for two classes, second minus first, ``(n,)``."""
        logits = self._logits(self._check_features(X)).astype(np.float64)
        return logits if logits.shape[1] > 2 else logits[:, 1] - logits[:, 0]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class scores ``(n, k)``, columns as in ``classes_``; each row sums to 1."""
        return logits_to_scores(self._logits(self._check_features(X)))


def logits_to_scores(logits: Floats) -> NDArray[np.float64]:
    """Return the softmax of logits ``(n, k)``, computed in float64."""
    return np.asarray(softmax(logits.astype(np.float64), axis=1))


def binary_to_two_columns(logits: Floats) -> Floats:
    """Return logits ``(n, k)``; zeros are added before the single column of a binary head."""
    if logits.ndim == 2 and logits.shape[1] > 1:
        return logits
    return np.column_stack([np.zeros(len(logits), logits.dtype), logits])


def checked_weights(sample_weight: Any, x: Floats) -> NDArray[np.float64]:
    """Return valid sample weights ``(n,)`` for a head with a penalty.

    Weights whose mean is below 1, of the samples that have any weight, are scaled to a mean of 1.
    The strength of a penalty is relative to the sum of the weights, and AdaBoost gives weights that
    sum to 1: they would act as a penalty n times as strong. Larger weights keep their meaning, so
    that a sample of weight 2 is the same as two samples.

    Raises:
        ValueError: if a weight is negative or not finite, or their number is not n.
    """
    weights: NDArray[np.float64] = _check_sample_weight(
        sample_weight, x, dtype=np.float64, ensure_non_negative=True
    )
    positive = weights[weights > 0]
    mean = float(positive.mean()) if len(positive) else 1.0
    return weights / mean if mean < 1 - 1e-9 else weights


def fit_with_groups(head: Any, x: Floats, y: NDArray[Any], groups: Any, **options: Any) -> Any:
    """Fit a head, with the groups of its samples if its ``fit`` accepts them.

    Args:
        head: the unfitted head.
        x: training features ``(n, d)``.
        y: labels ``(n,)``.
        groups: ``(n,)`` group of each sample, such as its patient; None for independent samples.
        options: for ``fit``, such as sample weights.

    Returns:
        The fitted head.
    """
    if groups is not None and has_fit_parameter(head, "groups"):
        options["groups"] = groups
    return head.fit(x, y, **options)


def predict_scores(head: Any, x: Any) -> NDArray[np.float64]:
    """Return the scores ``(n, k)`` of features ``(n, d)``; a ``RowView`` is read in blocks."""
    if not isinstance(x, RowView):
        return np.asarray(head.predict_proba(x), np.float64)
    parts = [np.asarray(head.predict_proba(block), np.float64) for _, block in row_blocks(x)]
    return np.concatenate(parts)


def trials_with_groups(
    head: Any, x: Floats, y: NDArray[Any], x_val: Floats, *, seed: int, groups: Any
) -> Iterator[Trial]:
    """Yield the trials of a class of heads, with the groups of its samples if it accepts them.

    Args:
        head: the class.
        x: training features ``(n, d)``.
        y: labels ``(n,)``.
        x_val: validation features ``(m, d)``.
        seed: of the head.
        groups: ``(n,)`` group of each training sample; None for independent samples.
    """
    options = {}
    if groups is not None and "groups" in signature(head.trials).parameters:
        options["groups"] = groups
    found: Iterator[Trial] = head.trials(x, y, x_val, seed, **options)
    return found


def checked_groups(groups: Any, n: int) -> NDArray[Any]:
    """Return the group of each of n samples as an array ``(n,)``.

    Raises:
        UnfitDataError: if there are more or fewer, or one is missing (None or NaN).
    """
    values = np.asarray(groups)
    if values.shape != (n,):
        raise UnfitDataError(
            f"groups of shape {values.shape} for {n} samples: give one group for each sample"
        )
    if values.dtype.kind in "fO":
        # Only NaN differs from itself.
        missing = [row for row, each in enumerate(values.tolist()) if each is None or each != each]
        if missing:
            raise UnfitDataError(
                f"sample {missing[0]} has no group ({len(missing)} of {n} have none): give each "
                "one, a group of its own if it belongs to no other sample"
            )
    return values


def single_threaded_blas() -> AbstractContextManager[object]:
    """Return a context in which BLAS uses one thread.

    The matrix products of a solver step are small: on a busy machine, threads that wait for each
    other make them four to ten times slower. Results also become independent of the number of
    cores.
    """
    return blas_threads(1)


def fit_in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in order, computed in one thread per core.

    For functions that spend their time outside of the interpreter lock, in NumPy or libsvm. The
    number of threads is that of ``available_cores``. Convergence warnings are ignored.
    """
    # Warning filters and BLAS limits are global to the process: threads that set and restore them
    # would interfere with each other. Setting them here first makes the state that they restore
    # the same.
    with single_threaded_blas(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield from in_threads(function, items, threads=available_cores())
