"""A matrix against the plain way.

Two backbones x five heads x four kinds of test images (as they are, and ``mixed`` at three levels): forty cells.
The plain way extracts (train as it is, test perturbed) and fits in each cell, with the same engine and settings. The
matrix makes each file of vectors once, fits each head once, and judges it on all four. Both are given the same images
and say the same numbers, which is checked. ``--limit`` makes both smaller; ``--plain-cells`` times only so many cells
of the plain way, spread evenly over all, and says what all would take.
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
    """Return the forty cells."""
    axes = {
        "data": (arguments.data,),
        "backbone": tuple(arguments.backbone),
        "weights": (arguments.weights,),
        "head": HEADS,
        "perturb": PERTURBATIONS,
    }
    return Grid("benchmark", axes, {"limit": arguments.limit} if arguments.limit else {})


def plain_cell(grid: Grid, values: dict[str, Any]) -> Run:
    """Extract and fit for one cell alone."""
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


def timed_matrix(grid: Grid, jobs: int) -> tuple[AblationResult, float]:
    """Run the matrix from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        matrix = run_grid(
            grid, AblationConfig(Path(folder, "out"), Path(folder, "cache"), Compute(), jobs=jobs)
        )
        return matrix, time.perf_counter() - start


def check(cell: CellResult, run: Run) -> None:
    """See that both ways say the same."""
    assert cell.report is not None, cell.reason
    found = (cell.report.n, cell.report.top1, cell.report.balanced_accuracy)
    expected = (run.report.n, run.report.top1, run.report.balanced_accuracy)
    assert found == expected, f"{dict(cell.values)}: {found} in the matrix, {expected} alone"


def main() -> None:
    """Print the time of both ways and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    real = {"FEATKIT_TEST_DATA", "FEATKIT_WEIGHTS"} <= os.environ.keys()
    parser.add_argument("--data", default="$FEATKIT_TEST_DATA/caltech101" if real else "digits")
    parser.add_argument("--backbone", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--weights", default="imagenet" if real else "random")
    parser.add_argument("--limit", default="train=1000,test=500")
    parser.add_argument("--jobs", type=int, default=available_cores())
    parser.add_argument(
        "--plain-cells", type=int, help="how many cells of the plain way to time [all]"
    )
    arguments = parser.parse_args()
    grid = make_grid(arguments)
    matrix, seconds = timed_matrix(grid, arguments.jobs)
    count = len(matrix.cells)
    chosen = matrix.cells[:: max(1, count // (arguments.plain_cells or count))]
    start = time.perf_counter()
    for cell in chosen:
        check(cell, plain_cell(grid, dict(cell.values)))
    plain = (time.perf_counter() - start) * count / len(chosen)
    timed = "" if len(chosen) == count else f" (from {len(chosen)} of them)"
    print(
        f"{arguments.data} {arguments.limit or ''}: {count} cells, {available_cores()} cores, {arguments.jobs} jobs"
    )
    print(
        f"matrix {seconds:.1f} s, each cell by itself {plain:.1f} s{timed}: {plain / seconds:.1f} times"
    )
    print(f"{len(chosen)} cells compared: the same top-1 and balanced accuracy")


if __name__ == "__main__":
    main()
