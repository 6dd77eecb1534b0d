"""Compare classifiers with the best one on the same test images."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

from featkit.evaluation.compare import LEVEL, PairedComparison
from featkit.evaluation.effects import CellScores, adjusted, effects

K = TypeVar("K", bound=Hashable)

BEST = "best"
TIED = "not significantly different from the best"
WORSE = "significantly worse than the best"

_AXIS = "compared classifier"


@dataclass(frozen=True)
class Standing:
    """Comparison of a classifier with the best one on the same test images.

    Attributes:
        is_best: whether no other classifier has a higher metric.
        p_holm: p-value of the difference from the best, after Holm correction; None for the best.
        comparisons: number of pairs that ``p_holm`` is corrected for.
    """

    is_best: bool
    p_holm: float | None
    comparisons: int

    @property
    def text(self) -> str:
        """``BEST``, ``TIED`` or ``WORSE``."""
        if self.p_holm is None:
            return BEST
        return WORSE if self.p_holm < LEVEL else TIED

    @property
    def is_tied(self) -> bool:
        """Whether the classifier is not the best, and not significantly worse."""
        return self.text == TIED


def standings(classifiers: Mapping[K, Sequence[CellScores]]) -> dict[K, Standing]:
    """Compare classifiers with the best of them, by paired tests over their matched cells.

    The best one is found on the same test images as it is compared on. Holm's correction over its
    comparisons alone would ignore that choice, so it is over all pairs of classifiers: with 10
    classifiers of equal accuracy, 45 tests and not 9.

    Args:
        classifiers: cells of each, with scores of the same metric. Cells that agree on every axis
            are matched, so the axes that tell the classifiers apart must not be in their places.

    Returns:
        By classifier; nothing for fewer than two, and for one without cells on the same images as
        the best.
    """
    if len(classifiers) < 2:
        return {}
    names = list(classifiers)
    cells = []
    values: list[float] = []
    for number, own in enumerate(classifiers.values()):
        cells += [replace(each, place={**each.place, _AXIS: number}) for each in own]
        values.append(sum(float(each.scores.mean()) for each in own) / len(own))
    pairs = adjusted(effects(cells, _AXIS, combinations(range(len(names)), 2)))
    p_values: dict[tuple[int, int], float] = {}
    for pair in pairs:
        p_values[int(str(pair.a)), int(str(pair.b))] = pair.p_holm
    found = _compare_with_best(values, p_values)
    return {names[number]: standing for number, standing in found.items()}


def standings_of_pairs(
    values: Mapping[str, float], pairs: Sequence[PairedComparison]
) -> dict[str, Standing]:
    """Return the standings of classifiers whose pairs have been compared already.

    Args:
        values: metric of each classifier.
        pairs: every two of them, with Holm correction over all pairs.
    """
    names = list(values)
    p_values = {(names.index(pair.a), names.index(pair.b)): pair.p_holm for pair in pairs}
    found = _compare_with_best(list(values.values()), p_values)
    return {names[number]: standing for number, standing in found.items()}


def _compare_with_best(
    values: Sequence[float], p_values: Mapping[tuple[int, int], float]
) -> dict[int, Standing]:
    """Return the standings by position; ``p_values`` has each pair in one of its two orders."""
    best = max(range(len(values)), key=lambda number: values[number])
    found = {}
    for number, value in enumerate(values):
        if value == values[best]:
            found[number] = Standing(True, None, len(p_values))
            continue
        p = p_values.get((best, number), p_values.get((number, best)))
        if p is not None:
            found[number] = Standing(False, p, len(p_values))
    return found
