"""The report of an ablation: an HTML page and a Markdown summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from featkit.ablation.cells import CellResult
from featkit.ablation.conditions import (
    DropRow,
    LongTailRow,
    drops_by_classifier,
    drops_by_perturbation,
    family_and_level,
    long_tail,
)
from featkit.ablation.effects import DATA, Findings, ScoredCell, grouped, unperturbed
from featkit.ablation.run import AblationResult
from featkit.ablation.tables import result_files
from featkit.evaluation.compare import format_p_value
from featkit.evaluation.effects import SEED, Average, Effect
from featkit.evaluation.metrics import BALANCED_ACCURACY, MEAN_AVERAGE_PRECISION, TOP1
from featkit.evaluation.standing import Standing
from featkit.reports.components import (
    Range,
    ScatterChart,
    ScatterPoint,
    Table,
    TableCell,
    colour_class,
    interval_cell,
    number_cell,
    scatter_chart,
    span_of,
)
from featkit.reports.figures import ablation_figures
from featkit.reports.render import render
from featkit.reports.summary import summary_markdown
from featkit.reports.wording import (
    NO_SELECTION,
    average_text,
    basis_text,
    duration_text,
    effect_sentence,
    estimate_text,
    interval_text,
    lead_parts,
    method_paragraphs,
    metric_name,
    p_text,
    selection_sentence,
    standing_text,
    tuning_notes,
)
from featkit.runs.fit import package_versions
from featkit.storage import Content

_GROUPS = ("many", "medium", "few")
_STANDING_COLUMN = "compared with the best"


def ablation_files(
    result: AblationResult, *, command: str, baseline: str = "", wall_seconds: float | None = None
) -> dict[str, Content]:
    """Return every file of a finished grid by name: tables, results, report, summary and heat map.

    Args:
        result: the result of the grid.
        command: how it was started, as shown in the report.
        baseline: the backbone that corruption errors are relative to; empty for the first of the
            grid.
        wall_seconds: duration of the whole grid; None if it was interrupted and resumed.
    """
    report = write_report(
        result.findings,
        commands=[command],
        versions=package_versions(),
        wall_seconds=wall_seconds,
    )
    return {**result_files(result, baseline), **report, **ablation_figures(result)}


def write_report(
    findings: Findings,
    *,
    commands: Sequence[str],
    versions: Mapping[str, str],
    wall_seconds: float | None = None,
) -> dict[str, str | bytes]:
    """Return ``report.html`` and ``summary.md`` of a grid by name.

    The page is one file that needs no network and runs no script but its own. The same cells give
    the same files, except for times.

    Args:
        findings: analysis of the cells of a grid.
        commands: command lines that made the grid.
        versions: package versions by name.
        wall_seconds: duration of the whole grid, if known.
    """
    lead = lead_parts(findings, wall_seconds)
    view = ablation_view(findings, lead, commands, versions)
    return {
        "report.html": render("ablation.html", view=view),
        "summary.md": summary_markdown(findings, lead, commands),
    }


@dataclass(frozen=True)
class AblationView:
    """Content of ``templates/ablation.html``: sentences, tables and charts ready to draw.

    Attributes:
        title: name of the grid.
        lead: its size.
        selections: classifiers selected on the validation set, as sentences.
        differences: significant differences, as sentences.
        n_effects, n_significant: number of main effects, and of significant ones.
        main_effects: by axis, its values compared with the first one.
        compares_data: whether several data sets vary, which are not compared with each other.
        metric: ``top-1 accuracy`` or ``balanced accuracy``.
        long_tail: by training set, the corrections; empty unless training sets or corrections vary.
        robustness: by what the drops are grouped by; empty unless perturbations vary.
        heat_maps: mean metric by two axes.
        time_chart: metric over time; None for fewer than two classifiers.
        pareto_front: classifiers that no other one dominates in time and metric.
        effect_tests, selection_tests: every paired test; None where there is none.
        n_selection_tests: size of the second family of tests.
        cells: every cell of the grid.
        problems: cells that were skipped, failed or have warnings; None where there is none.
        methods: paragraphs about protocol and statistics.
        commands, versions: how it was made.
        tuning_notes: which corrections were tuned over several values.
    """

    title: str
    lead: str
    selections: Sequence[str]
    differences: Sequence[str]
    n_effects: int
    n_significant: int
    main_effects: Mapping[str, Table]
    compares_data: bool
    metric: str
    long_tail: Mapping[str, Table]
    robustness: Mapping[str, Table]
    heat_maps: Mapping[str, Table]
    time_chart: ScatterChart | None
    pareto_front: Sequence[str]
    effect_tests: Table | None
    selection_tests: Table | None
    n_selection_tests: int
    cells: Table
    problems: Table | None
    methods: Sequence[str]
    commands: Sequence[str]
    versions: Mapping[str, str]
    tuning_notes: Sequence[str] = ()


def ablation_view(
    findings: Findings, lead: Sequence[str], commands: Sequence[str], versions: Mapping[str, str]
) -> AblationView:
    """Return the content of the page of a grid; see ``write_report`` for the arguments."""
    selections = [selection_sentence(findings, selection) for selection in findings.selections]
    effect_tests = [(effect, effect.axis) for effect in findings.effects]
    selection_tests = _selection_tests(findings)
    time_chart, pareto_front = _accuracy_over_time(findings)
    return AblationView(
        title=findings.name,
        lead="; ".join(lead),
        selections=selections or [NO_SELECTION],
        differences=[
            effect_sentence(findings, effect)
            for effect in findings.short_axis_effects
            if effect.significant
        ],
        n_effects=len(findings.effects),
        n_significant=sum(effect.significant for effect in findings.effects),
        main_effects=_main_effects(findings),
        compares_data=DATA in findings.axes,
        metric=metric_name(findings),
        long_tail=_long_tail(findings),
        tuning_notes=tuning_notes(long_tail(findings)),
        robustness=_robustness(findings),
        heat_maps=_heat_maps(findings),
        time_chart=time_chart,
        pareto_front=pareto_front,
        effect_tests=_paired_tests(findings, effect_tests, "axis"),
        selection_tests=_paired_tests(findings, selection_tests, "condition"),
        n_selection_tests=len(selection_tests),
        cells=_all_cells(findings),
        problems=_problems(findings),
        methods=method_paragraphs(findings),
        commands=commands,
        versions=versions,
    )


# --- Differences ---


def _main_effects(findings: Findings) -> dict[str, Table]:
    """Return a table for each axis: its values compared with the first one."""
    tables = {}
    for axis, values in findings.axes.items():
        against_first = [
            effect for effect in findings.effects if effect.axis == axis and effect.b == values[0]
        ]
        if not against_first:
            continue
        span = span_of((effect.interval95 for effect in against_first), zero=True)
        rows = []
        for effect in against_first:
            name = TableCell(findings.shown(axis, effect.a), is_header=True)
            rows.append([name, *_difference_cells(effect, span)])
        columns = [f"compared with {findings.shown(axis, values[0])}", *_difference_columns(span)]
        tables[axis] = Table(f"main effect of {axis}", columns, rows, sortable=False)
    return tables


def _selection_tests(findings: Findings) -> list[tuple[Effect, str]]:
    """Return the comparisons of selected classifiers with the others, and their condition."""
    tests: list[tuple[Effect, str]] = []
    for selection in findings.selections:
        condition = selection.condition or "all"
        tests.extend((effect, condition) for effect in selection.versus)
    return tests


def _paired_tests(
    findings: Findings, tests: Sequence[tuple[Effect, str]], group: str
) -> Table | None:
    """Return a table of comparisons, each with the group it belongs to."""
    if not tests:
        return None
    span = span_of((effect.better_first().interval95 for effect, _ in tests), zero=True)
    rows = []
    for effect, name in tests:
        effect = effect.better_first()
        rows.append(
            [
                TableCell(name),
                TableCell(findings.shown(effect.axis, effect.a), is_header=True),
                TableCell(findings.shown(effect.axis, effect.b)),
                *_difference_cells(effect, span),
                TableCell(
                    "significant" if effect.significant else "not significant", kind="number"
                ),
            ]
        )
    columns = [group, "higher", "lower", *_difference_columns(span), "after Holm correction"]
    return Table("paired tests", columns, rows)


def _difference_cells(effect: Effect, span: Range) -> list[TableCell]:
    """Return a difference as a bar and in numbers, for ``_difference_columns``."""
    value, interval = effect.difference, effect.interval95
    return [
        interval_cell(value, interval, span, significant=effect.significant, zero=True),
        number_cell(estimate_text(value, interval, signed=True), value),
        number_cell(p_text(effect.p), effect.p),
        number_cell(p_text(effect.p_holm), effect.p_holm),
        number_cell(str(effect.cells), effect.cells),
        number_cell(str(effect.n), effect.n),
    ]


def _difference_columns(span: Range) -> list[str]:
    return [
        _points_scale(span),
        "difference, points (unadjusted 95% CI)",
        "unadjusted p",
        "Holm-adjusted p",
        "cells",
        "n",
    ]


def _standing_cell(standing: Standing | None) -> TableCell:
    """Return whether a classifier is the best, or not significantly different from it."""
    if standing is None:
        return TableCell(sort="", kind="standing")
    if standing.p_holm is None:
        return TableCell("best", 2.0, "standing best")
    title = f"{standing_text(standing)}, Holm correction over {standing.comparisons} pairs"
    text = "not significantly different" if standing.is_tied else "significantly worse"
    kind = "standing tied" if standing.is_tied else "standing"
    return TableCell(text, standing.p_holm, kind, title, detail=format_p_value(standing.p_holm))


def _points_scale(span: Range) -> str:
    """Return the header of a column of bars: the differences at its left and its right edge."""
    return f"{100 * span[0]:+.1f} to {100 * span[1]:+.1f}"


def _percent_scale(span: Range) -> str:
    """Return the header of a column of bars: the percentages at its left and its right edge."""
    return f"{100 * span[0]:.0f} to {100 * span[1]:.0f}%"


# --- Long tail and robustness ---


def _long_tail(findings: Findings) -> dict[str, Table]:
    """Return a table of corrections for each training set, by its name (empty for the only one)."""
    rows = long_tail(findings)
    span = span_of(row.mean.interval95 for row in rows)
    by_condition: dict[str, list[LongTailRow]] = {}
    for row in rows:
        by_condition.setdefault(row.condition, []).append(row)
    columns = [
        "correction",
        _percent_scale(span),
        "balanced accuracy, % (95% CI)",
        _STANDING_COLUMN,
        "gain, points (unadjusted 95% CI)",
        "Holm-adjusted p",
        "values tried",
        *_GROUPS,
        "seeds",
        "n",
    ]
    tables = {}
    for condition, members in by_condition.items():
        cells = [_correction_cells(row, span) for row in members]
        tables[condition] = Table("balanced accuracy by correction", columns, cells)
    return tables


def _correction_cells(row: LongTailRow, span: Range) -> list[TableCell]:
    mean, gain = row.mean, row.gain
    gain_cell, p_cell = number_cell("", ""), number_cell("", "")
    if gain:
        gain_cell = number_cell(
            estimate_text(gain.difference, gain.interval95, signed=True), gain.difference
        )
        p_cell = number_cell(p_text(gain.p_holm), gain.p_holm)
    group_cells = []
    for name in _GROUPS:
        average = row.groups.get(name)
        group_cells.append(
            number_cell(average_text(average), average.value) if average else number_cell("", "")
        )
    return [
        TableCell(row.balance, is_header=True),
        interval_cell(
            mean.value, mean.interval95, span, significant=gain is None or gain.significant
        ),
        number_cell(average_text(mean), mean.value),
        _standing_cell(row.standing),
        gain_cell,
        p_cell,
        number_cell(str(row.candidates), row.candidates),
        *group_cells,
        number_cell(str(mean.seeds), mean.seeds),
        number_cell(str(mean.n), mean.n),
    ]


def _robustness(findings: Findings) -> dict[str, Table]:
    """Return the drops by classifier and by perturbation; nothing unless perturbations vary."""
    by_choice, by_perturbation = drops_by_classifier(findings), drops_by_perturbation(findings)
    if not by_perturbation:
        return {}
    classifiers = [[TableCell(row.name or "the only one", is_header=True)] for row in by_choice]
    perturbations = []
    for row in by_perturbation:
        family, level = family_and_level(row.name)
        perturbations.append([TableCell(family, is_header=True), TableCell(level)])
    return {
        "By classifier, mean over perturbations": _drops(by_choice, ["classifier"], classifiers),
        "By perturbation, mean over classifiers": _drops(
            by_perturbation, ["family", "level"], perturbations
        ),
    }


def _drops(
    rows: Sequence[DropRow], name_columns: Sequence[str], names: Sequence[Sequence[TableCell]]
) -> Table:
    span = span_of((row.drop.interval95 for row in rows), zero=True)
    has_worst = any(row.worst for row in rows)
    has_standing = any(row.perturbed_standing for row in rows)
    columns = [
        *name_columns,
        "clean, % (95% CI)",
        "perturbed, % (95% CI)",
        *(["perturbed, " + _STANDING_COLUMN] if has_standing else []),
        _points_scale(span),
        "drop, points (unadjusted 95% CI)",
        "Holm-adjusted p",
        "relative drop, % (95% CI)",
        *(["worst family, %"] if has_worst else []),
        "cells",
        "n",
    ]
    lines = []
    for row, name_cells in zip(rows, names, strict=True):
        drop = row.drop
        worst = TableCell(f"{row.worst[0]} ({100 * row.worst[1]:.1f})" if row.worst else "")
        lines.append(
            [
                *name_cells,
                number_cell(average_text(row.clean), row.clean.value),
                number_cell(average_text(row.perturbed), row.perturbed.value),
                *([_standing_cell(row.perturbed_standing)] if has_standing else []),
                interval_cell(
                    drop.difference, drop.interval95, span, significant=drop.significant, zero=True
                ),
                number_cell(estimate_text(drop.difference, drop.interval95), drop.difference),
                number_cell(p_text(drop.p_holm), drop.p_holm),
                number_cell(estimate_text(row.relative, row.relative_interval95), row.relative),
                *([worst] if has_worst else []),
                number_cell(str(drop.cells), drop.cells),
                number_cell(str(drop.n), drop.n),
            ]
        )
    return Table("accuracy drop under perturbations", columns, lines)


# --- Heat maps and time ---


def _heat_maps(findings: Findings) -> dict[str, Table]:
    """Return the mean metric by every two axes; the longer axis is down."""
    axes = [axis for axis in findings.axes if axis != SEED]
    tables = {}
    for first, second in combinations(axes, 2):
        down, across = first, second
        if len(findings.axes[second]) > len(findings.axes[first]):
            down, across = second, first
        tables[f"{across} by {down}"] = _heat_map(findings, down, across)
    return tables


def _heat_map(findings: Findings, down: str, across: str) -> Table:
    groups = grouped(findings.scored, [down, across])
    means = {values: findings.mean(cells) for values, cells in groups.items()}
    span = _colour_span([mean.value for mean in means.values()])
    rows = []
    for row in findings.axes[down]:
        cells = [TableCell(findings.shown(down, row), is_header=True)]
        for column in findings.axes[across]:
            cells.append(_heat_cell(means.get((row, column)), span))
        rows.append(cells)
    columns = [
        f"{down} ↓ {across} →",
        *(findings.shown(across, value) for value in findings.axes[across]),
    ]
    caption = f"{metric_name(findings)}, {down} by {across}"
    return Table(caption, columns, rows, sortable=False, is_heat_map=True)


def _heat_cell(mean: Average | None, span: Range) -> TableCell:
    if mean is None:
        return TableCell("–", title="no result")
    return TableCell(
        text=f"{100 * mean.value:.1f}",
        detail=interval_text(mean.interval95),
        sort=mean.value,
        kind=colour_class(mean.value, span),
        title=f"{average_text(mean)}%, {basis_text(mean)}",
    )


def _colour_span(values: Sequence[float]) -> Range:
    """Return the range of the colours: at least five points, so that noise does not stand out."""
    low, high = min(values, default=0.5), max(values, default=0.5)
    missing = max(0.0, 0.05 - (high - low)) / 2
    return low - missing, high + missing


def _accuracy_over_time(findings: Findings) -> tuple[ScatterChart | None, list[str]]:
    """Return the metric over time, one point for each classifier, and the Pareto front in words."""
    classifiers = _complete_classifiers(findings)
    if len(classifiers) < 2:
        return None, []
    timed = []
    for name, cells in classifiers:
        timed.append((fmean(cell.seconds for cell, _ in cells), findings.mean(cells), name))
    timed.sort(key=lambda entry: (entry[0], -entry[1].value))
    points: list[ScatterPoint] = []
    front: list[str] = []
    best = -1.0
    for seconds, mean, name in timed:
        text = f"{name}: {average_text(mean)}% in {duration_text(seconds)} ({basis_text(mean)})"
        label = ""
        if mean.value > best:
            best = mean.value
            front.append(text)
            label = str(len(front))
        points.append(ScatterPoint(seconds, mean.value, mean.interval95, text, label))
    chart = scatter_chart(
        points, x_label="seconds to fit and evaluate", y_label=f"{metric_name(findings)} (%)"
    )
    return chart, front


def _complete_classifiers(findings: Findings) -> list[tuple[str, list[ScoredCell]]]:
    """Return the classifiers with results and times in the most unperturbed cells.

    Means over fewer cells would not be comparable.
    """
    groups = grouped(unperturbed(findings), findings.classifier_axes).values()
    timed = []
    for cells in groups:
        if all(cell.seconds > 0 for cell, _ in cells):
            timed.append(cells)
    most = max(map(len, timed), default=0)
    complete = []
    for cells in timed:
        if len(cells) == most:
            complete.append((findings.label(cells[0][0].values, findings.classifier_axes), cells))
    return complete


# --- Cells ---


def _all_cells(findings: Findings) -> Table:
    """Return one row for every cell."""
    span = span_of(findings.score(cell)[1] for cell, _ in findings.scored)
    axes = list(findings.axes)
    others = {BALANCED_ACCURACY: TOP1, MEAN_AVERAGE_PRECISION: "macro F1"}
    other_metric = others.get(findings.metric, BALANCED_ACCURACY)
    columns = [
        *axes,
        f"{findings.metric}, % (95% CI)",
        _percent_scale(span),
        _STANDING_COLUMN,
        f"{other_metric}, % (95% CI)",
        "n",
        "time",
        "status",
    ]
    rows = [
        [*_axis_cells(findings, cell), *_result_cells(findings, cell, span)]
        for cell in findings.cells
    ]
    return Table("all cells", columns, rows)


def _axis_cells(findings: Findings, cell: CellResult) -> list[TableCell]:
    cells = []
    for axis in findings.axes:
        value = cell.values.get(axis, "")
        text = findings.shown(axis, value)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        cells.append(number_cell(text, value) if is_number else TableCell(text))
    return cells


def _result_cells(findings: Findings, cell: CellResult, span: Range) -> list[TableCell]:
    report = cell.report
    if report is None:
        empty = number_cell("", "")
        status = TableCell(cell.status, kind="error", title=cell.reason)
        no_standing = TableCell(sort="", kind="standing")
        return [empty, TableCell(sort="", kind="chart"), no_standing, empty, empty, empty, status]
    value, interval = findings.score(cell)
    shown = report.headline if findings.metric == BALANCED_ACCURACY else report.second
    other, other_interval = shown.value, shown.interval95
    return [
        number_cell(estimate_text(value, interval), value),
        interval_cell(value, interval, span),
        _standing_cell(findings.standing(cell.values)),
        number_cell(estimate_text(other, other_interval), other),
        number_cell(str(report.n), report.n),
        number_cell(duration_text(cell.seconds), cell.seconds),
        TableCell(_status(cell), cell.status, title=cell.reason),
    ]


def _problems(findings: Findings) -> Table | None:
    """Return the cells without a result or with a warning; None if there is none."""
    rows = []
    for cell in findings.cells:
        if cell.status == "ok" and not cell.reason:
            continue
        rows.append(
            [
                TableCell(_status(cell), is_header=True),
                TableCell(findings.label(cell.values, findings.axes) or "the only cell"),
                TableCell(cell.reason, kind="text"),
                TableCell(cell.log),
            ]
        )
    return (
        Table("skipped, failed and warned cells", ["status", "cell", "reason", "log"], rows)
        if rows
        else None
    )


def _status(cell: CellResult) -> str:
    return "ok, with warnings" if cell.status == "ok" and cell.reason else cell.status
