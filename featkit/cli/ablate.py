"""`featkit ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.grids import axis_options, given_axes, given_fixed, grid_options, run_grid
from featkit.cli.options import command
from featkit.cli.output import note

if TYPE_CHECKING:
    from featkit.ablation.grid import Grid

EPILOG = """\b
Examples:
  featkit ablate
  featkit ablate --data photos --backbone resnet18 --backbone resnet50
  featkit ablate --head linear --head svm:C=1 --head svm:C=100
  featkit ablate grid.toml --dry-run
  featkit ablate grid.toml --jobs 4

\b
grid.toml:
  [axes]
  data = ["photos"]
  backbone = ["resnet18", "resnet50", "experiments/runs/photos/0123456789ab"]
  subset = ["all", "longtail:if=50"]
  balance = ["none", "logit_adjust"]
  perturb = ["none", "fog:level=strong"]        # test images
  train_perturb = ["none", "mixed:level=mild"] # added to train
  head = ["linear", "knn:k=5,metric=cosine"]
  tune = [false, true]
  seed = [0, 1, 2]
  [fixed]
  limit = "train=2000"
  [[skip]]
  when = {subset = "all", balance = ["logit_adjust"]}
  why = "balanced classes"

\b
Axes: data, backbone, weights, layer, precision, seed, subset, train_perturb, head, balance,
tune, perturb. Options that are the same in all cells go in [fixed]. Environment variables in
values are expanded.
"""


@command(epilog=EPILOG)
@click.argument("grid", required=False, type=click.Path(path_type=Path))
@axis_options("data", "split", "limit", "seed", "subset", "augment", "views", "perturb", "train_perturb")
@axis_options(
    *("backbone", "weights", "layer", "pool", "resize", "crop", "precision"),
    weights="imagenet and random",
)
@axis_options("head", "tune", "balance", head="all five")
@grid_options
def ablate(grid: Path | None, **options: Any) -> None:
    """Run a grid of backbones, heads and options, and rank the results in one table.

    The grid is given by options or by a TOML file. Finished cells are kept: an interrupted grid
    resumes, and a changed grid computes only what is new. A cell that fails is a row with its
    reason. Writes results.csv, times.csv, results.json, summary.md, report.html and heatmap.png.
    """
    run_grid(_grid(grid, given_axes(options), given_fixed(options), options["cache"]), options)


def _grid(
    path: Path | None, axes: dict[str, Any], fixed: dict[str, Any], cache: Path
) -> Grid:
    from featkit.ablation.grid import BUILT_IN, Grid, read_grid
    from featkit.embeddings.request import resolve

    if path is None:
        if "data" not in axes:
            request, newest = resolve({}, cache)
            note(f"data not given: {request.data}" + (f", as in {newest}" if newest else ""))
            axes = {**axes, "data": (request.data,)}
        return Grid("ablate", {**BUILT_IN, **axes}, fixed)
    given = [name.replace("_", "-") for name in (*axes, *fixed)]
    if given:
        names = ", ".join(f"--{name}" for name in given)
        raise click.UsageError(f"the grid is defined in {path}: leave out {names}")
    return read_grid(path)
