"""What a matrix will take, before it is run."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from featkit.ablation.cells import CellResult, read_cell
from featkit.ablation.grid import Grid
from featkit.ablation.run import AblationConfig, PlannedCell, grouped, plan_cell
from featkit.backbones.devices import INT8
from featkit.embeddings import store
from featkit.embeddings.extract import Extractor, embed
from featkit.embeddings.plan import ExtractionPlan
from featkit.errors import RunError

SAMPLE = 96
"""Images that are embedded to see how fast a network is."""


@dataclass(frozen=True)
class NetworkWork:
    """Vectors that are missing from one network.

    Attributes:
        name: of the network.
        files: how many cache files are to be made.
        images: how many images are to be embedded for them.
        rate: images per second, measured on the first ``SAMPLE`` of them; None where that was too few, or the network
            is an int8 one that is not calibrated yet.
    """

    name: str
    files: int
    images: int
    rate: float | None

    @property
    def seconds(self) -> float | None:
        """Estimated time; None if it is not known."""
        return self.images / self.rate if self.rate else None if self.images else 0.0


@dataclass(frozen=True)
class Estimate:
    """What a matrix is, and what is left of it.

    Attributes:
        cells: number of all cells.
        skipped: number of cells that are left out, by reason.
        unavailable: number of cells whose vectors cannot be had, by reason.
        finished: number of cells on disk.
        files: how many cache files the others need that are there already.
        networks: what is missing.
        fits: number of heads to be fitted.
        fit_seconds: mean time of the finished fits, None before the first.
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
        """Return the estimated time with so many heads side by side; None if a part of it is not known."""
        parts = [network.seconds for network in self.networks]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or (self.fits and self.fit_seconds is None):
            return None
        return sum(known) + self.fits * (self.fit_seconds or 0.0) / jobs


def estimate(grid: Grid, work: AblationConfig) -> Estimate:
    """Return what a matrix will take; nothing is written."""
    extractor = Extractor(work.cache, work.compute)
    planned = [plan_cell(grid, values, extractor) for values in grid.cells()]
    cells = {each.name: _finished(work, grid, each) for each in planned if isinstance(each, PlannedCell)}
    left = [each for each in planned if isinstance(each, PlannedCell) and not cells[each.name]]
    requests = [request for each in left for request in each.needs.requests]
    missing = extractor.missing_plans(requests)
    done = [cell.report.cost["fit_seconds"] for cell in cells.values() if cell and cell.report]
    return Estimate(
        cells=len(planned),
        skipped=dict(Counter(each for each in planned if isinstance(each, str))),
        unavailable=dict(Counter(str(each) for each in planned if isinstance(each, Exception))),
        finished=sum(cell is not None for cell in cells.values()),
        files=len(extractor.available_plans(requests)) - len(missing),
        networks=tuple(_network(jobs, work) for jobs in _by_network(missing)),
        fits=len(grouped(left)),
        fit_seconds=sum(done) / len(done) if done else None,
    )


def _finished(work: AblationConfig, grid: Grid, planned: PlannedCell) -> CellResult | None:
    try:
        return read_cell(work.out / grid.name / "cells", planned.name, planned.values)
    except RunError:
        return None


def _by_network(jobs: list[ExtractionPlan]) -> list[list[ExtractionPlan]]:
    groups: dict[str, list[ExtractionPlan]] = {}
    for job in jobs:
        groups.setdefault(job.recipe.network, []).append(job)
    return list(groups.values())


def _network(jobs: list[ExtractionPlan], work: AblationConfig) -> NetworkWork:
    wanted = {key for job in jobs for key in job.keys} - {""}
    unknown = wanted - store.locate(work.cache, jobs[0].recipe, wanted).keys()
    rows = [[row for row, key in enumerate(job.keys) if key in unknown][:SAMPLE] for job in jobs]
    fullest = max(range(len(jobs)), key=lambda place: len(rows[place]))
    return NetworkWork(jobs[0].backbone.name, len(jobs), len(unknown), _rate(jobs[fullest], rows[fullest], work))


def _rate(job: ExtractionPlan, rows: list[int], work: AblationConfig) -> float | None:
    """Return images per second between the first batch and the last: loading the network does not count."""
    if job.request.precision in INT8 and job.backbone.quantized is None:
        return None
    ends, seen = [], 0
    for batch in embed(job.images, [(job.backbone, job.request.precision, frozenset(rows))], work.compute):
        ends.append(time.perf_counter())
        seen += batch.size if len(ends) > 1 else 0
    return seen / (ends[-1] - ends[0]) if len(ends) > 1 and ends[-1] > ends[0] else None
