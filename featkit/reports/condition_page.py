"""The parts of a matrix's page about long tails and perturbations."""

from __future__ import annotations

from collections.abc import Sequence

from featkit.ablation.conditions import (
    DropRow,
    LongTailRow,
    drops_by_choice,
    drops_by_perturbation,
    family_and_level,
    long_tail,
)
from featkit.ablation.effects import Findings
from featkit.evaluation.effects import Average
from featkit.reports.ablation_page import drawn, number, span_of
from featkit.reports.markup import Html, join, tag
from featkit.reports.page import TableCell, paragraphs, table
from featkit.reports.wording import points, share

_GROUPS = ("many", "medium", "few")


def long_tail_part(findings: Findings) -> Html | None:
    """Return balanced accuracy by training set and correction; None unless one of them varies."""
    rows = long_tail(findings)
    if not rows:
        return None
    span = span_of(row.mean.interval95 for row in rows)
    conditions = dict.fromkeys(row.condition for row in rows)
    about = (
        "Balanced accuracy in percent, and what a correction gains over none on the same test images. Many: classes of "
        "more than 100 training images; few: fewer than 20. Filled: the gain is claimed."
    )
    blocks: list[Html] = []
    for condition in conditions:
        blocks += [tag("h3", condition)] if condition else []
        blocks.append(_corrections([row for row in rows if row.condition == condition], span))
    return join(paragraphs(about), *blocks)


def _corrections(rows: Sequence[LongTailRow], span: tuple[float, float]) -> Html:
    columns = [
        "correction",
        f"{100 * span[0]:.0f} to {100 * span[1]:.0f} %",
        "balanced % (95 %)",
        "gain, points (95 %)",
    ]
    entries = [
        [
            TableCell(row.balance, head=True),
            drawn(row.mean.value, row.mean.interval95, span, doubt=row.gain is not None and not row.gain.significant),
            number(share(row.mean), row.mean.value),
            number(points(row.gain.difference, row.gain.interval95, signed=True), row.gain.difference)
            if row.gain
            else number("", ""),
            *[_group(row.groups.get(name)) for name in _GROUPS],
            number(str(row.mean.seeds), row.mean.seeds),
            number(str(row.mean.n), row.mean.n),
        ]
        for row in rows
    ]
    return table([*columns, *_GROUPS, "seeds", "n"], entries, caption="balanced accuracy by correction")


def _group(average: Average | None) -> TableCell:
    return number("", "") if average is None else number(share(average), average.value)


def robustness_part(findings: Findings) -> Html | None:
    """Return what perturbations cost, by classifier and by family and level; None unless perturbations vary."""
    choices, kinds = drops_by_choice(findings), drops_by_perturbation(findings)
    if not kinds:
        return None
    about = (
        f"Drop: {findings.metric} without perturbation less that with it, in points, on the same test images. "
        "Relative: as a share of that without perturbation."
    )
    return join(
        paragraphs(about),
        tag("h3", "Classifiers, over all perturbations"),
        _drops(choices, ["classifier"], [[TableCell(row.name or "the only one", head=True)] for row in choices]),
        tag("h3", "Families and levels, over all classifiers"),
        _drops(kinds, ["family", "level"], [_kind(row) for row in kinds]),
    )


def _kind(row: DropRow) -> list[TableCell]:
    family, level = family_and_level(row.name)
    return [TableCell(family, head=True), TableCell(level)]


def _drops(rows: Sequence[DropRow], names: Sequence[str], places: Sequence[list[TableCell]]) -> Html:
    span = span_of((row.drop.interval95 for row in rows), zero=True)
    pooled = any(row.worst for row in rows)
    entries = [
        [
            *place,
            number(share(row.clean), row.clean.value),
            number(share(row.perturbed), row.perturbed.value),
            drawn(row.drop.difference, row.drop.interval95, span, doubt=not row.drop.significant, zero=True),
            number(points(row.drop.difference, row.drop.interval95), row.drop.difference),
            number(points(row.relative, row.relative_interval95), row.relative),
            *([TableCell(f"{row.worst[0]} ({100 * row.worst[1]:.1f})" if row.worst else "")] if pooled else []),
            number(str(row.drop.cells), row.drop.cells),
            number(str(row.drop.n), row.drop.n),
        ]
        for row, place in zip(rows, places, strict=True)
    ]
    ends = f"{100 * span[0]:+.0f} to {100 * span[1]:+.0f}"
    columns = [*names, "clean % (95 %)", "perturbed % (95 %)", ends, "drop, points (95 %)", "relative % (95 %)"]
    return table([*columns, *(["worst family %"] if pooled else []), "cells", "n"], entries, caption="what is lost")
