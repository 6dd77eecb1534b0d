"""A search among the options of a head, or of a correction, by scores on validation rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featkit.errors import HeadError
from featkit.heads import HEADS, make_head
from featkit.heads.balance import BalancedHead
from featkit.heads.base import Floats, Trial

_LEAST = np.finfo(np.float64).eps


class Tried(NamedTuple):
    """The options of one head and how it did on the validation rows.

    That is top-1, mean negative log-likelihood (nats), and balanced accuracy.
    """

    options: dict[str, Any]
    top1: float
    nll: float
    balanced_accuracy: float


@dataclass(frozen=True)
class Search:
    """What a search tried.

    Attributes:
        tried: every option set, in the order tried.
        best: place in ``tried`` of the highest top-1, or balanced accuracy where a correction was searched; of several
            the one with the lowest negative log-likelihood, and of several of these the first.
        scores: those of the best on the validation rows ``(m, k)``; columns are the sorted labels of training.
    """

    tried: tuple[Tried, ...]
    best: int
    scores: NDArray[np.float64] = field(compare=False, repr=False)


def search(
    head_name: str,
    x: Floats,
    y: NDArray[Any],
    x_val: Floats,
    y_val: NDArray[Any],
    *,
    seed: int = 0,
    progress: Callable[[Tried], None] | None = None,
) -> Search:
    """Fit a head with every option set of its default search space, and judge each by rows it was not fitted on.

    A head whose class defines no ``trials``, as a plug-in may, is tried with its defaults. In the likelihood
    no score is lower than 2.2e-16: that no neighbour votes for the true class is very wrong, but not infinitely.

    Args:
        head_name: as in ``HEADS``.
        x: training rows ``(n, d)``.
        y: their labels ``(n,)``.
        x_val: validation rows ``(m, d)``.
        y_val: their labels ``(m,)``; rows of a label that is not in ``y`` count as missed.
        seed: for heads that have one.
        progress: called after each trial.

    Raises:
        SpecError: if there is no such head.
        HeadError: if there are no validation rows, or the head cannot be fitted.
    """
    _refuse_none(y_val, head_name)
    return _best(_trials(head_name, x, y, x_val, seed), "top1", np.unique(y), y_val, progress)


def search_correction(
    head: BalancedHead,
    x: Floats,
    y: NDArray[Any],
    x_val: Floats,
    y_val: NDArray[Any],
    *,
    progress: Callable[[Tried], None] | None = None,
) -> Search:
    """Try what a correction leaves open, and judge each by balanced accuracy on rows it was not fitted on.

    Args:
        head: the head with its correction.
        x: training rows ``(n, d)``.
        y: their labels ``(n,)``.
        x_val: validation rows ``(m, d)``.
        y_val: their labels ``(m,)``.
        progress: called after each trial.

    Raises:
        SpecError: if there is no such head or correction.
        HeadError: if there are no validation rows, or the correction does not apply to the head.
    """
    _refuse_none(y_val, head.correction)
    return _best(head.trials(x, y, x_val), "balanced_accuracy", np.unique(y), y_val, progress)


def _refuse_none(y_val: NDArray[Any], what: str) -> None:
    if len(y_val) == 0:
        raise HeadError(f"a search among the options of {what} needs validation images, but got none: hold some out")


def _best(
    trials: Iterable[Trial],
    by: str,
    classes: NDArray[Any],
    y_val: NDArray[Any],
    progress: Callable[[Tried], None] | None,
) -> Search:
    """Judge every trial, and keep the scores of the one that is highest in the field ``by`` of ``Tried``."""
    tried: list[Tried] = []
    best, best_scores = -1, np.empty((0, 0))
    for options, scores in trials:
        tried.append(Tried(options, *_judge(scores, classes, y_val)))
        if best < 0 or (-getattr(tried[-1], by), tried[-1].nll) < (-getattr(tried[best], by), tried[best].nll):
            best, best_scores = len(tried) - 1, scores
        if progress:
            progress(tried[-1])
    return Search(tuple(tried), best, best_scores)


def _trials(head_name: str, x: Floats, y: NDArray[Any], x_val: Floats, seed: int) -> Iterator[Trial]:
    head: Any = HEADS.get(head_name)
    if "trials" in vars(head):  # not if inherited: the options of a plug-in may be others than those of its base
        yield from head.trials(x, y, x_val, seed)
    else:
        yield Trial({}, make_head(head_name, seed=seed).fit(x, y).predict_proba(x_val))


def _judge(scores: NDArray[np.float64], classes: NDArray[Any], y_val: NDArray[Any]) -> tuple[float, float, float]:
    """Return what ``Tried`` has beside the options, of scores ``(m, k)`` whose columns are the sorted ``classes``."""
    own = np.searchsorted(classes, y_val).clip(max=len(classes) - 1)
    known = classes[own] == y_val
    right = known & (scores.argmax(axis=1) == own)
    recalls = [right[y_val == label].mean() for label in np.unique(y_val)]
    likelihood = np.where(known, scores[np.arange(len(own)), own], 0)
    nll = -np.log(np.maximum(likelihood, _LEAST)).mean()
    return float(right.mean()), float(nll), float(np.mean(recalls))
