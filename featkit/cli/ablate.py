"""`featkit ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.matrix import axis_option, given_axes, matrix_options, run_grid, seed_option
from featkit.cli.options import note

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
  backbone = ["resnet18", "resnet50", "experiments/photos/0123456789ab"]
  subset = ["all", "longtail:if=50"]
  balance = ["none", "logit_adjust"]
  perturb = ["none", "fog:level=strong"]       # of the test images
  train_perturb = ["none", "mixed:level=mild"] # a further view of each train image
  head = ["linear", "knn:k=5,metric=cosine"]
  tune = [false, true]
  seed = [0, 1, 2]
  [fixed]
  limit = "train=2000"
  [[skip]]
  when = {subset = "all", balance = ["logit_adjust"]}
  why = "nothing to correct"

\b
Axes: data, backbone, weights, layer, precision, seed, subset, train_perturb, head, balance,
tune, perturb. A matrix that was killed goes on where it was, and one whose file has changed
makes only what is new.
"""


@click.command(epilog=EPILOG)
@click.argument("grid", required=False, type=click.Path(path_type=Path))
@axis_option("data", "SPEC", "[that of the newest cache, else digits]")
@axis_option("backbone", "SPEC", "[resnet18]")
@axis_option("weights", "WHICH", "[imagenet and random]")
@axis_option("layer", "NAME", "[after global average pooling]")
@axis_option("head", "SPEC", "[all five]")
@seed_option
@matrix_options
def ablate(grid: Path | None, **options: Any) -> None:
    """Compare backbones, heads and studies of them in one table.

    Runs every cell of a grid, best first in the table. A cell that fails is a row with its reason and its log.
    Writes results.csv, times.csv, results.json and heatmap.png.
    """
    run_grid(_grid(grid, given_axes(options), options["cache"]), options)


def _grid(path: Path | None, axes: dict[str, Any], cache: Path) -> Grid:
    from featkit.ablation.grid import BUILT_IN, Grid, read_grid
    from featkit.embeddings.request import resolve

    if path is None:
        if "data" not in axes:
            request, newest = resolve({}, cache)
            note(f"data not given: {request.data}" + (f", as in {newest}" if newest else ""))
            axes = {**axes, "data": (request.data,)}
        return Grid("ablate", {**BUILT_IN, **axes})
    if axes:
        raise click.UsageError(f"the axes are in {path}: leave out {', '.join('--' + axis for axis in axes)}")
    return read_grid(path)
