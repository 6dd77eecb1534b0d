"""`featkit robustness`."""

from __future__ import annotations

from typing import Any

import click

from featkit.cli.grids import axis_options, given_axes, given_fixed, grid_options, run_grid
from featkit.cli.options import command, option
from featkit.cli.output import between, table

EPILOG = """\b
Examples:
  featkit robustness --data photos --backbone resnet18 --backbone resnet50 --baseline resnet18
  featkit robustness --data photos --family fog --family jpeg --level strong
  featkit robustness --data photos --train-perturb none --train-perturb mixed:level=medium
  featkit robustness --data photos --limit test=1000 --dry-run

\b
Heads are fitted on clean images; only test images are corrupted. With --train-perturb, a corrupted
copy of each train image is added to train.
"""


@command(epilog=EPILOG)
@option(
    "--family",
    group="Data",
    multiple=True,
    metavar="NAME",
    help="Corruption, such as fog or jpeg. Repeatable.",
    show_default="all",
)
@option(
    "--level",
    group="Data",
    multiple=True,
    metavar="NAME",
    help="Severity: mild, medium or strong. Repeatable.",
    show_default="all three",
)
@axis_options("data", "split", "limit", "seed", "subset", "augment", "views", "train_perturb")
@axis_options("backbone", "weights", "layer", "pool", "resize", "crop", "precision")
@axis_options("head", "tune", "balance")
@option(
    "--baseline",
    group="Report",
    metavar="SPEC",
    default="",
    help="Backbone whose errors are the unit of the mean corruption error.",
    show_default="the first",
)
@grid_options
def robustness(family: tuple[str, ...], level: tuple[str, ...], baseline: str, **options: Any) -> None:
    """Evaluate heads on corrupted test images.

    A grid of corruptions, severities and heads. Writes robustness.csv and robustness_heads.csv (accuracy,
    drop, worst corruption, mean corruption error, feature drift) beside the files of `featkit ablate`.
    """
    from featkit.studies.robustness import head_rows, robustness_grid

    fixed = given_fixed(options)
    grid = robustness_grid(given_axes(options), family, level, fixed)
    matrix = run_grid(grid, options, baseline)
    if matrix and not options["as_json"]:
        click.echo("\n" + _table(head_rows(matrix.cells, baseline or str(grid.values("backbone")[0]))))


def _table(rows: list[Any]) -> str:
    numbers = ("clean %", "perturbed %", "95 % interval", "worst %", "mCE %", "mCE, 95 %")
    lines = [
        [
            "" if row.clean is None else f"{100 * row.clean:.1f}",
            f"{100 * row.perturbed:.1f}",
            between(row.perturbed_interval95),
            f"{100 * row.worst_top1:.1f}",
            "" if row.mce is None else f"{100 * row.mce:.1f}",
            "" if row.mce is None else between(row.mce_interval95),
            row.worst_family,
            *(row.values[axis] for axis in ("data", "backbone", "train_perturb", "head", "seed")),
        ]
        for row in rows
    ]
    named = ["worst family", "data", "backbone", "train_perturb", "head", "seed"]
    return table([*numbers, *named], lines, right=numbers)
