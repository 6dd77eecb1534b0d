"""Heads for images with several labels each: one probability for each label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data

from featkit.heads import HEADS, make_head
from featkit.heads.balance import InapplicableError
from featkit.heads.base import (
    Floats,
    InvalidFeaturesError,
    Trial,
    UnfitDataError,
    fit_in_threads,
    fit_with_groups,
    trials_with_groups,
)
from featkit.registry import Spec

Targets = NDArray[np.uint8]

_SIGMOIDS = ("linear", "mlp")
"""Heads that are stored as one with a sigmoid for each label."""


class MultiLabelHead(BaseEstimator):  # type: ignore[misc]
    """One-vs-rest classifier: a probability for each of k labels, of which an image has any number.

    ``linear``, ``svm`` and heads of plug-ins are fitted for each label alone, on the images with it
    against all others. ``mlp`` has one sigmoid output for each label on a shared hidden layer. The
    score of ``knn`` is the share of the neighbours' votes with the label; neighbours are those of
    ``KNNHead`` on sets of labels, so that they are searched once for all labels.

    Parameters
    ----------
    head : str, default="linear"
        Spec of the head, such as ``svm:C=9``.
    seed : int, default=0
        Seed of the head.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Numbers of the labels: the columns of the targets and of the scores.
    n_features_in_ : int
        Dimension d of the features.
    heads_ : list of estimators
        A single one for ``linear``, ``mlp`` and ``knn``, else one for each label.
    label_sets_ : ndarray of shape (s, k)
        The sets of labels, zeros and ones, that are the classes of ``knn``; empty for other heads.
    warnings_ : tuple of str
        Warnings of the fitted heads.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "head": [str],
        "seed": [Interval(Integral, 0, 2**32 - 1, closed="both")],
    }

    def __init__(self, *, head: str = "linear", seed: int = 0) -> None:
        self.head = head
        self.seed = seed

    # Read by scikit-learn's metadata routing: groups are passed on to ``fit`` unless refused.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"groups": True}

    def fit(self, X: Any, y: Any, groups: Any = None) -> MultiLabelHead:
        """Fit on features ``(n, d)`` with targets ``(n, k)``, zeros and ones.

        Args:
            X: features.
            y: targets.
            groups: ``(n,)`` group of each sample, such as its patient, for heads whose ``fit``
                accepts groups; None for independent samples.

        Raises:
            SpecError: if the head or one of its options is unknown.
            UnfitDataError: if the head cannot give several labels, or all images have a label or
                none has it.
        """
        self._validate_params()
        check_multilabel(self.head)
        x = validate_data(self, X, dtype=(np.float64, np.float32))
        targets = _checked_targets(y, len(x))
        self.classes_ = np.arange(targets.shape[1])
        self.label_sets_ = np.zeros((0, targets.shape[1]), np.uint8)
        name = Spec.parse(self.head).name
        if name == "knn":
            self.label_sets_, codes = _label_sets(targets)
            self.heads_ = [make_head(self.head, seed=self.seed).fit(x, codes)]
        elif name == "mlp":
            self.heads_ = [self._fit_mlp(x, targets)]
        else:
            fit_label = partial(self._fit_binary, x, groups)
            fitted = list(fit_in_threads(fit_label, list(targets.T)))
            self.warnings_ = _shared_warnings(fitted)
            self.heads_ = [_stacked(fitted)] if name == "linear" else fitted
            return self
        self.warnings_ = tuple(getattr(self.heads_[0], "warnings_", ()))
        return self

    def _fit_binary(self, x: Floats, groups: Any, target: Targets) -> Any:
        head = make_head(self.head, seed=self.seed)
        return fit_with_groups(head, x, target.astype(np.int64), groups)

    def _fit_mlp(self, x: Floats, targets: Targets) -> Any:
        head = make_head(self.head, seed=self.seed)
        head._check_training_data(x, _label_sets(targets)[1])
        head.fit_network(x, targets)
        head.classes_ = self.classes_
        return head

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each label, ``(n, k)``; rows do not sum to 1.

        Raises:
            InvalidFeaturesError: if features are not finite, or of another dimension.
        """
        check_is_fitted(self)
        try:
            x = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        except ValueError as error:
            raise InvalidFeaturesError(" ".join(str(error).split())) from error
        name = Spec.parse(self.head).name
        if name in _SIGMOIDS:
            return np.asarray(expit(self.heads_[0]._logits(x).astype(np.float64)), np.float64)
        if name == "knn":
            shares = self.heads_[0].predict_proba(x) @ self.label_sets_
            # The sum of shares may be rounded to more than 1.
            return np.asarray(np.minimum(shares, 1.0), np.float64)
        return np.column_stack([head.predict_proba(x)[:, 1] for head in self.heads_])

    def predict(self, X: Any) -> Targets:
        """Return the labels with a probability of 0.5 or more, ``(n, k)`` zeros and ones."""
        return (self.predict_proba(X) >= 0.5).astype(np.uint8)


def check_multilabel(head: str) -> None:
    """Check that a head can give an image several labels.

    Raises:
        InapplicableError: if it cannot.
        SpecError: if it is unknown.
    """
    name = Spec.parse(head).name
    HEADS.get(name)
    if name == "prototypical":
        raise InapplicableError(
            "prototypical assigns an image to the nearest of the class prototypes and cannot give "
            "it several labels: use linear, svm, knn or mlp"
        )


def multilabel_trials(
    name: str,
    x: Floats,
    targets: Targets,
    x_val: Floats,
    seed: int = 0,
    *,
    groups: NDArray[Any] | None = None,
) -> Iterator[Trial]:
    """Yield the scores ``(m, k)`` of all candidates of a head in its search space.

    All labels of a candidate have the same hyperparameters. A head without ``trials``, such as that
    of a plug-in, has its defaults as the only candidate.

    Args:
        name: as in ``HEADS``.
        x: training features ``(n, d)``.
        targets: training targets ``(n, k)``.
        x_val: validation features ``(m, d)``.
        seed: for heads that have a ``seed`` parameter.
        groups: ``(n,)`` group of each training sample, for heads that accept groups.
    """
    head: Any = HEADS.get(name)
    if "trials" not in vars(head):
        fitted = MultiLabelHead(head=name, seed=seed).fit(x, targets, groups)
        yield Trial({}, fitted.predict_proba(x_val))
    elif name == "knn":
        sets, codes = _label_sets(targets)
        for options, scores in head.trials(x, codes, x_val, seed):
            yield Trial(options, np.minimum(scores @ sets, 1.0))
    elif name == "mlp":
        from featkit.heads.mlp import SEARCH_SPACE

        for options in SEARCH_SPACE:
            spec = str(replace(Spec.parse(name), options=options))
            scores = MultiLabelHead(head=spec, seed=seed).fit(x, targets).predict_proba(x_val)
            yield Trial(options, scores)
    else:
        by_label = [
            trials_with_groups(head, x, target.astype(np.int64), x_val, seed=seed, groups=groups)
            for target in targets.T
        ]
        for trials in zip(*by_label, strict=True):
            scores = np.column_stack([trial.scores[:, 1] for trial in trials])
            yield Trial(trials[0].options, scores)


def _checked_targets(y: Any, n: int) -> Targets:
    targets = np.asarray(y)
    if targets.ndim != 2 or len(targets) != n or not np.isin(targets, (0, 1)).all():
        raise UnfitDataError(
            f"targets of shape {targets.shape} for {n} images: give zeros and ones, (n, labels)"
        )
    counts = targets.sum(axis=0)
    constant = np.flatnonzero((counts == 0) | (counts == n))
    if len(constant):
        column = int(constant[0])
        having = "none" if counts[column] == 0 else "all"
        raise UnfitDataError(
            f"{having} of {n} training images have label {column}: a label needs images with it "
            "and images without it"
        )
    return targets.astype(np.uint8)


def _label_sets(targets: Targets) -> tuple[Targets, NDArray[np.int64]]:
    """Return the different rows ``(s, k)`` of targets, and the number of that of each image."""
    sets, codes = np.unique(targets, axis=0, return_inverse=True)
    return sets, codes.reshape(-1).astype(np.int64)


def _stacked(heads: list[Any]) -> Any:
    """Return binary linear heads as one with a row of weights for each label."""
    stacked = heads[0]
    stacked.coef_ = np.concatenate([head.coef_ for head in heads])
    stacked.intercept_ = np.concatenate([head.intercept_ for head in heads])
    stacked.n_iter_ = max(head.n_iter_ for head in heads)
    stacked.classes_ = np.arange(len(heads))
    stacked.warnings_ = ()
    return stacked


def _shared_warnings(heads: list[Any]) -> tuple[str, ...]:
    """Return the different warnings of the heads of all labels, each with a number of labels."""
    counts: dict[str, int] = {}
    for head in heads:
        for warning in getattr(head, "warnings_", ()):
            counts[warning] = counts.get(warning, 0) + 1
    return tuple(f"{text} ({count} of {len(heads)} labels)" for text, count in counts.items())
