"""Compare the time of a grid with that of the same cells computed one at a time.

The grid has two backbones, five heads and four test conditions (clean, and ``mixed`` at three levels): 40 cells.
``featkit ablate`` extracts features once per cache file and fits each head once for the four test conditions. The
baseline extracts features (clean train images, corrupted test images) and fits the head in every cell, with the same
engine and options. The program checks that both give the same accuracies. ``--limit`` reduces the images;
``--plain-cells`` times a number of cells of the baseline, spread evenly, and extrapolates to all cells.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from featkit.ablation.cells import CellResult
from featkit.ablation.grid import HEADS, Grid
from featkit.ablation.plan import cell_features
from featkit.ablation.run import AblationConfig, AblationResult, run_grid
from featkit.embeddings.extract import read_with_splits, run_extractions
from featkit.embeddings.pipeline import Compute
from featkit.heads.base import single_threaded_blas
from featkit.runs.features import FeatureSet
from featkit.runs.fit import Run, fit_run
from featkit.storage import available_cores

PERTURBATIONS = ("none", *(f"mixed:level={level}" for level in ("mild", "medium", "strong")))


def make_grid(arguments: argparse.Namespace) -> Grid:
    """Return the grid of 40 cells."""
    axes = {
        "data": (arguments.data,),
        "backbone": tuple(arguments.backbone),
        "weights": (arguments.weights,),
        "head": HEADS,
        "perturb": PERTURBATIONS,
    }
    return Grid("benchmark", axes, {"limit": arguments.limit} if arguments.limit else {})


def plain_cell(grid: Grid, values: dict[str, Any]) -> Run:
    """Extract features and fit the head for one cell."""
    request = replace(
        cell_features({**values, "perturb": "none"}, grid.fixed).clean, perturb=values["perturb"]
    )
    images = request.load_images()
    with tempfile.TemporaryDirectory() as cache:
        (done,) = run_extractions([request], images, Path(cache), Compute())
        source = FeatureSet(
            request, read_with_splits(done.path, images), done.path, images.name, done.weights
        )
    with single_threaded_blas():
        return fit_run(source, str(values["head"]), seed=int(values["seed"]))


def timed_grid(grid: Grid, jobs: int) -> tuple[AblationResult, float]:
    """Run the grid with an empty cache; return its result and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = run_grid(
            grid, AblationConfig(Path(folder, "out"), Path(folder, "cache"), Compute(), jobs=jobs)
        )
        return result, time.perf_counter() - start


def check(cell: CellResult, run: Run) -> None:
    """Check that the grid and the baseline give the same accuracies."""
    assert cell.report is not None, cell.reason
    found = (cell.report.n, cell.report.top1, cell.report.balanced_accuracy)
    expected = (run.report.n, run.report.top1, run.report.balanced_accuracy)
    assert found == expected, (
        f"{dict(cell.values)}: {found} in the grid, {expected} in the baseline"
    )


def main() -> None:
    """Print the times of the grid and of the baseline, and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    real = {"FEATKIT_TEST_DATA", "FEATKIT_WEIGHTS"} <= os.environ.keys()
    parser.add_argument("--data", default="$FEATKIT_TEST_DATA/caltech101" if real else "digits")
    parser.add_argument("--backbone", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--weights", default="imagenet" if real else "random")
    parser.add_argument("--limit", default="train=1000,test=500")
    parser.add_argument("--jobs", type=int, default=available_cores())
    parser.add_argument("--plain-cells", type=int, help="number of baseline cells to time [all]")
    arguments = parser.parse_args()
    grid = make_grid(arguments)
    result, seconds = timed_grid(grid, arguments.jobs)
    count = len(result.cells)
    chosen = result.cells[:: max(1, count // (arguments.plain_cells or count))]
    start = time.perf_counter()
    for cell in chosen:
        check(cell, plain_cell(grid, dict(cell.values)))
    plain = (time.perf_counter() - start) * count / len(chosen)
    timed = "" if len(chosen) == count else f" (from {len(chosen)} of them)"
    print(
        f"{arguments.data} {arguments.limit or ''}: {count} cells, {available_cores()} cores, {arguments.jobs} jobs"
    )
    print(
        f"grid {seconds:.1f} s, one cell at a time {plain:.1f} s{timed}: {plain / seconds:.1f} times"
    )
    print(f"{len(chosen)} cells compared: same top-1 and balanced accuracy")


if __name__ == "__main__":
    main()
