"""The page of a matrix: each part a function from findings to markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import fmean

from featkit.ablation.cells import CellResult
from featkit.ablation.effects import DATA, Findings, ScoredCell, grouped, unperturbed
from featkit.evaluation.effects import SEED, Average, Effect
from featkit.reports.charts import Range, ScatterPoint, interval_bar, scatter, shade
from featkit.reports.markup import Html, join, tag
from featkit.reports.page import TableCell, bullets, paragraphs, switch, table
from featkit.reports.wording import (
    NOT_CHOSEN,
    basis,
    chance,
    chosen_sentence,
    duration,
    effect_sentence,
    ends,
    points,
    share,
)


def number(shown: str, sort: float | str) -> TableCell:
    """Return an entry that stands to the right and is sorted by its value."""
    return TableCell(shown, sort, "number")


def drawn(value: float, interval: Range, span: Range, *, doubt: bool = False, zero: bool = False) -> TableCell:
    """Return an entry with an interval as a bar."""
    return TableCell(interval_bar(value, interval, span, doubt=doubt, zero=zero), value, "drawn")


def span_of(intervals: Iterable[Range], *, zero: bool = False) -> Range:
    """Return the range that holds all intervals, a little wider, and zero if asked."""
    ends = [end for interval in intervals for end in interval] + ([0.0] if zero else [])
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    margin = max(0.04 * (high - low), 0.002)
    return low - margin, high + margin


def summary_part(findings: Findings) -> Html:
    """Return what can be claimed, in sentences."""
    claims = [effect_sentence(findings, effect) for effect in findings.spoken if effect.significant]
    chosen = [chosen_sentence(findings, one) for one in findings.chosen]
    claimed = sum(effect.significant for effect in findings.effects)
    rest = f"Of {len(findings.effects)} main effects, {claimed} can be claimed."
    return join(bullets([*(chosen or [NOT_CHOSEN]), *claims]), paragraphs(rest))


def effects_part(findings: Findings) -> Html:
    """Return, axis by axis, what its values are worth against its first one."""
    blocks = []
    for axis, values in findings.axes.items():
        against = [effect for effect in findings.effects if effect.axis == axis and effect.b == values[0]]
        if against:
            blocks += [tag("h3", axis), _forest(findings, axis, against)]
    about = (
        "Difference from the first value of the axis, in points, averaged over the cells that agree on all other axes. "
        "Filled: claimed; hollow: not told apart from no difference."
    )
    left = "Data sets have different images and are not compared." if DATA in findings.axes else ""
    return join(paragraphs(about, *([left] if left else [])), *blocks)


def _forest(findings: Findings, axis: str, against: Sequence[Effect]) -> Html:
    span = span_of((effect.interval95 for effect in against), zero=True)
    rows = [[TableCell(findings.shown(axis, effect.a), head=True), *_difference(effect, span)] for effect in against]
    columns = [f"against {findings.shown(axis, against[0].b)}", *_difference_columns(span)]
    return table(columns, rows, caption=f"main effect of {axis}", sortable=False)


def heat_part(findings: Findings) -> Html:
    """Return a heat map for every two axes, the mean over all else in each place."""
    axes = [axis for axis in findings.axes if axis != SEED]
    panels = {f"{across} by {down}": _heat(findings, down, across) for down, across in _longer_down(findings, axes)}
    about = (
        f"Mean {findings.metric} in percent over all cells of a place, its 95 % interval below. Places may have "
        "different cells where some failed: point at one to see how many it has."
    )
    return join(paragraphs(about), switch("Axes", panels))


def _longer_down(findings: Findings, axes: Sequence[str]) -> list[tuple[str, str]]:
    pairs = combinations(axes, 2)
    return [(b, a) if len(findings.axes[b]) > len(findings.axes[a]) else (a, b) for a, b in pairs]


def _heat(findings: Findings, down: str, across: str) -> Html:
    means = {place: findings.mean(its) for place, its in grouped(findings.judged, [down, across]).items()}
    span = _colours([mean.value for mean in means.values()])
    rows = [
        [
            TableCell(findings.shown(down, row), head=True),
            *[_place_of(means.get((row, column)), span) for column in findings.axes[across]],
        ]
        for row in findings.axes[down]
    ]
    columns = [f"{down} ↓ {across} →", *(findings.shown(across, value) for value in findings.axes[across])]
    drawn = table(columns, rows, caption=f"{findings.metric}, {down} by {across}", sortable=False)
    return tag("div", drawn, class_="heat")


def _colours(values: Sequence[float]) -> Range:
    """Return the range of the colours, at least five points wide, so that noise does not look like a difference."""
    low, high = min(values, default=0.5), max(values, default=0.5)
    wanting = max(0.0, 0.05 - (high - low)) / 2
    return low - wanting, high + wanting


def _place_of(mean: Average | None, span: Range) -> TableCell:
    if mean is None:
        return TableCell("–", title="no result")
    shown = join(f"{100 * mean.value:.1f}", tag("small", ends(mean.interval95)))
    return TableCell(shown, mean.value, shade(mean.value, span), f"{share(mean)} %, {basis(mean)}")


def pareto_part(findings: Findings) -> Html:
    """Return accuracy over time, one point for each classifier, and a list of those that no other one dominates."""
    found = _complete(findings)
    if len(found) < 2:
        return paragraphs("Fewer than two classifiers have results and times to compare.")
    timed = [(label, findings.mean(its), fmean(cell.seconds for cell, _ in its)) for label, its in found]
    marked: list[ScatterPoint] = []
    front: list[str] = []
    best = -1.0
    for label, mean, seconds in sorted(timed, key=lambda one: (one[2], -one[1].value)):
        said = f"{label}: {share(mean)} % in {duration(seconds)} ({basis(mean)})"
        front += [said] if mean.value > best else []
        word = str(len(front)) if mean.value > best else ""
        marked.append(ScatterPoint(seconds, mean.value, mean.interval95, said, word))
        best = max(best, mean.value)
    about = (
        "Each point is a classifier, averaged over seeds and over whatever it was put to. Filled and numbered: no "
        "other is both faster and more accurate. Seen on test: to choose by it, check it on other images."
    )
    plot = scatter(marked, x_label="seconds to fit and judge", y_label=f"{findings.metric} (%)")
    return join(paragraphs(about), plot, bullets(front, ordered=True))


def _complete(findings: Findings) -> list[tuple[str, list[ScoredCell]]]:
    """Return classifiers with a result and a time in every cell that any of them has, perturbed ones left out."""
    groups = grouped(unperturbed(findings), findings.choice_axes).values()
    timed = [its for its in groups if all(cell.seconds > 0 for cell, _ in its)]
    most = max(map(len, timed), default=0)
    return [(findings.label(its[0][0].values, findings.choice_axes), its) for its in timed if len(its) == most]


def pairs_part(findings: Findings) -> Html:
    """Return every comparison that was made, with its p-value."""
    chosen = [(effect, one.condition or "all") for one in findings.chosen for effect in one.versus]
    main = [(effect, effect.axis) for effect in findings.effects]
    return join(
        tag("h3", f"Values of an axis, pooled over all else (one family of {len(main)})"),
        _pairs(findings, main, "axis") if main else paragraphs("No axis has two values to compare."),
        tag("h3", f"The classifier chosen on val against every other one (one family of {len(chosen)})"),
        _pairs(findings, chosen, "condition") if chosen else paragraphs(NOT_CHOSEN),
    )


def _pairs(findings: Findings, compared: Sequence[tuple[Effect, str]], about: str) -> Html:
    turned = [(effect.better_first(), group) for effect, group in compared]
    span = span_of((effect.interval95 for effect, _ in turned), zero=True)
    rows = [
        [
            TableCell(group),
            TableCell(findings.shown(effect.axis, effect.a), head=True),
            TableCell(findings.shown(effect.axis, effect.b)),
            *_difference(effect, span),
            TableCell("claimed" if effect.significant else "not claimed", kind="number"),
        ]
        for effect, group in turned
    ]
    columns = [about, "higher", "lower", *_difference_columns(span), "verdict"]
    return table(columns, rows, caption="differences and whether they can be claimed")


def _difference(effect: Effect, span: Range) -> list[TableCell]:
    """Return a difference as a bar and in numbers."""
    value, interval = effect.difference, effect.interval95
    return [
        drawn(value, interval, span, doubt=not effect.significant, zero=True),
        number(points(value, interval, signed=True), value),
        number(chance(effect.p), effect.p),
        number(chance(effect.p_holm), effect.p_holm),
        number(str(effect.cells), effect.cells),
        number(str(effect.n), effect.n),
    ]


def _difference_columns(span: Range) -> list[str]:
    return [f"{100 * span[0]:+.1f} to {100 * span[1]:+.1f}", "points (95 %)", "p", "Holm p", "cells", "n"]


def cells_part(findings: Findings) -> Html:
    """Return one row for every cell."""
    span = span_of(findings.score(cell)[1] for cell, _ in findings.judged)
    axes = list(findings.axes)
    rows = [[*_place(findings, cell, axes), *_result(findings, cell, span)] for cell in findings.cells]
    ends = f"{100 * span[0]:.0f} to {100 * span[1]:.0f} %"
    columns = [*axes, f"{findings.metric} % (95 %)", ends, _other_metric(findings), "n", "time", "status"]
    return table(columns, rows, caption="all cells")


def _other_metric(findings: Findings) -> str:
    return "balanced % (95 %)" if findings.metric == "top-1" else "top-1 % (95 %)"


def _place(findings: Findings, cell: CellResult, axes: Sequence[str]) -> list[TableCell]:
    values = [cell.values.get(axis, "") for axis in axes]
    shown = [findings.shown(axis, value) for axis, value in zip(axes, values, strict=True)]
    return [
        number(text, value) if isinstance(value, int) and not isinstance(value, bool) else TableCell(text)
        for text, value in zip(shown, values, strict=True)
    ]


def _result(findings: Findings, cell: CellResult, span: Range) -> list[TableCell]:
    if cell.report is None:
        nothing = [number("", ""), TableCell("", "", "drawn"), *[number("", "")] * 3]
        return [*nothing, TableCell(tag("span", cell.status, class_="bad"), cell.status, title=cell.reason)]
    (value, interval), report = findings.score(cell), cell.report
    other = (report.balanced_accuracy, report.balanced_interval95)
    if _other_metric(findings).startswith("top-1"):
        other = (report.top1, report.interval95)
    return [
        number(points(value, interval), value),
        drawn(value, interval, span),
        number(points(*other), other[0]),
        number(str(report.n), report.n),
        number(duration(cell.seconds), cell.seconds),
        TableCell("ok, warned" if cell.reason else "ok", cell.status, title=cell.reason or None),
    ]


def troubles_part(findings: Findings) -> Html:
    """Return the cells without a result with their reasons, and what the others warn of."""
    axes = list(findings.axes)
    rows = [
        [
            TableCell(cell.status if cell.status != "ok" else "ok, warned", head=True),
            TableCell(findings.label(cell.values, axes) or "the only cell"),
            TableCell(cell.reason, kind="text"),
            TableCell(cell.log),
        ]
        for cell in findings.cells
        if cell.reason or cell.status != "ok"
    ]
    if not rows:
        return paragraphs("Every cell has a result, and none warns of anything.")
    return table(["status", "cell", "reason", "log"], rows, caption="cells with something to say")
