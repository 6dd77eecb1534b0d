"""Measure the time of a report and of projections, and the size of the report.

    python experiments/benchmarks/pictures.py RUN [--cache cache] [--methods tsne umap]

The report of a run, without its figures from the network: class activation maps are timed apart.
Projections are those of all features of the run's cache file, train and test. CPU seconds are those
of all threads.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import featkit
from featkit.embeddings.pipeline import Compute
from featkit.evaluation.projection import METHODS, project
from featkit.reports.run import run_report
from featkit.runs.directory import SavedRun
from featkit.studies.inspect import inspect_run, run_features


class Seconds:
    """Seconds spent in several blocks, together."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Add the seconds of a block."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall += time.perf_counter() - wall
            self.cpu += time.process_time() - cpu

    def __str__(self) -> str:
        return f"{self.cpu:7.1f} CPU s {self.wall:7.1f} s"


def main() -> None:
    """Print one line per part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--methods", nargs="*", default=["tsne", "umap"], choices=METHODS)
    parser.add_argument("--no-report", action="store_true")
    options = parser.parse_args()

    print(f"{len(os.sched_getaffinity(0))} cores, featkit {featkit.__version__}")
    run = featkit.load_run(options.run)
    if not options.no_report:
        measure_report(run, options.cache)
    x = run_features(run, options.cache, Compute()).embeddings.x
    for method in options.methods:
        seconds = Seconds()
        with seconds.measured():
            projection = project(x, method)
        shape = "x".join(map(str, x.shape))
        quality = f"trustworthiness {projection.trustworthiness:.3f}"
        print(f"{method:12} {seconds}   {shape}, {quality}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MiB")


def measure_report(run: SavedRun, cache: Path) -> None:
    """Print the time and the size of the report of a run."""
    network, everything = Seconds(), Seconds()

    def track(batches: Sequence[int]) -> Iterable[int]:
        for batch in batches:
            with network.measured():
                yield batch

    with everything.measured():
        inspection = inspect_run(run, cache=cache, compute=Compute(), track=track)
        page = run_report(inspection).encode("utf-8")
    everything.wall -= network.wall
    everything.cpu -= network.cpu
    n = inspection.report.n
    print(f"{'network':12} {network}   class activation maps and their images")
    print(f"{'report':12} {everything}   the rest, {n} test images, {len(page) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
