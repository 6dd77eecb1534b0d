"""``featkit ablate``."""

from __future__ import annotations

from typing import Any

import click

from featkit.cli.grid_commands import axis_options, grid_options, print_grid
from featkit.cli.options import UserPath, command

EPILOG = """\b
Examples:
  featkit ablate
  featkit ablate --data photos --backbone resnet18 --backbone resnet50
  featkit ablate --head linear --head svm:C=1 --head svm:C=100
  featkit ablate grid.toml --dry-run
  featkit ablate grid.toml --jobs 4
  featkit ablate grid.toml --latex table.tex --markdown table.md
  featkit ablate grid.toml --cluster tcp://head-node:8786

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
@click.argument("grid", required=False, type=UserPath())
@axis_options(
    *(
        "data",
        "split",
        "limit",
        "intensity_range",
        "group",
        "allow_group_leak",
        "seed",
        "subset",
        "augment",
        "views",
        "perturb",
        "train_perturb",
    ),
    data="those of the newest cache file, else digits",
)
@axis_options(
    *("backbone", "weights", "layer", "pool", "resize", "crop", "precision"),
    weights="imagenet and random",
)
@axis_options("head", "tune", "balance", head="all five")
@grid_options
def ablate(**options: Any) -> None:
    """Run a grid of backbones, heads and options, and compare the results in one table.

    A cell of the grid is one combination of option values; they are given by options or by a TOML
    file. Finished cells are saved: an interrupted grid resumes, and a changed grid computes only
    new cells. A failed cell does not stop the grid and is listed with its error. Writes
    results.csv, times.csv, results.json, summary.md, report.html and heatmap.png.
    """
    from featkit import api

    print_grid(api.ablation_grid(options), options)
