"""Analysis of long-tailed training sets and of perturbed test images.

The CSV files, the Markdown summary, the HTML report and the command line all print these rows. The
question is whether a correction helps, or what a perturbation costs, for a classifier in general.
Each row is therefore averaged over the seeds by ``featkit.evaluation.effects``, whose interval
covers the sampling of test images and of seeds. A difference within one seed would be about that
split only; the accuracy of each seed is in results.csv.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from featkit.ablation.effects import (
    BALANCE,
    PERTURB,
    PLAIN,
    SUBSET,
    CellKey,
    Findings,
    ScoredCell,
    compare_with_best,
    grouped,
    key_of,
    mean_val_score,
    unperturbed,
)
from featkit.errors import SpecError
from featkit.evaluation.effects import (
    SEED,
    Average,
    CellScores,
    Effect,
    adjusted,
    average_accuracies,
    effects,
    mean_ratio,
    score_cells,
)
from featkit.evaluation.intervals import Interval, effective_images
from featkit.evaluation.metrics import TOP1
from featkit.evaluation.report import GroupAccuracy, Report
from featkit.evaluation.standing import Standing
from featkit.heads.balance import count_candidates
from featkit.registry import Spec

_NONE = "none"
"""The value of the axis ``balance`` that corrections are compared with."""
GROUPS = ("many", "medium", "few")


@dataclass(frozen=True)
class LongTailRow:
    """One correction on one training set, averaged over seeds.

    Attributes:
        values: value on every axis except for the seed.
        condition: text for the training set and all other varying axes except for seed and
            correction.
        balance: the correction.
        mean: balanced accuracy.
        gain: balanced accuracy minus that without correction; None for ``none`` itself, or without
            such cells.
        groups: accuracy on ``many``, ``medium`` and ``few``-shot classes, as far as there are any.
        val_score: mean balanced accuracy on the validation set; None if a cell has none.
        best_on_val: whether ``val_score`` is the highest of all corrections in the same condition.
        candidates: number of values of the correction's options among which the best one on the
            validation set was chosen; 1 without tuning.
        standing: compared with the best classifier on the same training set; None without another.
    """

    values: Mapping[str, Any]
    condition: str
    balance: str
    mean: Average
    gain: Effect | None
    groups: Mapping[str, Average]
    val_score: float | None = None
    best_on_val: bool = False
    candidates: int = 1
    standing: Standing | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return one flat row of ``longtail.csv``."""
        row = {**self.values, "seeds": self.mean.seeds, "n": self.mean.n}
        row |= _interval_columns("balanced_accuracy", self.mean.value, self.mean.interval95)
        for name, accuracy in self.groups.items():
            row |= _interval_columns(name, accuracy.value, accuracy.interval95)
        row |= {"val_balanced_accuracy": self.val_score, "best_on_val": self.best_on_val}
        row["values_tried"] = self.candidates
        return row | _effect_columns("gain", self.gain) | standing_columns(self.standing)


@dataclass(frozen=True)
class DropRow:
    """Accuracy lost on perturbed test images, averaged over seeds.

    Attributes:
        name: text for the classifier, or the perturbation.
        clean, perturbed: the metric on clean and on perturbed test images, over otherwise equal
            cells.
        drop: clean minus perturbed.
        relative, relative_interval95: the drop divided by the clean metric.
        worst: the family with the lowest metric and that metric, if there are several families.
        values: value on every axis except for the seed; without the perturbation if several were
            pooled.
        perturbations: number of perturbations.
        cosine: mean cosine between the features of each clean image and its perturbed copy, if
            known.
        baseline: backbone whose errors are the unit of ``mce``; empty if there is no ``mce``.
        mce, mce_interval95: mean corruption error, see ``mean_corruption_errors``.
        clean_standing, perturbed_standing: the classifier compared with the best one on the same
            clean, and on the same perturbed test images; None without another classifier.
    """

    name: str
    clean: Average
    perturbed: Average
    drop: Effect
    relative: float
    relative_interval95: Interval
    worst: tuple[str, float] | None = None
    values: Mapping[str, Any] | None = None
    perturbations: int = 1
    cosine: tuple[float, Interval] | None = None
    baseline: str = ""
    mce: float | None = None
    mce_interval95: Interval | None = None
    clean_standing: Standing | None = None
    perturbed_standing: Standing | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return one flat row of ``robustness.csv`` or ``robustness_heads.csv``."""
        row = dict(self.values or {})
        if PERTURB in row:
            row["family"], row["level"] = family_and_level(str(row.pop(PERTURB)))
        else:
            row["perturbations"] = self.perturbations
        row |= {"seeds": self.drop.seeds, "n": self.drop.n}
        row |= _interval_columns("clean", self.clean.value, self.clean.interval95)
        row |= _interval_columns("perturbed", self.perturbed.value, self.perturbed.interval95)
        row |= _effect_columns("drop", self.drop)
        row |= _interval_columns("relative_drop", self.relative, self.relative_interval95)
        if self.cosine:
            row |= _interval_columns("cosine", *self.cosine)
        if self.worst:
            row |= {"worst_family": self.worst[0], "worst_accuracy": self.worst[1]}
        if self.baseline:
            row["baseline"] = self.baseline
        if self.mce is not None and self.mce_interval95 is not None:
            row |= _interval_columns("mce", self.mce, self.mce_interval95)
        row |= standing_columns(self.clean_standing, "clean_")
        return row | standing_columns(self.perturbed_standing, "perturbed_")


def standing_columns(standing: Standing | None, prefix: str = "") -> dict[str, Any]:
    """Return the columns of a CSV file for the comparison with the best classifier."""
    if standing is None:
        return {}
    return {f"{prefix}standing": standing.text, f"{prefix}standing_p_holm": standing.p_holm}


def _interval_columns(name: str, value: float, interval: Interval) -> dict[str, Any]:
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}


def _effect_columns(name: str, effect: Effect | None) -> dict[str, Any]:
    if effect is None:
        return {}
    columns = _interval_columns(name, effect.difference, effect.interval95)
    return {**columns, f"{name}_p": effect.p, f"{name}_p_holm": effect.p_holm}


# Long-tailed training sets


def long_tail(findings: Findings) -> list[LongTailRow]:
    """Return a row for each correction on each training set, if one of the two varies."""
    if SUBSET not in findings.axes and BALANCE not in findings.axes:
        return []
    axes = _axes_without(findings, SEED, BALANCE)
    rows = []
    for cells in grouped(findings.scored, axes).values():
        rows.extend(_correction_rows(findings, axes, cells))
    gains = iter(adjusted([row.gain for row in rows if row.gain]))
    return [replace(row, gain=next(gains)) if row.gain else row for row in rows]


def _correction_rows(
    findings: Findings, axes: Sequence[str], scored: list[ScoredCell]
) -> list[LongTailRow]:
    """Return a row for each correction on one training set."""
    by_balance = {
        str(value or _NONE): cells for (value,), cells in grouped(scored, [BALANCE]).items()
    }
    names = [
        str(value) for value in findings.axes.get(BALANCE, by_balance) if str(value) in by_balance
    ]
    gains = _correction_gains(by_balance)
    val_scores = {name: mean_val_score(by_balance[name]) for name in names}
    known = {name: score for name, score in val_scores.items() if score is not None}
    best = max(known, key=lambda name: known[name], default=None)  # of equal ones the first
    rows = []
    for name in names:
        cells = by_balance[name]
        values = _values_without(cells[0], SEED)
        row = LongTailRow(
            values=values,
            condition=findings.label(cells[0].cell.values, axes),
            balance=name,
            mean=findings.mean(cells),
            gain=gains.get(name),
            groups=_group_accuracies(cells),
            val_score=val_scores[name],
            best_on_val=name == best,
            candidates=count_candidates(name) if cells[0].cell.values.get("tune") else 1,
            standing=findings.standing(values),
        )
        rows.append(row)
    return rows


def _correction_gains(by_balance: Mapping[str, list[ScoredCell]]) -> dict[Hashable, Effect]:
    """Return the effect of each correction compared with no correction."""
    relabelled = []
    for name, cells in by_balance.items():
        for each in cells:
            relabelled.append(replace(each.scores, place={**each.scores.place, BALANCE: name}))
    pairs = [(name, _NONE) for name in by_balance if name != _NONE]
    return {effect.a: effect for effect in effects(relabelled, BALANCE, pairs)}


def _group_accuracies(scored: Sequence[ScoredCell]) -> dict[str, Average]:
    """Return the accuracy on classes with many, medium and few training images, in this order."""
    reported: list[GroupAccuracy] = []
    independent = True
    for each in scored:
        report = each.cell.report
        if isinstance(report, Report) and report.groups:
            reported.extend(report.groups)
            independent = independent and report.test_groups is None
    found = {}
    for name in GROUPS:
        rows = [row for row in reported if row.name == name]
        if rows:
            found[name] = _average_of_groups(rows, independent=independent)
    return found


def _average_of_groups(rows: Sequence[GroupAccuracy], *, independent: bool) -> Average:
    """Return the mean over seeds of the accuracy on one group of classes.

    If its images are not independent, such as those of a patient, they count as the smaller number
    of independent ones that their intervals stand for.
    """
    if independent:
        return average_accuracies(
            [round(row.top1 * row.n) for row in rows], [row.n for row in rows]
        )
    totals = [max(1, int(effective_images(row.top1, row.interval95))) for row in rows]
    hits = [row.top1 * total for row, total in zip(rows, totals, strict=True)]
    return replace(average_accuracies(hits, totals), n=max(row.n for row in rows))


# Perturbed test images


def drops_by_classifier(findings: Findings, baseline: str = "") -> list[DropRow]:
    """Return a row for each classifier with clean and perturbed cells, perturbations pooled.

    Args:
        findings: of a grid.
        baseline: backbone whose errors are the unit of the mean corruption error; empty for no such
            error.
    """
    axes = _axes_without(findings, SEED, PERTURB)
    groups = [
        (findings.label(cells[0].cell.values, axes), cells)
        for cells in grouped(findings.scored, axes).values()
    ]
    rows = _with_standings(findings, _drop_rows(findings, groups, pooled=True))
    if not baseline:
        return rows
    errors = mean_corruption_errors(findings, baseline)
    with_errors = []
    for row in rows:
        mce, interval = errors.get(_key(row.values or {}), (None, None))
        with_errors.append(replace(row, baseline=baseline, mce=mce, mce_interval95=interval))
    return with_errors


def drops_by_perturbation(findings: Findings) -> list[DropRow]:
    """Return a row for each perturbation with clean counterparts, classifiers pooled."""
    clean, by_perturbation = unperturbed(findings), grouped(findings.scored, [PERTURB])
    names = [value for value in findings.axes.get(PERTURB, ())[1:] if (value,) in by_perturbation]
    groups = [(str(name), [*clean, *by_perturbation[(name,)]]) for name in names]
    return _drop_rows(findings, groups, pooled=False)


def drops_by_classifier_and_perturbation(findings: Findings) -> list[DropRow]:
    """Return a row for each perturbation, with clean counterparts, of each classifier."""
    axes = _axes_without(findings, SEED, PERTURB)
    groups = []
    for cells in grouped(findings.scored, axes).values():
        clean = [each for each in cells if each.cell.values.get(PERTURB) in PLAIN]
        for (name,), perturbed in grouped(cells, [PERTURB]).items():
            if name not in PLAIN:
                groups.append((str(name), [*clean, *perturbed]))
    return _with_standings(findings, _drop_rows(findings, groups, pooled=False))


def _with_standings(findings: Findings, rows: Sequence[DropRow]) -> list[DropRow]:
    """Return rows of one classifier each with its comparisons with the best one."""
    perturbed = [each for each in findings.scored if not _is_clean(each)]
    pooled = compare_with_best(findings, perturbed, pooled=(PERTURB,))
    axes = _axes_without(findings, SEED, PERTURB)
    found = []
    for row in rows:
        values = row.values or {}
        clean = findings.standing({**values, PERTURB: findings.axes[PERTURB][0]})
        own = findings.standing(values) if PERTURB in values else pooled.get(key_of(values, axes))
        found.append(replace(row, clean_standing=clean, perturbed_standing=own))
    return found


def _drop_rows(
    findings: Findings, groups: Iterable[tuple[str, list[ScoredCell]]], *, pooled: bool
) -> list[DropRow]:
    """Return a row for each group of clean and perturbed cells, adjusted as one family.

    Args:
        findings: of a grid.
        groups: name and cells of each row.
        pooled: whether a group has the cells of all perturbations, not of a single one.
    """
    if findings.axes.get(PERTURB, ("",))[0] not in PLAIN:
        return []
    rows = [_drop_row(findings, name, cells, pooled) for name, cells in groups]
    found = [row for row in rows if row is not None]
    drops = adjusted([row.drop for row in found])
    return [replace(row, drop=drop) for row, drop in zip(found, drops, strict=True)]


def _drop_row(
    findings: Findings, name: str, scored: list[ScoredCell], pooled: bool
) -> DropRow | None:
    """Return the drop of perturbed cells from their clean counterparts; None without any."""
    clean, perturbed = _pair_with_clean(scored)
    drop = _paired_effect(clean, perturbed)
    if drop is None:
        return None
    relative, relative_interval = _relative_drop(drop, clean, perturbed)
    specs = dict.fromkeys(str(each.cell.values[PERTURB]) for each in perturbed)
    # A clean cell is paired with every perturbation, but counts once in the mean.
    unique_clean = {_key(_values_without(each, PERTURB)): each for each in clean}
    return DropRow(
        name=name,
        clean=findings.mean(list(unique_clean.values())),
        perturbed=findings.mean(perturbed),
        drop=drop,
        relative=relative,
        relative_interval95=relative_interval,
        worst=_worst_family(findings, perturbed),
        values=_values_without(perturbed[0], *((SEED, PERTURB) if pooled else (SEED,))),
        perturbations=len(specs),
        cosine=None if pooled else _mean_cosine(perturbed),
    )


def _pair_with_clean(scored: list[ScoredCell]) -> tuple[list[ScoredCell], list[ScoredCell]]:
    """Return clean counterparts and perturbed cells, matched, of those that have one."""
    clean_cells = {_key(_values_without(each, PERTURB)): each for each in scored if _is_clean(each)}
    clean, perturbed = [], []
    for each in scored:
        counterpart = clean_cells.get(_key(_values_without(each, PERTURB)))
        if _is_clean(each) or counterpart is None:
            continue
        if np.array_equal(counterpart.scores.images, each.scores.images):
            clean.append(counterpart)
            perturbed.append(each)
    return clean, perturbed


def _relative_drop(
    drop: Effect, clean: Sequence[ScoredCell], perturbed: Sequence[ScoredCell]
) -> tuple[float, Interval]:
    """Return the drop divided by the clean metric, with its interval."""
    pairs = list(zip(perturbed, clean, strict=True))
    ratio = mean_ratio([[(after.scores, before.scores) for after, before in pairs]])
    if ratio is None:  # the clean metric is 0, so nothing can be lost
        return drop.difference, drop.interval95
    low, high = ratio.interval95
    return 1 - ratio.value, (1 - high, 1 - low)


def _is_clean(each: ScoredCell) -> bool:
    return each.cell.values.get(PERTURB) in PLAIN


def _paired_effect(ours: Sequence[ScoredCell], theirs: Sequence[ScoredCell]) -> Effect | None:
    """Return the mean difference within pairs of cells; None without pairs on the same images."""
    relabelled = []
    for one, other in zip(ours, theirs, strict=True):
        # Both cells of a pair get the place of the second one, and so does no other pair.
        place = {**other.scores.place, "pair": other.scores.place.get(PERTURB)}
        relabelled.append(replace(one.scores, place={**place, PERTURB: "a"}))
        relabelled.append(replace(other.scores, place={**place, PERTURB: "b"}))
    found = effects(relabelled, PERTURB, [("a", "b")])
    return replace(found[0], a="clean", b="perturbed") if found else None


def _worst_family(findings: Findings, scored: Sequence[ScoredCell]) -> tuple[str, float] | None:
    families: dict[str, list[float]] = {}
    for each in scored:
        family, _ = family_and_level(str(each.cell.values[PERTURB]))
        families.setdefault(family, []).append(findings.score(each.cell)[0])
    if len(families) < 2:
        return None
    means = {family: fmean(found) for family, found in families.items()}
    worst = min(means, key=lambda family: means[family])
    return worst, means[worst]


def _mean_cosine(scored: Sequence[ScoredCell]) -> tuple[float, Interval] | None:
    """Return the cosine to the clean features, averaged over seeds.

    The ends of the interval are averaged too: test images are shared between seeds, so more seeds
    do not narrow it.
    """
    shifts = [
        each.cell.report.provenance.get("cosine_to_clean") for each in scored if each.cell.report
    ]
    known = [shift for shift in shifts if shift]
    if not known:
        return None
    mean = fmean([shift["mean"] for shift in known])
    low = fmean([shift["low"] for shift in known])
    high = fmean([shift["high"] for shift in known])
    return mean, (low, high)


def mean_corruption_errors(
    findings: Findings, baseline: str
) -> dict[CellKey, tuple[float, Interval]]:
    """Return the mean corruption error of each classifier, and its 95 % interval.

    For each family the errors, summed over severities and seeds, are divided by those of the same
    head on the baseline backbone; the mean over families is the mean corruption error. The interval
    is that of ``featkit.evaluation.effects.mean_ratio``.

    Args:
        findings: of a grid.
        baseline: backbone whose errors are the unit.

    Returns:
        By values on every axis except for seed and perturbation; nothing for a classifier of which
        the baseline lacks a cell, or makes no error.

    Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions
    and perturbations", ICLR 2019, section 4.
    """
    scores = _perturbed_scores(findings)
    scores_by_place = {_key(each.place): each for each in scores}
    errors = {}
    for key, own in _by_classifier(scores).items():
        if own[0].place.get("backbone") == baseline:
            errors[key] = 1.0, (1.0, 1.0)
            continue
        places = [_key({**each.place, "backbone": baseline}) for each in own]
        references = [scores_by_place.get(place) for place in places]
        error = _mean_corruption_error(own, references)
        if error is not None:
            errors[key] = error
    return errors


def _perturbed_scores(findings: Findings) -> list[CellScores]:
    """Return the top-1 scores of the cells with perturbed test images."""
    perturbed = [each.cell for each in findings.scored if not _is_clean(each)]
    inputs = [(cell.values, cell.predictions) for cell in perturbed if cell.predictions]
    return score_cells(inputs, TOP1)


def _by_classifier(scores: Iterable[CellScores]) -> dict[CellKey, list[CellScores]]:
    """Return the cells that differ in seed and perturbation only, by their other values."""
    classifiers: dict[CellKey, list[CellScores]] = {}
    for each in scores:
        values = {axis: value for axis, value in each.place.items() if axis not in (SEED, PERTURB)}
        classifiers.setdefault(_key(values), []).append(each)
    return classifiers


def _mean_corruption_error(
    scores: Sequence[CellScores], references: Sequence[CellScores | None]
) -> tuple[float, Interval] | None:
    """Return the error of a classifier relative to the baseline; None if it is undefined.

    Args:
        scores: of the classifier.
        references: scores of the baseline under the same conditions, None where it has none.
    """
    families: dict[str, list[tuple[CellScores, CellScores]]] = {}
    for own, reference in zip(scores, references, strict=True):
        if reference is None or not np.array_equal(own.images, reference.images):
            return None
        family, _ = family_and_level(str(own.place[PERTURB]))
        families.setdefault(family, []).append((own.errors(), reference.errors()))
    ratio = mean_ratio(list(families.values()))
    if ratio is None:
        return None
    low, high = ratio.interval95
    return ratio.value, (max(0.0, low), high)


def _axes_without(findings: Findings, *axes: str) -> list[str]:
    return [axis for axis in findings.axes if axis not in axes]


def _values_without(each: ScoredCell, *axes: str) -> dict[str, Any]:
    return {axis: value for axis, value in each.cell.values.items() if axis not in axes}


def _key(values: Mapping[str, Any]) -> CellKey:
    return frozenset(values.items())


def family_and_level(perturbation: str) -> tuple[str, str]:
    """Return family and level, or other options, of a spec such as ``fog:level=strong``."""
    try:
        spec = Spec.parse(perturbation)
    except SpecError:
        return perturbation, ""
    options = {key: str(value) for key, value in spec.options.items()}
    level = options.pop("level", "")
    shown = [level] if level else []
    shown += [f"{key} {value}" for key, value in options.items()]
    return spec.name, ", ".join(shown)
