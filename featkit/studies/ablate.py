"""A grid of data, backbones, weights, layers, heads and seeds: each cell a run, all of them one table."""

from __future__ import annotations

import csv
import io
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from featkit.embeddings.pipeline import Compute
from featkit.embeddings.recipe import digest
from featkit.embeddings.request import Request
from featkit.errors import FeatkitError, MissingExtraError, SpecError, WeightsError
from featkit.evaluation.report import Report
from featkit.registry import unknown
from featkit.studies.run import fit_run
from featkit.studies.source import Source, open_source

AXES = ("data", "backbone", "weights", "layer", "head", "seed")
HEADS = ("linear", "svm", "knn", "mlp", "prototypical")
_COLUMNS = ("n", "top1", "low", "high", "top5", "balanced_accuracy", "macro_f1", "fit_seconds")


@dataclass(frozen=True)
class Grid:
    """Values along each axis, and options that stay the same in every cell.

    Attributes:
        name: short name of the study.
        axes: for each of ``AXES`` its values; the cells are their product.
        fixed: other fields of ``Request``.
    """

    name: str
    axes: Mapping[str, Sequence[Any]]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """12 hex digits over the axes and the fixed options."""
        return digest([json.dumps([dict(self.axes), dict(self.fixed)], sort_keys=True)])[:12]

    def cells(self) -> list[dict[str, Any]]:
        """Return the product of the axes, heads innermost, so that neighbours share a cache file."""
        order = [axis for axis in AXES if axis != "head"] + ["head"]
        return [dict(zip(order, values, strict=True)) for values in product(*(self.axes[axis] for axis in order))]


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        values: the cell's place on each axis.
        status: ``ok``; ``skipped`` where weights or an extra are not to be had; ``failed``.
        reason: why it is not ``ok``, or what the report warns of.
        data: short name of the images.
        weights: label of the weights, which says so if they are untrained.
        run: the id that `featkit fit` gives the same run.
        report: None unless ``ok``.
    """

    values: Mapping[str, Any]
    status: str
    reason: str = ""
    data: str = ""
    weights: str = ""
    run: str = ""
    report: Report | None = None


def default_axes(given: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Return the built-in grid with the axes that were given in place of its own."""
    built_in: dict[str, Sequence[Any]] = {
        "data": ("digits",),
        "backbone": ("resnet18",),
        "weights": ("imagenet", "random"),
        "layer": ("",),
        "head": HEADS,
        "seed": (0,),
    }
    return {axis: tuple(given.get(axis) or values) for axis, values in built_in.items()}


def read_grid(path: Path) -> Grid:
    """Read ``[axes]`` and ``[fixed]`` from a TOML file; an axis that is not named has its built-in value.

    Environment variables, as in ``$HOME/photos``, are replaced by their values when a cell is run.

    Raises:
        SpecError: if the file is not there, is not TOML, or names an axis or option that nobody knows.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"{path} cannot be read as a grid: {error}") from error
    _known("part of a grid", document, ["name", "axes", "fixed"])
    axes, fixed = (_table(path, document, part) for part in ("axes", "fixed"))
    _known("axis", axes, list(AXES))
    _known("fixed option", fixed, [name.name for name in fields(Request) if name.name not in AXES])
    for axis, values in axes.items():
        if not isinstance(values, list) or not values:
            raise SpecError(f"{path}: axis {axis} must be a list of at least one value, such as {axis} = [...]")
    narrowed = {"weights": ("imagenet",), **axes}
    return Grid(str(document.get("name", path.stem)), default_axes(narrowed), fixed)


def _expanded(value: Any) -> Any:
    """Put environment variables such as ``$HOME`` into a text."""
    return os.path.expandvars(value) if isinstance(value, str) else value


def _table(path: Path, document: Mapping[str, Any], part: str) -> dict[str, Any]:
    found = document.get(part, {})
    if not isinstance(found, dict):
        raise SpecError(f"{path}: {part} must be a table: write [{part}] and, below it, name = value")
    return found


def _known(kind: str, found: Mapping[str, Any], known: list[str]) -> None:
    for name in found:
        if name not in known:
            raise unknown(kind, name, known)


def run_cells(grid: Grid, cache: Path, compute: Compute) -> Iterator[Cell]:
    """Yield every cell of the grid; what goes wrong in one is its row, and the next one is run.

    Vectors are extracted once for all the heads that share them; if that fails, it fails once.
    """
    sources: dict[str, Source | Exception] = {}
    for values in grid.cells():
        given = {name: value for name, value in values.items() if name != "head"}
        given = {**grid.fixed, **given, "layer": values["layer"] or None}
        given = {name: _expanded(value) for name, value in given.items()}
        place = json.dumps(given, sort_keys=True)
        if place not in sources:
            sources.clear()
            sources[place] = _attempt_source(given, cache, compute)
        yield _run_cell(values, sources[place])


def _attempt_source(given: Mapping[str, Any], cache: Path, compute: Compute) -> Source | Exception:
    try:
        return open_source(given, cache, compute)
    except Exception as error:  # whatever it is, the other cells go on
        return error


def _run_cell(values: Mapping[str, Any], source: Source | Exception) -> Cell:
    if isinstance(source, Exception):
        return _failed(values, source, str(values["data"]))
    try:
        run = fit_run(source, values["head"], seed=values["seed"])
    except Exception as error:  # whatever it is, the other cells go on
        return _failed(values, error, source.data)
    warnings = "; ".join(run.report.warnings)
    return Cell(values, "ok", warnings, source.data, source.weights, run.id, run.report)


def _failed(values: Mapping[str, Any], error: Exception, data: str) -> Cell:
    status = "skipped" if isinstance(error, WeightsError | MissingExtraError) else "failed"
    text = str(error) if isinstance(error, FeatkitError) else f"{type(error).__name__}: {error}"
    return Cell(values, status, " ".join(text.split()), data)


def ranked(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells, best top-1 first, those without a report last."""
    return sorted(cells, key=lambda cell: -cell.report.top1 if cell.report else 1)


def to_csv(cells: Sequence[Cell]) -> str:
    """Return one line for each cell, with its interval, its cost and what went wrong."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*AXES, "status", *_COLUMNS, "weights_used", "run", "reason"])
    for cell in cells:
        place = [cell.values[axis] for axis in AXES]
        writer.writerow([*place, cell.status, *_numbers(cell.report), cell.weights, cell.run, cell.reason])
    return out.getvalue()


def _numbers(report: Report | None) -> list[Any]:
    if report is None:
        return [""] * len(_COLUMNS)
    low, high = report.interval95
    scores = [report.n, report.top1, low, high, report.top5, report.balanced_accuracy, report.macro_f1]
    return [*scores, round(report.cost["fit_seconds"], 3)]


def to_json(grid: Grid, cells: Sequence[Cell]) -> str:
    """Return the grid and every cell with its whole report, as indented JSON without times."""
    rows = [
        {
            **cell.values,
            "status": cell.status,
            "reason": cell.reason,
            "weights_used": cell.weights,
            "run": cell.run,
            "report": cell.report.to_dict() if cell.report else None,
        }
        for cell in cells
    ]
    return json.dumps({"name": grid.name, "axes": dict(grid.axes), "fixed": dict(grid.fixed), "cells": rows}, indent=2)
