"""A head combined with a correction of class imbalance."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields
from itertools import product
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import has_fit_parameter

from featkit.errors import HeadError
from featkit.heads import CORRECTIONS, make_head, parse_correction
from featkit.heads.base import Floats, Head, Trial, checked_groups
from featkit.heads.corrections import Correction
from featkit.registry import Spec


class InapplicableError(HeadError):
    """A correction, or a kind of labels, that the head does not support."""


class BalancedHead(Head):
    """A head with a correction of class imbalance.

    Parameters
    ----------
    head : str, default="linear"
        Spec of the head, such as ``svm:C=9``.
    correction : str, default="none"
        Spec of the correction, such as ``logit_adjust:tau=1.5``; one of ``CORRECTIONS``. Hyphens
        and underscores are equivalent; ``crt`` is an alias of ``class_aware``.
    seed : int, default=0
        Seed of re-sampling and of the head.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Sorted training labels; the columns of the scores.
    head_ : estimator
        The fitted and corrected head.
    warnings_ : tuple of str
        Warnings of the fitted head.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "head": [str],
        "correction": [str],
        "seed": [Interval(Integral, 0, 2**32 - 1, closed="both")],
    }

    def __init__(self, *, head: str = "linear", correction: str = "none", seed: int = 0) -> None:
        self.head = head
        self.correction = correction
        self.seed = seed

    # Read by scikit-learn's metadata routing: groups are passed on to ``fit`` unless refused.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"groups": True}

    def fit(self, X: Any, y: Any, groups: Any = None) -> BalancedHead:
        """Fit on features ``(n, d)`` with labels ``(n,)``.

        Args:
            X: features.
            y: labels.
            groups: ``(n,)`` group of each sample, such as its patient, for heads whose ``fit``
                accepts groups; None for independent samples.

        Raises:
            SpecError: if the head, the correction or one of their options is unknown.
            InapplicableError: if the head does not support the correction.
        """
        x, codes = self._check_training_data(X, y)
        correction = _make_correction(parse_correction(self.correction))
        head = make_head(self.head, seed=self.seed)
        labels = self.classes_[codes]
        if groups is None:
            self.head_ = correction.fit(head, x, labels, self.seed)
        else:
            groups = checked_groups(groups, len(x))
            trained = correction.train_with_groups(head, x, labels, self.seed, groups)
            self.head_ = correction.adjust(trained, x, labels)
        self.warnings_ = tuple(getattr(self.head_, "warnings_", ()))
        if groups is not None and has_fit_parameter(head, "groups"):
            self.warnings_ += _ignored_groups(correction, self.head, self.correction)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class scores ``(n, k)``, columns as in ``classes_``; each row sums to 1."""
        x = self._check_features(X)
        return np.asarray(self.head_.predict_proba(x), np.float64)

    def trials(
        self, x: Floats, y: NDArray[Any], x_val: Floats, groups: Any = None
    ) -> Iterator[Trial]:
        """Yield the scores on ``x_val (m, d)`` for all values of the correction's unset options.

        A head that is only adjusted after training is trained once, on ``x (n, d)`` with labels
        ``y (n,)`` and ``groups`` as in ``fit``.
        """
        self._validate_params()
        trained = None
        for spec in _search_specs(parse_correction(self.correction)):
            correction = _make_correction(spec)
            training_differs = type(correction).train is not Correction.train
            if trained is None or training_differs:
                head = make_head(self.head, seed=self.seed)
                trained = correction.train_with_groups(head, x, y, self.seed, groups)
            fitted = correction.adjust(deepcopy(trained), x, y)
            options = {"head": self.head, "correction": str(spec)}
            yield Trial(options, fitted.predict_proba(x_val))

    def _validate_params(self) -> None:
        super()._validate_params()
        check_correction(self.head, self.correction)


def _ignored_groups(correction: Correction, head: str, name: str) -> tuple[str, ...]:
    """Return a warning on a correction of a plug-in that does not know groups."""
    if correction.takes_groups():
        return ()
    return (
        f"correction {name} does not pass groups on: the folds in which {head} is calibrated may "
        "separate images of a group, so that its probabilities may be too high",
    )


def check_correction(head: str, correction: str) -> None:
    """Check that a head supports a correction, both given as specs.

    Raises:
        SpecError: if the head, the correction or one of their options is unknown.
        InapplicableError: if the head does not support the correction.
    """
    made = _make_correction(parse_correction(correction))
    if not made.applies(make_head(head)):
        raise InapplicableError(
            f"correction {correction} does not apply to head {head}: "
            f"it supports {made.supported_heads}"
        )


def count_candidates(correction: str) -> int:
    """Return the number of values that tuning tries for the unset options of a correction.

    Raises:
        SpecError: if the correction or one of its options is unknown.
    """
    return sum(1 for _ in _search_specs(parse_correction(correction)))


def _make_correction(spec: Spec) -> Correction:
    correction: Correction = CORRECTIONS.make(spec)
    return correction


def _search_specs(spec: Spec) -> Iterator[Spec]:
    """Yield the spec with every combination of search values for its unset options."""
    names, values = [], []
    for option in fields(_make_correction(spec)):
        if option.name not in spec.options and "search_values" in option.metadata:
            names.append(option.name)
            values.append(option.metadata["search_values"])
    for combination in product(*values):
        chosen = dict(zip(names, combination, strict=True))
        yield Spec(spec.name, None, {**spec.options, **chosen})
