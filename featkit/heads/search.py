"""Hyperparameter search for a head, or for a correction of class imbalance, on validation data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featkit.errors import HeadError
from featkit.heads import HEADS, make_head
from featkit.heads.balance import BalancedHead
from featkit.heads.base import Floats, Trial, fit_with_groups, trials_with_groups
from featkit.registry import Spec

MIN_PROBABILITY = np.finfo(np.float64).eps
"""Lower bound of probabilities in the log-likelihood: a class without a neighbour scores 0."""


class Candidate(NamedTuple):
    """The hyperparameters of one head and its validation metrics.

    Attributes:
        options: hyperparameters that differ from the defaults.
        top1: top-1 accuracy.
        nll: mean negative log-likelihood, in nats.
        balanced_accuracy: mean recall over the classes.
    """

    options: dict[str, Any]
    top1: float
    nll: float
    balanced_accuracy: float


@dataclass(frozen=True)
class SearchResult:
    """All candidates of a search, with the validation scores of the best one.

    Attributes:
        candidates: in the order in which they were evaluated.
        best_index: position in ``candidates`` of the highest top-1 accuracy, or of the highest
            balanced accuracy if a correction was searched. Ties are broken by the negative
            log-likelihood, then by the order.
        scores: validation scores of the best candidate, ``(m, k)``; columns are the sorted training
            labels.
        metric: name of the field of ``Candidate`` that the best one was selected by.
    """

    candidates: tuple[Candidate, ...]
    best_index: int
    scores: NDArray[np.float64] = field(compare=False, repr=False)
    metric: str = "top1"

    @property
    def best(self) -> Candidate:
        """Return the selected candidate."""
        return self.candidates[self.best_index]

    @property
    def metric_name(self) -> str:
        """Return the metric that candidates were compared by, in words."""
        return "top-1" if self.metric == "top1" else self.metric.replace("_", " ")

    def score(self, candidate: Candidate) -> float:
        """Return the validation metric of a candidate that candidates were compared by."""
        value: float = getattr(candidate, self.metric)
        return value


def search(
    head_name: str,
    x: Floats,
    y: NDArray[Any],
    x_val: Floats,
    y_val: NDArray[Any],
    *,
    seed: int = 0,
    groups: NDArray[Any] | None = None,
    progress: Callable[[Candidate], None] | None = None,
) -> SearchResult:
    """Search the hyperparameters of a head, selecting by top-1 accuracy on the validation set.

    All candidates of the default search space of the head are fitted.
    A head whose own class does not define ``trials``, such as a plug-in, is evaluated with its
    defaults only.

    Args:
        head_name: as in ``HEADS``.
        x: training features ``(n, d)``.
        y: training labels ``(n,)``.
        x_val: validation features ``(m, d)``.
        y_val: validation labels ``(m,)``; samples of a label that is not in ``y`` count as errors.
        seed: for heads that have a ``seed`` parameter.
        groups: ``(n,)`` group of each training sample, for heads whose ``fit`` accepts groups.
        progress: called after each candidate.

    Raises:
        SpecError: if there is no such head.
        HeadError: if there are no validation samples, or the head cannot be fitted.
    """
    _require_validation_data(y_val, head_name)
    trials = _head_trials(head_name, x, y, x_val, seed=seed, groups=groups)
    found = _select(trials, "top1", np.unique(y), y_val, progress)
    if not getattr(HEADS.get(head_name), "SCORES_OF_TRIALS_DIFFER", False):
        return found
    # The temperature is fitted on these scores: they must be those of a fitted head.
    best = make_head(Spec(head_name, None, found.best.options), seed=seed)
    fitted = fit_with_groups(best, x, y, groups)
    return replace(found, scores=fitted.predict_proba(x_val))


def search_correction(
    head: BalancedHead,
    x: Floats,
    y: NDArray[Any],
    x_val: Floats,
    y_val: NDArray[Any],
    *,
    groups: NDArray[Any] | None = None,
    progress: Callable[[Candidate], None] | None = None,
) -> SearchResult:
    """Search the unset options of a correction and select the best by balanced validation accuracy.

    Args:
        head: the head with its correction.
        x: training features ``(n, d)``.
        y: training labels ``(n,)``.
        x_val: validation features ``(m, d)``.
        y_val: validation labels ``(m,)``.
        groups: ``(n,)`` group of each training sample, for heads whose ``fit`` accepts groups.
        progress: called after each candidate.

    Raises:
        SpecError: if there is no such head or correction.
        HeadError: if there are no validation samples, or the correction does not apply to the head.
    """
    _require_validation_data(y_val, head.correction)
    trials = head.trials(x, y, x_val, groups)
    return _select(trials, "balanced_accuracy", np.unique(y), y_val, progress)


def _require_validation_data(y_val: NDArray[Any], name: str) -> None:
    if len(y_val) == 0:
        raise HeadError(
            f"tuning {name} needs validation images, but there are none: "
            "choose a split with a val part"
        )


def _head_trials(
    head_name: str,
    x: Floats,
    y: NDArray[Any],
    x_val: Floats,
    *,
    seed: int,
    groups: NDArray[Any] | None,
) -> Iterator[Trial]:
    head: Any = HEADS.get(head_name)
    # An inherited ``trials`` does not count: a plug-in that extends a built-in head may have other
    # options.
    if "trials" in vars(head):
        yield from trials_with_groups(head, x, y, x_val, seed=seed, groups=groups)
    else:
        fitted = fit_with_groups(make_head(head_name, seed=seed), x, y, groups)
        yield Trial({}, fitted.predict_proba(x_val))


def _select(
    trials: Iterable[Trial],
    metric: str,
    classes: NDArray[Any],
    y_val: NDArray[Any],
    progress: Callable[[Candidate], None] | None,
) -> SearchResult:
    """Evaluate all trials and select the best by ``metric``, a field of ``Candidate``."""
    candidates: list[Candidate] = []
    best_index, best_rank, best_scores = -1, (-np.inf, -np.inf), np.empty((0, 0))
    for options, scores in trials:
        candidate = _evaluate(options, scores, classes, y_val)
        candidates.append(candidate)
        rank = (getattr(candidate, metric), -candidate.nll)
        if best_index < 0 or rank > best_rank:
            best_index, best_rank, best_scores = len(candidates) - 1, rank, scores
        if progress:
            progress(candidate)
    return SearchResult(tuple(candidates), best_index, best_scores, metric)


def _evaluate(
    options: dict[str, Any], scores: NDArray[np.float64], classes: NDArray[Any], y_val: NDArray[Any]
) -> Candidate:
    """Return the validation metrics of scores ``(m, k)``, columns as in the sorted ``classes``."""
    columns = np.searchsorted(classes, y_val).clip(max=len(classes) - 1)
    known = classes[columns] == y_val
    correct = known & (scores.argmax(axis=1) == columns)
    recalls = [correct[y_val == label].mean() for label in np.unique(y_val)]
    likelihood = np.where(known, scores[np.arange(len(columns)), columns], 0)
    # Rounding can make a probability larger than 1, and the negative of a sum of zeros is -0.0.
    nll = max(0.0, -float(np.log(np.maximum(likelihood, MIN_PROBABILITY)).mean()))
    return Candidate(options, float(correct.mean()), nll, float(np.mean(recalls)))
