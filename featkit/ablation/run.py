"""A matrix: every cell of a grid, each finished one on disk at once, and all of them one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from featkit.ablation.cells import SCHEMA, CellResult, failed_cell, lock_grid, read_cell, remove_cell
from featkit.ablation.effects import Findings, analyze_grid
from featkit.ablation.executors.local import LocalExecutor
from featkit.ablation.grid import AXES, AxisValue, Grid
from featkit.ablation.plan import CellFeatures, cell_features
from featkit.ablation.worker import CellCondition, CellTask, run_task
from featkit.embeddings.extract import Extractor
from featkit.embeddings.pipeline import Compute
from featkit.errors import RunError
from featkit.evaluation.display import data_frame, html_table
from featkit.runs.fit import RESULTS_VERSION, FitConfig
from featkit.storage import available_cores, digest


@dataclass(frozen=True)
class AblationResult:
    """A grid and the result of each cell, in the order of ``grid.cells()``."""

    grid: Grid
    cells: tuple[CellResult, ...]

    @cached_property
    def findings(self) -> Findings:
        """Effects of the axes and the selected classifiers."""
        axes = {axis: self.grid.values(axis) for axis in AXES}
        return analyze_grid(self.grid.name, axes, self.cells)

    def to_dict(self) -> dict[str, Any]:
        """Return the grid and one flat row per cell as JSON can hold them."""
        return {"name": self.grid.name, "fixed": dict(self.grid.fixed), "cells": self._rows()}

    def to_frame(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row per cell.

        Raises:
            FeatkitError: if pandas is not installed.
        """
        return data_frame(self._rows())

    def _repr_html_(self) -> str:
        return html_table(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        return [cell.to_row() for cell in self.cells]


@dataclass(frozen=True)
class Progress:
    """How far a matrix is, in cells."""

    total: int
    done: int
    failed: int
    running: int


@dataclass(frozen=True)
class AblationConfig:
    """Where and how a matrix is made; none of it decides a number.

    Attributes:
        out: folder of the results; cells are kept in ``<out>/<grid name>/cells``.
        cache: folder of the cache files.
        compute: how vectors are made where they are missing.
        jobs: how many heads are fitted at a time, each in a process of its own; 1 for in this process.
        note: told, in a line each, what was made again and who is waited for.
        progress: told whenever cells were finished.
    """

    out: Path
    cache: Path
    compute: Compute
    jobs: int = 1
    note: Callable[[str], None] = lambda text: None
    progress: Callable[[Progress], None] = lambda progress: None


@dataclass(frozen=True)
class PlannedCell:
    """A cell that is to be made.

    Attributes:
        values: its place on the axes.
        needs: its files of vectors.
        name: what it is called on disk.
    """

    values: Mapping[str, AxisValue]
    needs: CellFeatures
    name: str


def run_grid(grid: Grid, work: AblationConfig) -> AblationResult:
    """Make every cell of a grid that is not on disk yet, and return all; what goes wrong in one is its row.

    Vectors are made first, each file once. A head is fitted once for all cells that differ in their test images only.

    Raises:
        RunError: if another process is at work on the same matrix.
        StorageError: if the disk is full or cannot be written.
    """
    folder = work.out / grid.name / "cells"
    with lock_grid(folder):
        return AblationResult(grid, _Maker(grid, work, folder).run())


class _Maker:
    """The rows of a matrix by their places in ``grid.cells()``, as they come."""

    def __init__(self, grid: Grid, work: AblationConfig, folder: Path) -> None:
        self._places = grid.cells()
        self._place_of = {tuple(values.values()): place for place, values in enumerate(self._places)}
        self._grid = grid
        self._work = work
        self._folder = folder
        self._extractor = Extractor(work.cache, work.compute, work.note)
        self._rows: dict[int, CellResult] = {}

    def run(self) -> tuple[CellResult, ...]:
        self._keep(self._planned())
        self._extractor.extract_independently(request for each in self._planned().values() for request in each.needs.requests)
        left = self._keep(self._planned())  # an int8 network, once calibrated, may be one that cells were made with
        tasks = [self._task(cells) for cells in grouped(left.values())]
        self._report(running=min(self._work.jobs, len(tasks)))
        executor = LocalExecutor(self._work.jobs, available_cores())
        for done, finished in enumerate(executor.run(run_task, tasks), 1):
            self._take(tasks[finished.index], finished.result)
            self._report(running=min(self._work.jobs, len(tasks) - done))
        return tuple(self._rows[place] for place in range(len(self._places)))

    def _planned(self) -> dict[int, PlannedCell]:
        """Return the cells without a row yet; one that is left out, or whose vectors cannot be had, gets its row."""
        found = {}
        for place, values in enumerate(self._places):
            if place in self._rows:
                continue
            planned = plan_cell(self._grid, values, self._extractor)
            if isinstance(planned, PlannedCell):
                found[place] = planned
            elif isinstance(planned, str):
                self._rows[place] = CellResult(values, "skipped", planned)
            else:
                name = digest([str(values)])[:16]
                self._rows[place] = replace(failed_cell(self._folder, name, values, planned), data=str(values["data"]))
        return found

    def _keep(self, planned: Mapping[int, PlannedCell]) -> dict[int, PlannedCell]:
        """Take the rows of finished cells from the disk; return the cells that are to be made."""
        left = {}
        for place, each in planned.items():
            try:
                cell = read_cell(self._folder, each.name, each.values)
            except RunError as error:
                self._work.note(f"{error}: it is made again")
                remove_cell(self._folder, each.name)
                cell = None
            if cell:
                self._rows[place] = cell
            else:
                left[place] = each
        return left

    def _task(self, cells: Sequence[PlannedCell]) -> CellTask:
        needs = cells[0].needs
        job = self._extractor.plan(needs.clean)
        path = self._extractor.path
        return CellTask(
            folder=self._folder,
            config=self._grid.fit_config(cells[0].values),
            request=job.request,
            data=job.images.name,
            weights=job.backbone.weights,
            clean=path(needs.clean),
            splits=dict(zip(job.images.ids, job.images.splits.tolist(), strict=True)),
            views=path(needs.train_views) if needs.train_views else None,
            cells=tuple(
                CellCondition(
                    each.name,
                    each.values,
                    replace(job.request, perturb=each.needs.test.perturb if each.needs.test else None),
                    path(each.needs.test) if each.needs.test else None,
                )
                for each in cells
            ),
        )

    def _take(self, task: CellTask, lost: Sequence[CellResult] | None) -> None:
        """Take the rows of a task: from the disk, or those that say why there is nothing."""
        died = RunError("the process of this cell died: it was killed, or ran out of memory")
        rows = {self._place(cell.values): cell for cell in lost or ()}
        for each in task.cells:
            place = self._place(each.values)
            row = rows.get(place) or read_cell(self._folder, each.name, each.values)
            self._rows[place] = row or replace(
                failed_cell(self._folder, each.name, each.values, died), data=task.data, weights=task.weights
            )

    def _place(self, values: Mapping[str, AxisValue]) -> int:
        """Return a cell's place; two cells may share a name, where two values mean the same."""
        return self._place_of[tuple(values.values())]

    def _report(self, running: int) -> None:
        failed = sum(row.status == "failed" for row in self._rows.values())
        self._work.progress(Progress(len(self._places), len(self._rows), failed, running))


def plan_cell(grid: Grid, values: Mapping[str, AxisValue], extractor: Extractor) -> PlannedCell | Exception | str:
    """Return a cell that is to be made, or the error that says why it cannot, or why the grid leaves it out."""
    why = grid.why_skipped(values)
    if why:
        return why
    try:
        needs = cell_features(values, grid.fixed)
    except Exception as error:
        return error
    return extractor.find_error(needs.requests) or PlannedCell(values, needs, _name(grid, values, needs, extractor))


def _name(grid: Grid, values: Mapping[str, AxisValue], needs: CellFeatures, extractor: Extractor) -> str:
    """Return 16 hex digits over everything that decides the cell's numbers."""
    chosen = [str(values["head"]), str(values["seed"]), _config_text(grid.fit_config(values))]
    files = [
        extractor.plan(each).recipe.fingerprint if each else "none" for each in (needs.clean, needs.train_views, needs.test)
    ]
    splits = extractor.plan(needs.clean).images.splits.tolist()
    return digest([*chosen, *files, *splits, RESULTS_VERSION, str(SCHEMA)])[:16]


def _config_text(config: FitConfig) -> str:
    """Return a fit configuration as featkit 0.1.0 wrote it into cell names, so that its cells are still found."""
    return (
        f"Protocol(tune={config.tune!r}, subset={config.subset!r}, balance={config.balance!r}, "
        f"reject={config.reject!r}, progress=None)"
    )


def grouped(cells: Iterable[PlannedCell]) -> list[list[PlannedCell]]:
    """Return cells that one fitted head serves: those that agree on all but their test images."""
    groups: dict[tuple[AxisValue, ...], list[PlannedCell]] = {}
    for each in cells:
        groups.setdefault(tuple(value for axis, value in each.values.items() if axis != "perturb"), []).append(each)
    return list(groups.values())
