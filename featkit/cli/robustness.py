"""`featkit robustness`."""

from __future__ import annotations

from typing import Any

import click

from featkit.cli.matrix import axis_option, given_axes, limit_option, matrix_options, run_grid, seed_option
from featkit.cli.options import between, table

EPILOG = """\b
Examples:
  featkit robustness --data photos --backbone resnet18 --backbone resnet50 --baseline resnet18
  featkit robustness --data photos --family fog --family jpeg --level strong
  featkit robustness --data photos --train-perturb none --train-perturb mixed:level=medium
  featkit robustness --data photos --limit test=1000 --dry-run

\b
Only test images are perturbed; a head that was fitted on images as they are is judged on all of them.
--train-perturb fits it on a perturbed view of each train image as well.
"""


@click.command(epilog=EPILOG)
@axis_option("data", "SPEC", "[digits]")
@axis_option("backbone", "SPEC", "[resnet18]")
@axis_option("weights", "WHICH", "[imagenet]")
@axis_option("family", "NAME", "[all 21]")
@axis_option("level", "NAME", "mild, medium or strong. [all three]")
@axis_option("train-perturb", "SPEC", "Such as mixed:level=medium. [none]")
@axis_option("head", "SPEC", "[linear]")
@seed_option
@limit_option
@click.option("--baseline", metavar="SPEC", default="", help="Network of which errors are a multiple. [the first]")
@matrix_options
def robustness(family: tuple[str, ...], level: tuple[str, ...], baseline: str, **options: Any) -> None:
    """Judge heads on perturbed test images.

    A matrix of families, levels and heads. Writes robustness.csv and robustness_heads.csv beside the files of
    `featkit ablate`: accuracy, drop, relative drop, worst family, mean corruption error, how far vectors move.
    """
    from featkit.studies.robustness import head_rows, robustness_grid

    fixed = {"limit": options["limit"]} if options["limit"] else {}
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
