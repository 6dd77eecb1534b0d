"""Compare a grid with computing its cells one at a time.

    python experiments/benchmarks/ablation.py [--limit SPEC] [--plain-cells N]

Two backbones x five heads x four kinds of test images (unperturbed, and the corruption ``mixed`` at
three levels): 40 cells. The baseline extracts features (unperturbed train images, perturbed test
images), fits a head and evaluates it for each cell. The grid extracts each set of features once,
fits each head once and evaluates it on all four. Both use the same images, engine and options, and
must give the same accuracies, which is checked. With ``--plain-cells`` the baseline computes that
many cells, evenly spread over the grid, and its time is extrapolated. Without ``FEATKIT_TEST_DATA``
and ``FEATKIT_WEIGHTS`` the data are scikit-learn's digits and the weights random.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from featkit.ablation.cells import CellResult
from featkit.ablation.grid import HEADS, AxisValue, Grid
from featkit.ablation.plan import cell_features
from featkit.ablation.run import AblationConfig, AblationResult, run_grid
from featkit.embeddings.extract import read_with_splits, run_extractions
from featkit.embeddings.pipeline import Compute
from featkit.heads.base import single_threaded_blas
from featkit.runs.features import FeatureSet
from featkit.runs.fit import Run, fit_run
from featkit.storage import available_cores

PERTURBATIONS = ("none", "mixed:level=mild", "mixed:level=medium", "mixed:level=strong")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    has_data = {"FEATKIT_TEST_DATA", "FEATKIT_WEIGHTS"} <= os.environ.keys()
    parser.add_argument(
        "--data",
        default="$FEATKIT_TEST_DATA/caltech101" if has_data else "digits",
        help="data set [%(default)s]",
    )
    parser.add_argument(
        "--backbone", nargs="+", default=["resnet18", "resnet50"], help="[%(default)s]"
    )
    parser.add_argument(
        "--weights", default="imagenet" if has_data else "random", help="[%(default)s]"
    )
    parser.add_argument(
        "--limit", default="train=1000,test=500", help="subset of the images [%(default)s]"
    )
    parser.add_argument(
        "--jobs", type=int, default=available_cores(), help="processes of the grid [%(default)s]"
    )
    parser.add_argument(
        "--plain-cells", type=int, help="number of cells that are computed one at a time [all]"
    )
    return parser.parse_args()


def make_grid(arguments: argparse.Namespace) -> Grid:
    """Return the grid of 40 cells, or fewer with fewer backbones."""
    axes = {
        "data": (arguments.data,),
        "backbone": tuple(arguments.backbone),
        "weights": (arguments.weights,),
        "head": HEADS,
        "perturb": PERTURBATIONS,
    }
    fixed = {"limit": arguments.limit} if arguments.limit else {}
    return Grid("benchmark", axes, fixed)


def run_timed_grid(grid: Grid, jobs: int) -> tuple[AblationResult, float]:
    """Run the grid with an empty cache; return its result and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        config = AblationConfig(Path(folder, "out"), Path(folder, "cache"), Compute(), jobs=jobs)
        start = time.perf_counter()
        result = run_grid(grid, config)
        return result, time.perf_counter() - start


def run_cell(grid: Grid, values: Mapping[str, AxisValue]) -> Run:
    """Extract features, fit and evaluate for one cell, with an empty cache."""
    clean = cell_features({**values, "perturb": "none"}, grid.fixed).clean
    request = replace(clean, perturb=str(values["perturb"]))
    images = request.load_images()
    with tempfile.TemporaryDirectory() as cache:
        (done,) = run_extractions([request], images, Path(cache), Compute())
        embeddings = read_with_splits(done.path, images)
        features = FeatureSet(request, embeddings, done.path, images.name, done.weights)
    with single_threaded_blas():
        return fit_run(features, str(values["head"]), seed=int(values["seed"]))


def check_equal(cell: CellResult, run: Run) -> None:
    """Raise an error unless a cell of the grid has the same accuracies as when run alone."""
    if cell.report is None:
        raise RuntimeError(f"{dict(cell.values)}: no result: {cell.reason}")
    in_grid = (cell.report.n, cell.report.top1, cell.report.balanced_accuracy)
    alone = (run.report.n, run.report.top1, run.report.balanced_accuracy)
    if in_grid != alone:
        raise RuntimeError(f"{dict(cell.values)}: {in_grid} in the grid, {alone} alone")


def main() -> None:
    """Measure both and print their times and the ratio."""
    arguments = parse_arguments()
    grid = make_grid(arguments)
    result, grid_seconds = run_timed_grid(grid, arguments.jobs)
    total = len(result.cells)
    count = min(total, arguments.plain_cells or total)
    # A constant step of 4 cells would select the same kind of test images each time.
    positions = np.linspace(0, total - 1, count).round().astype(int)
    selected = [result.cells[position] for position in positions]
    start = time.perf_counter()
    for cell in selected:
        check_equal(cell, run_cell(grid, cell.values))
    seconds = (time.perf_counter() - start) * total / len(selected)

    extrapolated = "" if len(selected) == total else f" (extrapolated from {len(selected)})"
    print(
        f"{arguments.data} {arguments.limit or ''}: {total} cells, {available_cores()} cores, "
        f"{arguments.jobs} jobs"
    )
    print(
        f"grid {grid_seconds:.1f} s, one cell at a time {seconds:.1f} s{extrapolated}: "
        f"ratio {seconds / grid_seconds:.1f}"
    )
    print(f"{len(selected)} cells compared: equal top-1 and balanced accuracy")


if __name__ == "__main__":
    main()
