"""Estimate what a grid will compute and how long it will take, without running it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
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

SAMPLE = 96
"""Number of images that are embedded to measure the throughput of a network."""


@dataclass(frozen=True)
class NetworkWork:
    """Features that must be extracted with one network.

    Attributes:
        name: name of the network.
        files: number of cache files to make.
        images: number of images to embed.
        rate: throughput in images per second, measured on ``SAMPLE`` images; None if there are too
            few, or if an int8 network is not calibrated yet.
    """

    name: str
    files: int
    images: int
    rate: float | None

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


def estimate(grid: Grid, config: AblationConfig) -> Estimate:
    """Return what a grid would compute; nothing is written."""
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
        networks=tuple(_network_work(plans, config) for plans in by_network.values()),
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


def _network_work(plans: list[ExtractionPlan], config: AblationConfig) -> NetworkWork:
    """Return the missing features of one network, with its measured throughput."""
    keys: set[str] = set()
    for plan in plans:
        keys.update(plan.keys)
    keys.discard("")
    missing = keys - store.locate(config.cache, plans[0].recipe, keys).keys()
    largest, sample = plans[0], list[int]()
    for plan in plans:
        rows = [row for row, key in enumerate(plan.keys) if key in missing][:SAMPLE]
        if len(rows) > len(sample):
            largest, sample = plan, rows
    rate = _throughput(largest, sample, config)
    return NetworkWork(plans[0].backbone.name, len(plans), len(missing), rate)


def _throughput(plan: ExtractionPlan, rows: list[int], config: AblationConfig) -> float | None:
    """Return images per second from the first batch to the last, without loading the network."""
    if plan.request.precision in INT8 and plan.backbone.quantized is None:
        return None
    start = end = 0.0
    images = 0
    network = (plan.backbone, plan.request.precision, frozenset(rows))
    for number, batch in enumerate(embed(plan.images, [network], config.compute)):
        end = time.perf_counter()
        if number == 0:
            start = end
        else:
            images += batch.size
    return images / (end - start) if end > start else None
