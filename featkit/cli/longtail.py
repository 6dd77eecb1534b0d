"""`featkit longtail`."""

from __future__ import annotations

from typing import Any

import click

from featkit.cli.grids import axis_options, given_axes, given_fixed, grid_options, run_grid
from featkit.cli.options import command, option
from featkit.cli.output import between, table

EPILOG = """\b
Examples:
  featkit longtail --data photos --backbone resnet50
  featkit longtail --data photos --if 10 --if 50 --balance none --balance logit_adjust --seed 0 --seed 1
  featkit longtail --data photos --subset longtail:profile=natural --head linear --head svm
  featkit longtail --data photos --dry-run

\b
Class c of C keeps n_max * IF^(-c/(C-1)) train images; the order of classes depends on the seed.
Hyperparameters of corrections are tuned on the validation set; `best on val` marks the correction
with the best validation accuracy. Gains are differences in balanced accuracy from `none` on the same
test images, in points.
"""


@command(epilog=EPILOG)
@option(
    "--if",
    "factors",
    group="Data",
    multiple=True,
    type=float,
    help="Imbalance factor: largest class size over smallest. Repeatable.",
    show_default="10 and 50",
)
@axis_options("data", "split", "limit", "seed", "subset", "augment", "views", "perturb", "train_perturb")
@axis_options("backbone", "weights", "layer", "pool", "resize", "crop", "precision")
@axis_options("head", "balance", balance="all corrections")
@grid_options
def longtail(factors: tuple[float, ...], **options: Any) -> None:
    """Compare class-imbalance corrections on long-tailed training sets.

    A grid of imbalance factors, corrections and heads. Writes longtail.csv beside the files of
    `featkit ablate`.
    """
    from featkit.studies.longtail import longtail_grid, tail_rows

    axes = given_axes(options)
    if factors and "subset" in axes:
        raise click.UsageError("--if and --subset both define the subset of train: leave one out")
    grid = longtail_grid(axes, factors or (10.0, 50.0), given_fixed(options))
    matrix = run_grid(grid, options)
    if matrix and not options["as_json"]:
        click.echo("\n" + _table(tail_rows(matrix.cells)))


def _table(rows: list[Any]) -> str:
    numbers = ("balanced %", "95 % interval", "gain", "gain, 95 %", "many", "medium", "few")
    lines = [
        [
            f"{100 * row.balanced_accuracy:.1f}",
            between(row.balanced_interval95),
            "" if row.gain is None else f"{100 * row.gain:+.1f}",
            "" if row.gain is None else between(row.gain_interval95),
            *("" if part is None else f"{100 * part[0]:.1f}" for part in (row.many, row.medium, row.few)),
            *(row.values[axis] for axis in ("data", "backbone", "subset", "head", "balance", "seed")),
            "best on val" if row.best_on_val else "",
        ]
        for row in rows
    ]
    return table([*numbers, "data", "backbone", "subset", "head", "balance", "seed", ""], lines, right=numbers)
