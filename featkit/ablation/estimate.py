"""Estimate what a grid will compute and how long it will take, without running it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from featkit.ablation.cells import CellResult, read_cell
from featkit.ablation.grid import Grid
from featkit.ablation.plan import PlannedCell, feature_requests, group_by_head, plan_grid
from featkit.ablation.run import AblationConfig
from featkit.backbones.devices import INT8
from featkit.embeddings import store
from featkit.embeddings.extract import Extractor, embed
from featkit.embeddings.plan import ExtractionPlan
from featkit.errors import RunError

_WARM_UP_ROUNDS, _TIMED_ROUNDS = 1, 2
"""Batches per worker that are embedded to measure the throughput of a network."""


@dataclass(frozen=True)
class NetworkWork:
    """Features that must be extracted with one network.

    Attributes:
        name: name of the network.
        files: number of cache files to make.
        images: number of images to embed.
        rate: measured throughput in images per second; None if it was not measured, if there are
            too few images for that, or if an int8 network is not calibrated yet.
        measured: number of images that it was measured on.
    """

    name: str
    files: int
    images: int
    rate: float | None
    measured: int

    @property
    def seconds(self) -> float | None:
        """Estimated time; None if it is not known."""
        if not self.images:
            return 0.0
        return self.images / self.rate if self.rate else None


@dataclass(frozen=True)
class Estimate:
    """Size of a grid, and the part that is not computed yet.

    Attributes:
        cells: number of all cells.
        skipped: number of cells that a rule of the grid skips, by reason.
        unavailable: number of cells whose features cannot be extracted, by reason.
        finished: number of finished cells.
        files: number of cache files that the other cells need and that exist.
        networks: missing features.
        fits: number of heads to fit.
        fit_seconds: mean time of the finished fits; None if there are none.
    """

    cells: int
    skipped: dict[str, int]
    unavailable: dict[str, int]
    finished: int
    files: int
    networks: tuple[NetworkWork, ...]
    fits: int
    fit_seconds: float | None

    def seconds(self, jobs: int) -> float | None:
        """Return the estimated time with ``jobs`` worker processes; None if a part is unknown."""
        total = 0.0
        for network in self.networks:
            if network.seconds is None:
                return None
            total += network.seconds
        if self.fits:
            if self.fit_seconds is None:
                return None
            total += self.fits * self.fit_seconds / jobs
        return total


def estimate(grid: Grid, config: AblationConfig, *, measure: bool = True) -> Estimate:
    """Return what a grid would compute; nothing is written.

    Args:
        grid: the grid.
        config: as for ``run_grid``.
        measure: whether to measure the throughput of the networks whose features are missing, by
            embedding a few batches.
    """
    folder = config.out / grid.name / "cells"
    extractor = Extractor(config.cache, config.compute)
    plan = plan_grid(grid, extractor)
    finished, pending = _split_cells(plan.cells, folder)
    requests = feature_requests(pending)
    missing = extractor.missing_plans(requests)
    by_network: dict[str, list[ExtractionPlan]] = {}
    for missing_plan in missing:
        by_network.setdefault(missing_plan.recipe.network, []).append(missing_plan)
    skipped: Counter[str] = Counter()
    unavailable: Counter[str] = Counter()
    for cell in plan.unavailable:
        reasons = skipped if cell.error is None else unavailable
        reasons[cell.reason] += 1
    seconds = [cell.report.cost["fit_seconds"] for cell in finished.values() if cell.report]
    return Estimate(
        cells=len(plan.cells) + len(plan.unavailable),
        skipped=dict(skipped),
        unavailable=dict(unavailable),
        finished=len(finished),
        files=len(extractor.available_plans(requests)) - len(missing),
        networks=tuple(_network_work(plans, config, measure) for plans in by_network.values()),
        fits=len(group_by_head(pending)),
        fit_seconds=sum(seconds) / len(seconds) if seconds else None,
    )


def _split_cells(
    cells: list[PlannedCell], folder: Path
) -> tuple[dict[str, CellResult], list[PlannedCell]]:
    """Return the results of finished cells by name, and the cells that must be computed."""
    finished: dict[str, CellResult] = {}
    pending = []
    for cell in cells:
        try:
            result = read_cell(folder, cell.name, cell.values)
        except RunError:  # a damaged cell is computed again
            result = None
        if result is None:
            pending.append(cell)
        else:
            finished[cell.name] = result
    return finished, pending


def _network_work(
    plans: list[ExtractionPlan], config: AblationConfig, measure: bool
) -> NetworkWork:
    """Return the missing features of one network, with its throughput if it can be measured."""
    keys: set[str] = set()
    for plan in plans:
        keys.update(plan.keys)
    keys.discard("")
    large = frozenset[str]().union(*(plan.large for plan in plans))
    missing = keys - store.locate(config.cache, plans[0].recipe, keys, large).keys()
    work = NetworkWork(plans[0].backbone.name, len(plans), len(missing), None, 0)
    return _measured(work, plans, missing, config) if measure else work


def _measured(
    work: NetworkWork, plans: list[ExtractionPlan], missing: set[str], config: AblationConfig
) -> NetworkWork:
    """Return the missing features of one network with its throughput, unless it is too small.

    Workers embed a batch each at the same time, and the first batches wait for the network to be
    ready. The time from the end of the first batch of all workers to that of the last batch is
    measured; with fewer batches it could be next to nothing.
    """
    compute = config.compute
    count = (_WARM_UP_ROUNDS + _TIMED_ROUNDS) * compute.threads * compute.images_per_batch
    largest, sample = plans[0], list[int]()
    for plan in plans:
        rows = [row for row, key in enumerate(plan.keys) if key in missing][:count]
        if len(rows) > len(sample):
            largest, sample = plan, rows
    waits_for_calibration = largest.request.precision in INT8 and largest.backbone.quantized is None
    if len(sample) < count or waits_for_calibration:
        return work
    network = (largest.backbone, largest.request.precision, frozenset(sample))
    ends, images = [], 0
    for number, batch in enumerate(embed(largest.images, [network], compute), 1):
        ends.append(time.perf_counter())
        if number > _WARM_UP_ROUNDS * compute.threads:
            images += batch.size
    seconds = ends[-1] - ends[_WARM_UP_ROUNDS * compute.threads - 1]
    return replace(work, rate=images / seconds, measured=images)
