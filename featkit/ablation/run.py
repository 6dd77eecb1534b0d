"""Run a grid: plan its cells, extract missing features, fit heads in parallel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from featkit.ablation.cells import (
    CellResult,
    count_cells,
    failed_cell,
    lock_grid,
    read_cell,
    remove_cell,
)
from featkit.ablation.conditions import standing_columns
from featkit.ablation.effects import Findings, analyze_grid
from featkit.ablation.executors import Executor
from featkit.ablation.executors.local import LocalExecutor
from featkit.ablation.grid import AXES, Grid
from featkit.ablation.plan import (
    PlannedCell,
    UnavailableCell,
    feature_requests,
    group_by_head,
    plan_grid,
)
from featkit.ablation.worker import CellCondition, CellSource, CellTask, run_task
from featkit.embeddings.base import pack_groups, pack_splits
from featkit.embeddings.extract import Extractor
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.embeddings.shards import extract_missing
from featkit.errors import RunError
from featkit.evaluation.display import data_frame, html_table
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
        """Return the grid and one flat row per cell, as JSON can represent them."""
        return {"name": self.grid.name, "fixed": dict(self.grid.fixed), "cells": self._rows()}

    def to_frame(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row per cell.

        Raises:
            FeatkitError: if pandas is not installed.
        """
        return data_frame(self._rows())

    def _repr_html_(self) -> str:
        return html_table(self._rows())

    def row(self, cell: CellResult) -> dict[str, Any]:
        """Return a cell as in ``results.csv``, with its comparison with the best classifier."""
        row = cell.to_row()
        return row | standing_columns(self.findings.standing(cell.values)) if cell.report else row

    def _rows(self) -> list[dict[str, Any]]:
        return [self.row(cell) for cell in self.cells]


@dataclass(frozen=True)
class Progress:
    """Progress of a grid, in cells."""

    total: int
    done: int
    failed: int
    running: int


@dataclass(frozen=True)
class AblationConfig:
    """Where and how a grid is run; nothing here changes a result.

    Attributes:
        out: folder for results; cells are kept in ``<out>/<grid name>/cells``.
        cache: folder of the embeddings cache.
        compute: how missing features are extracted.
        jobs: number of heads fitted at the same time, each in its own process; 1 for this process.
        executor: runs the tasks elsewhere, extraction included; None for this machine.
        note: called with messages, such as which cell file is damaged.
        progress: called whenever cells are finished.
    """

    out: Path
    cache: Path
    compute: Compute
    jobs: int = 1
    executor: Executor | None = None
    note: Callable[[str], None] = lambda text: None
    progress: Callable[[Progress], None] = lambda progress: None


def run_grid(grid: Grid, config: AblationConfig) -> AblationResult:
    """Compute all cells of a grid that are not finished yet, and return the results of all cells.

    Missing features are extracted first, each cache file once. Then each head is fitted once for
    all cells that differ in their test images only. A cell that fails does not stop the others.

    Raises:
        RunError: if another process is running the same grid.
        StorageError: if the disk is full or cannot be written.
    """
    if config.executor is not None:  # its processes may have other working directories
        config = replace(config, out=config.out.absolute(), cache=config.cache.absolute())
    folder = config.out / grid.name / "cells"
    executor = config.executor or LocalExecutor(config.jobs, available_cores())
    with lock_grid(folder):
        try:
            results = _run_cells(grid, config, folder, executor)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"{count_cells(folder):,} finished cells are kept in {folder}")
            raise
    return AblationResult(grid, tuple(results[index] for index in range(len(results))))


def _run_cells(
    grid: Grid, config: AblationConfig, folder: Path, executor: Executor
) -> dict[int, CellResult]:
    """Return the result of each cell by its position in the grid."""
    extractor = Extractor(config.cache, config.compute, config.note)
    results: dict[int, CellResult] = {}

    pending = _pending_cells(grid, extractor, folder, results, config.note)
    if config.executor is not None:
        requests = feature_requests(pending)
        extract_missing(requests, extractor, config.executor.run, config.note)
    extractor.extract_independently(feature_requests(pending))
    # Plan again: an extraction may have failed, and the name of a cell with an int8 network is
    # known only after the network has been calibrated, so that a cell may turn out to be finished.
    pending = _pending_cells(grid, extractor, folder, results, config.note)

    tasks = _make_tasks(grid, pending, extractor, folder)
    total = len(results) + len(pending)
    failures = sum(result.status == "failed" for result in results.values())
    _report_progress(config, len(results), failures, total, len(tasks))
    with closing(executor.run(run_task, tasks)) as finished_tasks:
        for done, finished in enumerate(finished_tasks, 1):
            task = tasks[finished.index]
            failed = {} if finished.worker_died else finished.result
            for cell in task.conditions:
                result = failed.get(cell.index) or _read_result(task, cell)
                results[cell.index] = result
                failures += result.status == "failed"
            _report_progress(config, len(results), failures, total, len(tasks) - done)
    return results


def _pending_cells(
    grid: Grid,
    extractor: Extractor,
    folder: Path,
    results: dict[int, CellResult],
    note: Callable[[str], None],
) -> list[PlannedCell]:
    """Return the cells to compute; add all others, finished or unavailable, to ``results``."""
    plan = plan_grid(grid, extractor, without=results)
    for unavailable in plan.unavailable:
        results[unavailable.index] = _unavailable_result(folder, unavailable)
    pending = []
    for cell in plan.cells:
        try:
            result = read_cell(folder, cell.name, cell.values)
        except RunError as error:
            note(f"{error}: computing it again")
            remove_cell(folder, cell.name)
            result = None
        if result is None:
            pending.append(cell)
        else:
            results[cell.index] = result
    return pending


def _unavailable_result(folder: Path, cell: UnavailableCell) -> CellResult:
    if cell.error is None:
        return CellResult(cell.values, "skipped", cell.reason)
    name = digest([str(cell.values)])[:16]
    result = failed_cell(folder, name, cell.values, cell.error)
    return replace(result, data=str(cell.values["data"]))


def _make_tasks(
    grid: Grid, pending: Sequence[PlannedCell], extractor: Extractor, folder: Path
) -> list[CellTask]:
    """Return a task for all cells that share a fitted head."""
    sources: dict[tuple[Request, Request | None], CellSource] = {}
    tasks = []
    for cells in group_by_head(pending):
        features = cells[0].features
        key = features.clean, features.train_views
        if key not in sources:
            sources[key] = _cell_source(*key, extractor)
        source = sources[key]
        conditions = []
        for cell in cells:
            request, test = source.request, None
            if cell.features.test:
                request = replace(request, perturb=cell.features.test.perturb)
                test = extractor.path(cell.features.test)
            conditions.append(CellCondition(cell.index, cell.name, cell.values, request, test))
        config = grid.fit_config(cells[0].values)
        tasks.append(CellTask(folder, config, source, tuple(conditions)))
    return tasks


def _cell_source(clean: Request, views: Request | None, extractor: Extractor) -> CellSource:
    """Return the features that heads are fitted on, as a worker reads them."""
    plan = extractor.plan(clean)
    return CellSource(
        request=plan.request.absolute,
        data=plan.images.name,
        weights=plan.backbone.weights,
        clean=extractor.path(clean),
        splits=pack_splits(plan.images.splits),
        groups=pack_groups(plan.images.groups),
        views=extractor.path(views) if views else None,
        multilabel=plan.images.multilabel,
    )


def _read_result(task: CellTask, cell: CellCondition) -> CellResult:
    """Return the result that a worker has written, or a failed one if the worker died before."""
    result = read_cell(task.folder, cell.name, cell.values)
    if result is not None:
        return result
    error = RunError("the worker process of this cell died: it was killed or ran out of memory")
    failed = failed_cell(task.folder, cell.name, cell.values, error)
    return replace(failed, data=task.source.data, weights=task.source.weights)


def _report_progress(
    config: AblationConfig, done: int, failed: int, total: int, tasks_left: int
) -> None:
    config.progress(Progress(total, done, failed, running=min(config.jobs, tasks_left)))
