"""Analysis of a finished grid: effects of its axes, selection by validation accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from statistics import fmean
from typing import Any, NamedTuple

from featkit.ablation.cells import CellResult
from featkit.evaluation.effects import (
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
from featkit.evaluation.metrics import BALANCED_ACCURACY, MEAN_AVERAGE_PRECISION, TOP1
from featkit.evaluation.multilabel import MultiLabelReport
from featkit.evaluation.standing import Standing, standings
from featkit.runs.names import distinct_names, network_name

DATA, SUBSET, BALANCE, PERTURB = "data", "subset", "balance", "perturb"
BACKBONE = "backbone"
CONDITIONS = (DATA, SUBSET, PERTURB)
"""Axes that describe the data. All others, except for the seed, describe the classifier."""
PLAIN = ("none", "all", "")
"""Baseline values of axes; other values are compared with them."""
_ALL_PAIRS = 6
"""Largest number of values of an axis of which all pairs are compared, not only those with the
first value."""


CellKey = frozenset[tuple[str, Any]]
"""Values on some axes, hashable."""


class ScoredCell(NamedTuple):
    """A cell with a result, and its score on each test image."""

    cell: CellResult
    scores: CellScores


@dataclass(frozen=True)
class Selection:
    """The classifier with the highest validation accuracy under one condition.

    Attributes:
        condition: data and subset, as far as they vary.
        choice: description of the selected classifier.
        of: number of classifiers it was selected from.
        val: its metric on the validation set, averaged over seeds.
        test: its metric on the test set.
        versus: its differences from each of the other classifiers on the same test images.
        metric: that of ``val``, ``test`` and ``versus``. It is that of the findings, or balanced
            accuracy where only that of the validation set was recorded, as before featkit 0.3.
    """

    condition: str
    choice: str
    of: int
    val: float
    test: Average
    versus: tuple[Effect, ...]
    metric: str = BALANCED_ACCURACY


@dataclass(frozen=True)
class Findings:
    """Analysis of a finished grid.

    Attributes:
        name: name of the grid.
        metric: ``balanced accuracy`` if training sets are imbalanced, ``mAP`` if images have
            several labels, else ``top-1``.
        axes: values of each axis that varies; the others are compared with the first.
        same: value of each axis that does not vary.
        cells: all cells, best first, those without a result last.
        scored: cells with a result and their scores, in the same order.
        effects: differences between values of each axis, averaged over the other axes.
        selections: one for each condition in which every classifier has a validation score.
        standings: of each classifier under each condition, means over seeds, compared with the best
            classifier under the same condition; see ``standing``.
        network_names: name of each backbone by its spec, see ``runs.names``.
    """

    name: str
    metric: str
    axes: Mapping[str, tuple[Any, ...]]
    same: Mapping[str, Any]
    cells: tuple[CellResult, ...]
    scored: tuple[ScoredCell, ...]
    effects: tuple[Effect, ...]
    selections: tuple[Selection, ...] = ()
    standings: Mapping[CellKey, Standing] = field(default_factory=dict)
    network_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def classifier_axes(self) -> list[str]:
        """The axes that vary and describe the classifier."""
        return [axis for axis in self.axes if axis not in (*CONDITIONS, SEED)]

    @property
    def short_axis_effects(self) -> list[Effect]:
        """The effects of axes with few enough values to be reported in sentences."""
        return [effect for effect in self.effects if len(self.axes[effect.axis]) <= _ALL_PAIRS]

    def standing(self, values: Mapping[str, Any]) -> Standing | None:
        """Return the standing of the classifier of a cell under the condition of the cell.

        It is that of the mean over seeds, so that cells that differ in the seed only have the same.

        Args:
            values: of the cell on the axes, with or without the seed.

        Returns:
            None for a cell without a result, or without another classifier to compare it with.
        """
        return self.standings.get(key_of(values, [axis for axis in self.axes if axis != SEED]))

    def score(self, cell: CellResult) -> tuple[float, Interval]:
        """Return the metric of a cell and its 95 % interval.

        Raises:
            ValueError: if the cell has no report.
        """
        return _metric_of(cell, self.metric)

    def mean(self, scored: Sequence[ScoredCell]) -> Average:
        """Return the mean metric of cells; a single cell keeps the interval of its report."""
        return _mean_of(scored, self.metric)

    def label(self, values: Mapping[str, Any], axes: Iterable[str]) -> str:
        """Return a text such as ``head svm, tune True`` for values on some axes."""
        return ", ".join(
            f"{axis} {self.shown(axis, values[axis])}" for axis in axes if axis in values
        )

    def shown(self, axis: str, value: Any) -> str:
        """Return the text for a value of an axis.

        Data is shown by its short name if that is unique, a backbone by the name of the network;
        random weights are marked as untrained.
        """
        if axis == BACKBONE:
            return self.network_names.get(str(value), str(value))
        if axis == "weights" and str(value).startswith("random"):
            return f"{value} (untrained)"
        if axis == DATA:
            names = {cell.values.get(DATA): cell.data for cell in self.cells if cell.data}
            short = names.get(value, "")
            return short if short and list(names.values()).count(short) == 1 else str(value)
        return "default" if value == "" else str(value)


def analyze_grid(
    name: str, axes: Mapping[str, Sequence[Any]], cells: Sequence[CellResult]
) -> Findings:
    """Compute all comparisons that the cells of a grid allow.

    Args:
        name: name of the grid.
        axes: values in the order of the grid; axes and values that only cells have come after them.
        cells: in any order; the result does not depend on it.
    """
    values = _values_by_axis(axes, cells)
    varying: dict[str, tuple[Any, ...]] = {}
    same: dict[str, Any] = {}
    for axis, found in values.items():
        if len(found) > 1:
            varying[axis] = found
        elif found:
            same[axis] = found[0]
    metric = BALANCED_ACCURACY if SUBSET in varying or BALANCE in varying else TOP1
    if any(isinstance(cell.report, MultiLabelReport) for cell in cells):
        metric = MEAN_AVERAGE_PRECISION
    ordered = sorted(cells, key=lambda cell: _rank(cell, metric, values))
    scored = _score(ordered, metric)
    findings = Findings(
        name=name,
        metric=metric,
        axes=varying,
        same=same,
        cells=tuple(ordered),
        scored=tuple(scored),
        effects=tuple(_axis_effects(varying, [each.scores for each in scored])),
        network_names=_network_names(values.get(BACKBONE, ()), ordered),
    )
    return replace(
        findings,
        selections=tuple(_select(findings)),
        standings=compare_with_best(findings, findings.scored),
    )


def _network_names(specs: Sequence[Any], cells: Sequence[CellResult]) -> dict[str, str]:
    """Return different names of the backbones of a grid by their specs."""
    labels = {str(cell.values.get(BACKBONE)): cell.weights for cell in cells if cell.weights}
    found = [str(spec) for spec in specs]
    names = [network_name(spec, made_by=labels.get(spec, "")) for spec in found]
    return dict(zip(found, distinct_names(names, [{}] * len(names)), strict=True))


def key_of(values: Mapping[str, Any], axes: Iterable[str]) -> CellKey:
    """Return the values of a cell on some axes, hashable."""
    return frozenset((axis, values.get(axis)) for axis in axes)


def compare_with_best(
    findings: Findings, scored: Iterable[ScoredCell], *, pooled: Sequence[str] = ()
) -> dict[CellKey, Standing]:
    """Compare classifiers with the best one on the same test images, see ``standings``.

    Args:
        findings: of the grid.
        scored: cells of it.
        pooled: conditions, such as perturbations, over which the mean is taken, as over seeds.

    Returns:
        By values on all axes that vary, except for the seed and the pooled ones.
    """
    conditions = [axis for axis in CONDITIONS if axis in findings.axes and axis not in pooled]
    axes = [axis for axis in findings.axes if axis not in (SEED, *pooled)]
    found: dict[CellKey, Standing] = {}
    for cells in grouped(scored, conditions).values():
        classifiers: dict[CellKey, list[CellScores]] = {}
        for cell, scores in cells:
            place = {axis: cell.values.get(axis) for axis in (SEED, *pooled)}
            key = key_of(cell.values, axes)
            classifiers.setdefault(key, []).append(replace(scores, place=place))
        found |= standings(classifiers)
    return found


def _mean_of(scored: Sequence[ScoredCell], metric: str) -> Average:
    """Return the mean metric of cells; a single cell keeps the interval of its report."""
    mean = average([each.scores for each in scored])
    if len(scored) == 1:
        return replace(mean, interval95=_metric_of(scored[0].cell, metric)[1])
    return mean


def _score(cells: Iterable[CellResult], metric: str) -> list[ScoredCell]:
    """Return the cells that have predictions, with the score of each image."""
    predicted = [(cell, cell.predictions) for cell in cells if cell.report and cell.predictions]
    scores = score_cells([(cell.values, predictions) for cell, predictions in predicted], metric)
    return [ScoredCell(cell, each) for (cell, _), each in zip(predicted, scores, strict=True)]


def _rank(
    cell: CellResult, metric: str, values: Mapping[str, tuple[Any, ...]]
) -> tuple[float, list[int]]:
    """Return a sort key: best first, cells without a result last, equal ones in grid order."""
    score = -_metric_of(cell, metric)[0] if cell.report else 1.0
    place = []
    for axis, found in values.items():
        place.append(found.index(cell.values[axis]) if axis in cell.values else -1)
    return score, place


def _metric_of(cell: CellResult, metric: str) -> tuple[float, Interval]:
    if cell.report is None:
        raise ValueError(f"cell {dict(cell.values)} has no report")
    if metric == BALANCED_ACCURACY:
        return cell.report.second.value, cell.report.second.interval95
    return cell.report.headline.value, cell.report.headline.interval95


def _values_by_axis(
    axes: Mapping[str, Sequence[Any]], cells: Sequence[CellResult]
) -> dict[str, tuple[Any, ...]]:
    """Return the values that occur on each axis, plain ones first, then in grid order."""
    names: dict[str, None] = dict.fromkeys(axes)
    for cell in cells:
        names.update(dict.fromkeys(cell.values))
    found = {}
    for axis in names:
        present = dict.fromkeys(cell.values[axis] for cell in cells if axis in cell.values)
        ordered = dict.fromkeys(
            [*(value for value in axes.get(axis, ()) if value in present), *present]
        )
        found[axis] = tuple(sorted(ordered, key=lambda value: value not in PLAIN))
    return found


def _axis_effects(
    axes: Mapping[str, tuple[Any, ...]], scores: Sequence[CellScores]
) -> list[Effect]:
    """Compare the values of each axis except data (other images) and seed (repetitions)."""
    found = []
    for axis, values in axes.items():
        if axis in (DATA, SEED):
            continue
        if len(values) <= _ALL_PAIRS:
            pairs = [(later, earlier) for earlier, later in combinations(values, 2)]
        else:
            pairs = [(value, values[0]) for value in values[1:]]
        found.extend(effects(scores, axis, pairs))
    return adjusted(found)


def grouped(
    scored: Iterable[ScoredCell], axes: Sequence[str]
) -> dict[tuple[Any, ...], list[ScoredCell]]:
    """Return cells grouped by their values on some axes, in the order of first appearance."""
    groups: dict[tuple[Any, ...], list[ScoredCell]] = {}
    for each in scored:
        key = tuple(each.cell.values.get(axis) for axis in axes)
        groups.setdefault(key, []).append(each)
    return groups


def unperturbed(findings: Findings) -> list[ScoredCell]:
    """Return the cells with clean test images, or with the first perturbation if there are none."""
    if PERTURB not in findings.axes:
        return list(findings.scored)
    plain = findings.axes[PERTURB][0]
    return [each for each in findings.scored if each.cell.values.get(PERTURB) == plain]


def _select(findings: Findings) -> list[Selection]:
    """Select a classifier by validation accuracy per condition, then compare it on the test set.

    The comparisons of all conditions are one family for Holm's correction.
    """
    axes = [axis for axis in (DATA, SUBSET) if axis in findings.axes]
    candidates, metric = unperturbed(findings), findings.metric
    if metric == TOP1 and any(_lacks_val_top1(each.cell) for each in candidates):
        metric = BALANCED_ACCURACY
        candidates = _score([each.cell for each in candidates], metric)
    selections = []
    for values, cells in grouped(candidates, axes).items():
        condition = findings.label(dict(zip(axes, values, strict=True)), axes)
        selection = _select_one(findings, condition, cells, metric)
        if selection is not None:
            selections.append(selection)
    comparisons: list[Effect] = []
    for selection in selections:
        comparisons.extend(selection.versus)
    remaining = iter(adjusted(comparisons))
    return [replace(each, versus=tuple(islice(remaining, len(each.versus)))) for each in selections]


def _lacks_val_top1(cell: CellResult) -> bool:
    """Return whether balanced accuracy alone was recorded of the validation set."""
    return cell.val_score is not None and _val_score(cell, TOP1) is None


def _val_score(cell: CellResult, metric: str) -> float | None:
    """Return the metric of a cell on the validation set; None if it was not recorded."""
    if metric in (BALANCED_ACCURACY, MEAN_AVERAGE_PRECISION):
        return cell.val_score
    top1: float | None = cell.report.provenance.get("val_top1") if cell.report else None
    return top1


def mean_val_score(scored: Sequence[ScoredCell], metric: str = BALANCED_ACCURACY) -> float | None:
    """Return the mean metric of cells on the validation set; None if one of them has none."""
    scores = [_val_score(each.cell, metric) for each in scored]
    found = [score for score in scores if score is not None]
    return fmean(found) if len(found) == len(scored) else None


def _select_one(
    findings: Findings, condition: str, scored: list[ScoredCell], metric: str
) -> Selection | None:
    """Return the selection under one condition; None if there is nothing to select from."""
    axes = findings.classifier_axes
    classifiers = {
        findings.label(cells[0].cell.values, axes): cells
        for cells in grouped(scored, axes).values()
    }
    if len(classifiers) < 2:
        return None
    val_means = {}
    relabelled = []
    for name, cells in classifiers.items():
        val_mean = mean_val_score(cells, metric)
        if val_mean is None:
            return None
        val_means[name] = val_mean
        for each in cells:
            place = {"classifier": name, SEED: each.cell.values.get(SEED)}
            relabelled.append(replace(each.scores, place=place))
    # Ties are broken by name: the order of the cells is by test accuracy, which must not select.
    best = max(sorted(val_means), key=lambda name: val_means[name])
    versus = effects(
        relabelled, "classifier", [(best, other) for other in classifiers if other != best]
    )
    return Selection(
        condition=condition,
        choice=best,
        of=len(classifiers),
        val=val_means[best],
        test=_mean_of(classifiers[best], metric),
        versus=tuple(versus),
        metric=metric,
    )
