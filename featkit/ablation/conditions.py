"""What becomes of classifiers under long tails and under perturbations: rows of two tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from featkit.ablation.effects import BALANCE, PERTURB, PLAIN, SUBSET, Findings, ScoredCell, grouped, unperturbed
from featkit.errors import SpecError
from featkit.evaluation.effects import SEED, Average, CellScores, Effect, adjusted, average_accuracies, effects
from featkit.evaluation.intervals import Interval
from featkit.registry import Spec

_NONE = "none"
"""The correction that others are compared with."""


@dataclass(frozen=True)
class LongTailRow:
    """One correction under one training set.

    Attributes:
        condition: the training set and whatever else varies but seed and correction.
        balance: the correction.
        mean: balanced accuracy.
        gain: over no correction; None for that itself, or where it has no cells.
        groups: accuracy on ``many``, ``medium`` and ``few``, as far as the training set has such classes.
    """

    condition: str
    balance: str
    mean: Average
    gain: Effect | None
    groups: Mapping[str, Average]


@dataclass(frozen=True)
class DropRow:
    """What perturbations cost.

    Attributes:
        name: of the classifier, or of the perturbation.
        clean, perturbed: the metric without and with perturbation, over the same cells otherwise.
        drop: clean less perturbed.
        relative, relative_interval95: the drop as a share of the metric without perturbation.
        worst: the family of the lowest metric and that metric, if several were pooled.
    """

    name: str
    clean: Average
    perturbed: Average
    drop: Effect
    relative: float
    relative_interval95: Interval
    worst: tuple[str, float] | None = None


def long_tail(findings: Findings) -> list[LongTailRow]:
    """Return a row for each correction under each training set; none unless corrections or training sets vary."""
    if not {SUBSET, BALANCE} & set(findings.axes):
        return []
    axes = [axis for axis in findings.axes if axis not in (SEED, BALANCE)]
    rows = [row for its in grouped(findings.scored, axes).values() for row in _corrections(findings, axes, its)]
    gains = iter(adjusted([row.gain for row in rows if row.gain]))
    return [replace(row, gain=next(gains)) if row.gain else row for row in rows]


def _corrections(findings: Findings, axes: Sequence[str], judged: list[ScoredCell]) -> list[LongTailRow]:
    by_balance = {str(value or _NONE): its for (value,), its in grouped(judged, [BALANCE]).items()}
    order = [str(value) for value in findings.axes.get(BALANCE, by_balance) if str(value) in by_balance]
    scored = [
        replace(outcome, place={**outcome.place, BALANCE: key}) for key in order for _, outcome in by_balance[key]
    ]
    gains = {effect.a: effect for effect in effects(scored, BALANCE, [(key, _NONE) for key in order if key != _NONE])}
    condition = findings.label(judged[0][0].values, axes)
    return [
        LongTailRow(condition, key, findings.mean(by_balance[key]), gains.get(key), _groups(by_balance[key]))
        for key in order
    ]


def _groups(judged: list[ScoredCell]) -> dict[str, Average]:
    rows = [row for cell, _ in judged if cell.report for row in cell.report.groups or ()]
    names = [name for name in ("many", "medium", "few") if any(row.name == name for row in rows)]
    return {name: _shares([(row.top1, row.n) for row in rows if row.name == name]) for name in names}


def _shares(rows: Sequence[tuple[float, int]]) -> Average:
    return average_accuracies([round(share * n) for share, n in rows], [n for _, n in rows])


def drops_by_classifier(findings: Findings) -> list[DropRow]:
    """Return a row for each classifier, all perturbations pooled; none unless there are clean and perturbed cells."""
    axes = [axis for axis in findings.axes if axis not in (SEED, PERTURB)]
    groups = grouped(findings.scored, axes).values()
    return _rows(findings, ((findings.label(its[0][0].values, axes), its) for its in groups))


def drops_by_perturbation(findings: Findings) -> list[DropRow]:
    """Return a row for each perturbation, all classifiers pooled; none unless there are clean and perturbed cells."""
    clean, groups = unperturbed(findings), grouped(findings.scored, [PERTURB])
    kinds = [value for value in findings.axes.get(PERTURB, ())[1:] if (value,) in groups]
    return _rows(findings, ((str(value), [*clean, *groups[value,]]) for value in kinds))


def _rows(findings: Findings, given: Iterable[tuple[str, list[ScoredCell]]]) -> list[DropRow]:
    if findings.axes.get(PERTURB, ("",))[0] not in PLAIN:
        return []
    rows = [row for name, judged in given if (row := _drop(name, findings, judged)) is not None]
    drops = adjusted([row.drop for row in rows])
    return [replace(row, drop=drop) for row, drop in zip(rows, drops, strict=True)]


def _drop(name: str, findings: Findings, judged: list[ScoredCell]) -> DropRow | None:
    """Return what all perturbations among the cells cost, each cell paired with its clean one."""
    clean = {_others(outcome): (cell, outcome) for cell, outcome in judged if cell.values.get(PERTURB) in PLAIN}
    harmed = [one for one in judged if one[0].values.get(PERTURB) not in PLAIN and _others(one[1]) in clean]
    pairs = [(clean[_others(outcome)][1], outcome) for _, outcome in harmed]
    found = _less(pairs)
    if found is None:
        return None
    used = [clean[others] for others in dict.fromkeys(_others(outcome) for _, outcome in harmed)]
    before = fmean(float(outcome.scores.mean()) for outcome, _ in pairs) or 1.0
    relative = found.difference / before
    # The delta method: what is left of the drop where every clean score is cut by that share has mean zero.
    cut = _less([(_scaled(one, 1 - relative), other) for one, other in pairs]) or found
    low, high = (relative + (end - cut.difference) / before for end in cut.interval95)
    return DropRow(
        name, findings.mean(used), findings.mean(harmed), found, relative, (low, high), _worst(findings, harmed)
    )


def _scaled(outcome: CellScores, factor: float) -> CellScores:
    return replace(outcome, scores=outcome.scores * factor, square=outcome.square * factor**2)


def _less(pairs: Sequence[tuple[CellScores, CellScores]]) -> Effect | None:
    """Return the mean difference within pairs of a clean and a perturbed cell; None without pairs."""
    pooled = [
        replace(outcome, place={**harmed.place, "under": harmed.place[PERTURB], PERTURB: state})
        for clean, harmed in pairs
        for state, outcome in (("clean", clean), ("perturbed", harmed))
    ]
    return next(iter(effects(pooled, PERTURB, [("clean", "perturbed")])), None)


def _others(outcome: CellScores) -> frozenset[tuple[str, Any]]:
    return frozenset(item for item in outcome.place.items() if item[0] != PERTURB)


def _worst(findings: Findings, judged: list[ScoredCell]) -> tuple[str, float] | None:
    families: dict[str, list[float]] = {}
    for cell, _ in judged:
        families.setdefault(family_and_level(str(cell.values[PERTURB]))[0], []).append(findings.score(cell)[0])
    means = {family: fmean(scores) for family, scores in families.items()}
    worst = min(means, key=lambda family: means[family])
    return (worst, means[worst]) if len(means) > 1 else None


def family_and_level(perturbation: str) -> tuple[str, str]:
    """Return the family, and the level or whatever other options there are, of ``gaussian_noise:level=strong``."""
    try:
        spec = Spec.parse(perturbation)
    except SpecError:
        return perturbation, ""
    options = {key: str(value) for key, value in spec.options.items()}
    level = options.pop("level", "")
    return spec.name, ", ".join([*([level] if level else []), *(f"{key} {value}" for key, value in options.items())])
