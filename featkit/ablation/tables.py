"""Files of a finished grid: results as CSV and JSON, times, long-tail and robustness tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from featkit.ablation.cells import CellResult
from featkit.ablation.conditions import (
    DropRow,
    LongTailRow,
    drops_by_classifier,
    drops_by_classifier_and_perturbation,
    long_tail,
    standing_columns,
)
from featkit.ablation.grid import AXES
from featkit.ablation.run import AblationResult
from featkit.evaluation.multilabel import MultiLabelReport
from featkit.storage import Content, csv_text

_COLUMNS = (
    *AXES,
    "status",
    *(
        "n",
        "top1",
        "low",
        "high",
        "top5",
        "balanced_accuracy",
        "balanced_low",
        "balanced_high",
        "macro_f1",
    ),
    *("standing", "standing_p_holm"),
    *("many", "medium", "few", "val_balanced_accuracy"),
    *("weights_used", "run", "reason", "log"),
)
_MULTILABEL_COLUMNS = (
    *AXES,
    "status",
    "n",
    *("mean_average_precision", "mean_average_precision_low", "mean_average_precision_high"),
    *("micro_f1", "micro_f1_low", "micro_f1_high", "macro_f1", "macro_f1_low", "macro_f1_high"),
    *("standing", "standing_p_holm", "val_mean_average_precision"),
    *("weights_used", "run", "reason", "log"),
)
_LARGE = (
    "per_label",
    "per_class",
    "confusion",
    "confused",
    "reliability",
    "reliability_calibrated",
)
"""Parts of a report that are stored with its cell only."""


def best_first(cells: Sequence[CellResult]) -> list[CellResult]:
    """Return the cells by descending top-1 accuracy or mAP, those without a report last."""
    return sorted(cells, key=lambda cell: -cell.report.headline.value if cell.report else 1)


def result_files(result: AblationResult, baseline: str = "") -> dict[str, Content]:
    """Return the content of each result file; all but ``times.csv`` are reproducible.

    Args:
        result: its cells are written best first.
        baseline: backbone whose errors are the unit of the mean corruption error; empty for the
            first of the grid.
    """
    cells = best_first(result.cells)
    findings = result.findings
    baseline = baseline or str(result.grid.values("backbone")[0])
    rows: dict[str, Sequence[LongTailRow | DropRow]] = {
        "longtail": long_tail(findings),
        "robustness": drops_by_classifier_and_perturbation(findings),
        "robustness_heads": drops_by_classifier(findings, baseline),
    }
    tables = {}
    for name, found in rows.items():
        if found:
            tables[name] = [row.to_dict() for row in found]
    files: dict[str, Content] = {
        "results.csv": csv_text([result.row(cell) for cell in cells], _columns(cells)),
        "times.csv": csv_text([_time_row(cell) for cell in cells]),
        "results.json": _to_json(result, cells, tables),
    }
    for name, table in tables.items():
        files[f"{name}.csv"] = csv_text(table)
    return files


def _columns(cells: Sequence[CellResult]) -> Sequence[str]:
    several = any(isinstance(cell.report, MultiLabelReport) for cell in cells)
    return _MULTILABEL_COLUMNS if several else _COLUMNS


def _time_row(cell: CellResult) -> dict[str, Any]:
    """Return the seconds of fitting, which cells with the same head share, and of prediction."""
    names = ("fit_seconds", "predict_seconds")
    if cell.report is None:
        return {**cell.values, **dict.fromkeys(names)}
    cost = cell.report.cost
    return {**cell.values, **{name: f"{cost[name]:.4f}" for name in names}}


def _to_json(result: AblationResult, cells: Sequence[CellResult], tables: Mapping[str, Any]) -> str:
    """Return the grid and all cells as JSON, without times and large parts of the reports."""
    grid = result.grid
    rows = []
    for cell in cells:
        report = cell.report.to_dict() if cell.report else None
        if report is not None:
            report = {name: value for name, value in report.items() if name not in _LARGE}
        row = {
            **cell.values,
            "status": cell.status,
            "reason": cell.reason,
            "log": cell.log,
            "weights_used": cell.weights,
            "run": cell.run,
            "report": report,
        }
        if report is not None:
            row |= standing_columns(result.findings.standing(cell.values))
        rows.append(row)
    content = {
        "name": grid.name,
        "axes": {axis: list(grid.values(axis)) for axis in AXES},
        "fixed": dict(grid.fixed),
        "skip": [{"when": dict(rule.when), "why": rule.why} for rule in grid.skips],
        "cells": rows,
        **tables,
    }
    return json.dumps(content, indent=2)
