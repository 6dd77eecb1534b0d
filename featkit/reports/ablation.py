"""The report of a matrix: a page to show, and a summary to quote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from featkit.ablation.cells import CellResult
from featkit.ablation.effects import Findings, find
from featkit.ablation.grid import AXES
from featkit.ablation.run import AblationResult
from featkit.ablation.tables import matrix_files
from featkit.evaluation.effects import SEED
from featkit.reports.ablation_page import (
    cells_part,
    effects_part,
    heat_part,
    pairs_part,
    pareto_part,
    summary_part,
    troubles_part,
)
from featkit.reports.condition_page import long_tail_part, robustness_part
from featkit.reports.figures import ablation_figures
from featkit.reports.markup import Html, join, tag
from featkit.reports.page import page, paragraphs
from featkit.reports.summary import summary_text
from featkit.reports.wording import PROTOCOL, counts, duration, scope
from featkit.runs.fit import PACKAGES
from featkit.storage import Content


def ablation_files(
    matrix: AblationResult, *, command: str, baseline: str = "", wall_seconds: float | None = None
) -> dict[str, Content]:
    """Return every file of a finished grid by name: tables, results, report, summary and heat map.

    Args:
        matrix: the result of the grid.
        command: how it was started, as shown in the report.
        baseline: the backbone that corruption errors are relative to; empty for the first of the grid.
        wall_seconds: duration of the whole grid; None if it was interrupted and resumed.
    """
    report = write_report(
        matrix.grid.name,
        {axis: matrix.grid.values(axis) for axis in AXES},
        matrix.cells,
        commands=[command],
        versions={name: version(name) for name in PACKAGES},
        wall_seconds=wall_seconds,
    )
    return {**matrix_files(matrix, baseline), **report, **ablation_figures(matrix)}


def write_report(
    name: str,
    axes: Mapping[str, Sequence[Any]],
    cells: Sequence[CellResult],
    *,
    commands: Sequence[str],
    versions: Mapping[str, str],
    wall_seconds: float | None = None,
) -> dict[str, str | bytes]:
    """Return ``report.html`` and ``summary.md`` by name.

    The page is one file that opens from disk, reaches for nothing and runs no script but its own. The same cells give
    the same files, but for times.

    Args:
        name: of the study.
        axes: the values of each axis; ``none``, else the first, is what the others are compared with.
        cells: what came of each place, in any order.
        commands: what was typed to get here.
        versions: of packages, by name.
        wall_seconds: that the whole matrix took.
    """
    findings = find(name, axes, cells)
    lead = [counts(findings), *scope(findings), *([f"made in {duration(wall_seconds)}"] if wall_seconds else [])]
    html = page(name, "; ".join(lead), _parts(findings, commands, versions))
    return {"report.html": html, "summary.md": summary_text(findings, lead, commands)}


def _parts(findings: Findings, commands: Sequence[str], versions: Mapping[str, str]) -> dict[str, Html]:
    parts: dict[str, Html | None] = {
        "In short": summary_part(findings),
        "Main effects": effects_part(findings) if findings.effects else None,
        "Long tail": long_tail_part(findings),
        "Robustness": robustness_part(findings),
        "Two axes": heat_part(findings) if len(set(findings.axes) - {SEED}) > 1 else None,
        "Accuracy over time": pareto_part(findings),
        "Which differ": pairs_part(findings),
        "All cells": cells_part(findings),
        "Skipped, failed, warned": troubles_part(findings),
        "How it was made": _made(commands, versions),
    }
    return {heading: part for heading, part in parts.items() if part is not None}


def _made(commands: Sequence[str], versions: Mapping[str, str]) -> Html:
    shown = ", ".join(f"{package} {version}" for package, version in versions.items())
    lines = Html("\n").join(join(line) for line in commands)
    return join(paragraphs(*PROTOCOL), tag("pre", tag("code", Html(lines))), paragraphs(shown))
