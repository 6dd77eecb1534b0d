"""A matrix as files: a line for each cell, times apart, and what long tails and perturbations cost."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from featkit.ablation.cells import CellResult
from featkit.ablation.grid import AXES
from featkit.ablation.run import AblationResult
from featkit.evaluation.report import Report
from featkit.storage import Content
from featkit.studies.longtail import tail_rows
from featkit.studies.robustness import head_rows, level_rows

_SCORES = ("n", "top1", "low", "high", "top5", "balanced_accuracy", "balanced_low", "balanced_high", "macro_f1")
_GROUPS = ("many", "medium", "few")
_LARGE = ("per_class", "confusion", "confused", "reliability", "reliability_calibrated")
"""Parts of a report that are kept with its cell alone."""


def best_first(cells: Sequence[CellResult]) -> list[CellResult]:
    """Return the cells, best top-1 first, those without a report last."""
    return sorted(cells, key=lambda cell: -cell.report.top1 if cell.report else 1)


def result_files(matrix: AblationResult, baseline: str = "") -> dict[str, Content]:
    """Return results and times, by the name of the file; all but ``times.csv`` are the same from run to run.

    Args:
        matrix: its cells are written best first.
        baseline: the backbone that errors are measured against; empty for the first of the grid.
    """
    cells = best_first(matrix.cells)
    baseline = baseline or str(matrix.grid.values("backbone")[0])
    further = {
        "longtail": [row.to_dict() for row in tail_rows(cells)] if _about_tails(matrix) else [],
        "robustness": [row.to_dict() for row in level_rows(cells)],
        "robustness_heads": [row.to_dict() for row in head_rows(cells, baseline)],
    }
    further = {name: rows for name, rows in further.items() if rows}
    return {
        "results.csv": to_csv(cells),
        "times.csv": times_csv(cells),
        "results.json": to_json(matrix, cells, further),
        **{f"{name}.csv": _flat_csv(rows) for name, rows in further.items()},
    }


def _about_tails(matrix: AblationResult) -> bool:
    return any(len(matrix.grid.values(axis)) > 1 for axis in ("balance", "subset"))


def to_csv(cells: Sequence[CellResult]) -> str:
    """Return one line for each cell, with its intervals and what went wrong."""
    header = [*AXES, "status", *_SCORES, *_GROUPS, "val_balanced_accuracy", "weights_used", "run", "reason", "log"]
    rows = [
        [*cell.values.values(), cell.status, *_numbers(cell), cell.weights, cell.run, cell.reason, cell.log]
        for cell in cells
    ]
    return _csv(header, rows)


def _numbers(cell: CellResult) -> list[Any]:
    report = cell.report
    if report is None:
        return [""] * (len(_SCORES) + len(_GROUPS) + 1)
    groups = {row.name: row.top1 for row in report.groups or ()}
    return [
        *(report.n, report.top1, *report.interval95, report.top5),
        *(report.balanced_accuracy, *report.balanced_interval95, report.macro_f1),
        *(groups.get(name, "") for name in _GROUPS),
        cell.val_score,
    ]


def times_csv(cells: Sequence[CellResult]) -> str:
    """Return one line for each cell: seconds of its fit, which several cells may share, and of judging it."""
    names = ("fit_seconds", "predict_seconds")
    rows = [[*cell.values.values(), *(_cost(cell.report, name) for name in names)] for cell in cells]
    return _csv([*AXES, *names], rows)


def _cost(report: Report | None, name: str) -> str:
    return f"{report.cost[name]:.4f}" if report else ""


def to_json(matrix: AblationResult, cells: Sequence[CellResult], further: Mapping[str, Any]) -> str:
    """Return the grid and every cell with its report, as JSON without times; what is large stays with the cell."""
    grid = matrix.grid
    rows = [
        {
            **cell.values,
            "status": cell.status,
            "reason": cell.reason,
            "log": cell.log,
            "weights_used": cell.weights,
            "run": cell.run,
            "report": _without_large(cell.report.to_dict()) if cell.report else None,
        }
        for cell in cells
    ]
    skips = [{"when": dict(rule.when), "why": rule.why} for rule in grid.skips]
    head = {"name": grid.name, "axes": {axis: list(grid.values(axis)) for axis in AXES}, "fixed": dict(grid.fixed)}
    return json.dumps({**head, "skip": skips, "cells": rows, **further}, indent=2)


def _without_large(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name not in _LARGE}


def _flat_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as lines; an interval becomes two columns, the place on the axes as many as it has."""
    flat = [dict(_flat(row)) for row in rows]
    header = list(dict.fromkeys(name for row in flat for name in row))
    return _csv(header, [[row.get(name, "") for name in header] for row in flat])


def _flat(row: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from value.items()
        elif isinstance(value, tuple):
            share, ends = value if isinstance(value[1], tuple) else (None, value)
            stem = name.removesuffix("_interval95").removesuffix("interval95")
            yield from [] if share is None else [(name, share)]
            yield f"{stem}_low".lstrip("_"), ends[0]
            yield f"{stem}_high".lstrip("_"), ends[1]
        elif value is not None:
            yield name, value


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
