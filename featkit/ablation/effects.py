"""What a matrix of cells says: which differences are real, and which of its classifiers val would have chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any

from featkit.ablation.cells import CellResult
from featkit.evaluation.effects import (
    METRICS,
    SEED,
    Average,
    CellScores,
    Effect,
    adjusted,
    average,
    effects,
    score_cells,
)
from featkit.evaluation.intervals import Interval

DATA, SUBSET, BALANCE, PERTURB = "data", "subset", "balance", "perturb"
CONDITIONS = (DATA, SUBSET, PERTURB)
"""Axes that say what a classifier is put to; the others, but for the seed, say which classifier it is."""
PLAIN = ("none", "all", "")
"""Values that stand for an axis left alone."""
_ALL_PAIRS = 6
"""With more values than this, an axis has each compared with the first alone, and in tables only."""

ScoredCell = tuple[CellResult, CellScores]


@dataclass(frozen=True)
class Selection:
    """The classifier that did best on val under one condition, and how it did on test.

    Attributes:
        condition: data and subset, as far as they vary.
        choice: what was chosen.
        of: number of classifiers that it was chosen from.
        val: its balanced accuracy on val, a mean over seeds.
        test: its metric on test.
        versus: its differences from each of the others on the same test images.
    """

    condition: str
    choice: str
    of: int
    val: float
    test: Average
    versus: tuple[Effect, ...]


@dataclass(frozen=True)
class Findings:
    """What a matrix says.

    Attributes:
        name: of the study.
        metric: ``balanced accuracy`` where training sets are imbalanced, else ``top-1``.
        axes: the values of each axis that varies; the first is what the others are compared with.
        same: the value of each axis that does not.
        cells: all cells, best first, those without a result last.
        scored: those with a result, in the same order, each with what it scored.
        effects: differences between values of each axis, averaged over the others.
        selections: one for each condition whose classifiers all have a score on val.
    """

    name: str
    metric: str
    axes: Mapping[str, tuple[Any, ...]]
    same: Mapping[str, Any]
    cells: tuple[CellResult, ...]
    scored: tuple[ScoredCell, ...]
    effects: tuple[Effect, ...]
    selections: tuple[Selection, ...]

    @property
    def classifier_axes(self) -> list[str]:
        """The axes that vary and say which classifier it is."""
        return [axis for axis in self.axes if axis not in (*CONDITIONS, SEED)]

    @property
    def short_axis_effects(self) -> list[Effect]:
        """The effects of axes with few enough values to be told in sentences."""
        return [effect for effect in self.effects if len(self.axes[effect.axis]) <= _ALL_PAIRS]

    def score(self, cell: CellResult) -> tuple[float, Interval]:
        """Return a judged cell's metric and its interval.

        Raises:
            ValueError: if the cell has no report.
        """
        return _score(cell, self.metric)

    def mean(self, judged: Sequence[ScoredCell]) -> Average:
        """Return the mean metric of some cells; one alone has the interval of its report."""
        mean = average([outcome for _, outcome in judged])
        return mean if len(judged) > 1 else replace(mean, interval95=self.score(judged[0][0])[1])

    def label(self, values: Mapping[str, Any], axes: Iterable[str]) -> str:
        """Return the place on some axes in words."""
        return ", ".join(f"{axis} {self.shown(axis, values[axis])}" for axis in axes if axis in values)

    def shown(self, axis: str, value: Any) -> str:
        """Return a value in words: data by their short name where that tells them apart, random weights as such."""
        if axis == "weights" and str(value).startswith("random"):
            return f"{value} (untrained)"
        if axis == DATA:
            names = {cell.values.get(DATA): cell.data for cell in self.cells if cell.data}
            short = names.get(value, "")
            return short if short and list(names.values()).count(short) == 1 else str(value)
        return "default" if value == "" else str(value)


def analyze_grid(name: str, axes: Mapping[str, Sequence[Any]], cells: Sequence[CellResult]) -> Findings:
    """Compare all that the cells of a matrix allow.

    Args:
        name: of the study.
        axes: values in the order of the grid; axes and values that only cells have come after them.
        cells: in any order.
    """
    named = dict.fromkeys([*axes, *(axis for cell in cells for axis in cell.values)])
    found = {axis: _plain_first(_values(axis, axes.get(axis, ()), cells)) for axis in named}
    varying = {axis: values for axis, values in found.items() if len(values) > 1}
    metric = METRICS[1] if {SUBSET, BALANCE} & set(varying) else METRICS[0]
    best_first = sorted(cells, key=lambda cell: (-_score(cell, metric)[0] if cell.report else 1, _rank(found, cell)))
    answered = [(cell, cell.predictions) for cell in best_first if cell.report and cell.predictions]
    scored = score_cells(((cell.values, predictions) for cell, predictions in answered), metric)
    findings = Findings(
        name,
        metric,
        varying,
        {axis: values[0] for axis, values in found.items() if len(values) == 1},
        tuple(best_first),
        tuple((cell, outcome) for (cell, _), outcome in zip(answered, scored, strict=True)),
        tuple(_main_effects(varying, scored)),
        (),
    )
    return replace(findings, selections=tuple(_chosen(findings)))


def _score(cell: CellResult, metric: str) -> tuple[float, Interval]:
    if cell.report is None:
        raise ValueError(f"cell {dict(cell.values)} has no report")
    if metric == METRICS[1]:
        return cell.report.balanced_accuracy, cell.report.balanced_interval95
    return cell.report.top1, cell.report.interval95


def _values(axis: str, given: Sequence[Any], cells: Sequence[CellResult]) -> tuple[Any, ...]:
    """Return the values that some cell has: the grid's order first, then whatever else cells say."""
    there = dict.fromkeys(cell.values[axis] for cell in cells if axis in cell.values)
    return tuple(dict.fromkeys([*(value for value in given if value in there), *there]))


def _rank(axes: Mapping[str, tuple[Any, ...]], cell: CellResult) -> list[int]:
    """Return where a cell stands in the grid, so that the order in which cells come changes nothing."""
    return [values.index(cell.values[axis]) if axis in cell.values else -1 for axis, values in axes.items()]


def _plain_first(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(values, key=lambda value: value not in PLAIN))


def _main_effects(axes: Mapping[str, tuple[Any, ...]], scored: Sequence[CellScores]) -> list[Effect]:
    """Compare the values of each axis; data sets, whose images differ, and seeds are not compared."""
    return adjusted(
        [
            effect
            for axis, values in axes.items()
            if axis not in (DATA, SEED)
            for effect in effects(scored, axis, _pairs(values))
        ]
    )


def _pairs(values: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """Return ``(later, earlier)`` values."""
    if len(values) > _ALL_PAIRS:
        return [(value, values[0]) for value in values[1:]]
    return [(later, earlier) for earlier, later in combinations(values, 2)]


def grouped(judged: Iterable[ScoredCell], axes: Sequence[str]) -> dict[tuple[Any, ...], list[ScoredCell]]:
    """Return cells by their values on some axes, in the order of their first appearance."""
    groups: dict[tuple[Any, ...], list[ScoredCell]] = {}
    for cell, outcome in judged:
        groups.setdefault(tuple(cell.values.get(axis) for axis in axes), []).append((cell, outcome))
    return groups


def unperturbed(findings: Findings) -> list[ScoredCell]:
    """Return the cells whose test images are as they are, or those of the first perturbation if there are none."""
    if PERTURB not in findings.axes:
        return list(findings.scored)
    plain = findings.axes[PERTURB][0]
    return [(cell, outcome) for cell, outcome in findings.scored if cell.values.get(PERTURB) == plain]


def _chosen(findings: Findings) -> list[Selection]:
    """Choose on val under each condition; only then look at test, which has one family of comparisons in all."""
    axes = [axis for axis in (DATA, SUBSET) if axis in findings.axes]
    by_condition = grouped(unperturbed(findings), axes).items()
    found = [_choose(findings, findings.label(dict(zip(axes, at, strict=True)), axes), its) for at, its in by_condition]
    chosen = [one for one in found if one is not None]
    family = iter(adjusted([effect for one in chosen for effect in one.versus]))
    return [replace(one, versus=tuple(next(family) for _ in one.versus)) for one in chosen]


def _choose(findings: Findings, condition: str, judged: list[ScoredCell]) -> Selection | None:
    choices = {
        findings.label(its[0][0].values, findings.classifier_axes): its
        for its in grouped(judged, findings.classifier_axes).values()
    }
    scores = {
        choice: [cell.val_score for cell, _ in its if cell.val_score is not None] for choice, its in choices.items()
    }
    if len(choices) < 2 or any(len(scores[choice]) < len(its) for choice, its in choices.items()):
        return None
    means = {choice: fmean(found) for choice, found in scores.items()}
    # Of equals the first by name: the order of the cells is that of test.
    best = max(sorted(means), key=lambda choice: means[choice])
    relabelled = [
        replace(outcome, place={"classifier": choice, SEED: cell.values.get(SEED)})
        for choice, its in choices.items()
        for cell, outcome in its
    ]
    versus = effects(relabelled, "classifier", [(best, other) for other in choices if other != best])
    return Selection(condition, best, len(choices), means[best], findings.mean(choices[best]), tuple(versus))
