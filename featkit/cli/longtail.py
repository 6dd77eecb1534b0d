"""`featkit longtail`."""

from __future__ import annotations

from typing import Any

import click

from featkit.cli.matrix import axis_option, given_axes, limit_option, matrix_options, run_grid, seed_option
from featkit.cli.options import between, table

EPILOG = """\b
Examples:
  featkit longtail --data photos --backbone resnet50
  featkit longtail --data photos --if 10 --if 50 --balance none --balance logit_adjust --seed 0 --seed 1
  featkit longtail --data photos --subset longtail:profile=natural --head linear --head svm
  featkit longtail --data photos --dry-run

\b
Train keeps n_max * IF^(-c/(C-1)) images of the class at place c of C, in an order by seed. A correction's
own options are chosen on val; `best on val` marks the correction that val would choose, whatever test says.
Gains are over none, in points of balanced accuracy on the same test images.
"""


@click.command(epilog=EPILOG)
@axis_option("data", "SPEC", "[digits]")
@axis_option("backbone", "SPEC", "[resnet18]")
@axis_option("weights", "WHICH", "[imagenet]")
@click.option("--if", "factors", multiple=True, type=float, help="Repeatable: imbalance factor. [10 and 50]")
@axis_option("subset", "SPEC", "Instead of --if: longtail:if=50,profile=step, longtail:profile=natural, ...")
@axis_option("balance", "SPEC", "[none and all corrections]")
@axis_option("head", "SPEC", "[linear]")
@seed_option
@limit_option
@matrix_options
def longtail(factors: tuple[float, ...], limit: str | None, **options: Any) -> None:
    """Compare corrections for classes of unequal size.

    A matrix of imbalance factors, corrections and heads. Writes longtail.csv beside the files of `featkit ablate`.
    """
    from featkit.studies.longtail import longtail_grid, tail_rows

    axes = given_axes(options)
    if factors and "subset" in axes:
        raise click.UsageError("--if and --subset both say which part of train: leave one out")
    grid = longtail_grid(axes, factors or (10.0, 50.0), {"limit": limit} if limit else {})
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
