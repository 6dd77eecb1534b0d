"""``featkit robustness``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featkit.cli.grid_commands import axis_options, grid_options, print_grid
from featkit.cli.options import command, option
from featkit.cli.output import between, print_text, table
from featkit.cli.table_files import prints_table

if TYPE_CHECKING:
    from featkit.ablation.conditions import DropRow

EPILOG = """\b
Examples:
  featkit robustness --data photos --backbone resnet18 --backbone resnet50 --baseline resnet18
  featkit robustness --data photos --family fog --family jpeg --level strong
  featkit robustness --data photos --train-perturb none --train-perturb mixed:level=medium
  featkit robustness --data photos --latex robustness.tex
  featkit robustness --data photos --limit test=1000 --dry-run
  featkit robustness --data photos --cluster tcp://head-node:8786

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
@axis_options(
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
    "train_perturb",
)
@axis_options("backbone", "weights", "layer", "pool", "resize", "crop", "precision")
@axis_options("head", "tune", "balance")
@option(
    "--baseline",
    group="Report",
    metavar="SPEC",
    default="",
    help="Backbone by which the mean corruption error is normalised.",
    show_default="first backbone",
)
@grid_options
def robustness(**options: Any) -> None:
    """Evaluate heads on corrupted test images.

    Runs a grid of corruptions, severities and heads. Writes robustness.csv and
    robustness_heads.csv (accuracy, drop, worst corruption, mean corruption error, feature drift) in
    addition to the files of `featkit ablate`.
    """
    from featkit import api
    from featkit.ablation.conditions import drops_by_classifier

    grid, baseline = api.robustness_grid(options), options["baseline"]
    result = print_grid(grid, options, baseline)
    if result and not options["as_json"] and not prints_table(options):
        baseline = baseline or str(grid.values("backbone")[0])
        print_text("\n" + _table(drops_by_classifier(result.findings, baseline)))


def _table(rows: Sequence[DropRow]) -> str:
    from featkit.reports.wording import p_text

    numbers = (
        "clean %",
        "perturbed %",
        "95% CI",
        "drop",
        "drop, unadjusted 95% CI",
        "Holm-adjusted p",
        "worst %",
        "mCE %",
        "mCE, 95% CI",
        "seeds",
    )
    axes = ("data", "backbone", "train_perturb", "head")
    lines = []
    for row in rows:
        worst_family, worst = (row.worst[0], f"{100 * row.worst[1]:.1f}") if row.worst else ("", "")
        mce = ["", ""]
        if row.mce is not None and row.mce_interval95 is not None:
            mce = [f"{100 * row.mce:.1f}", between(row.mce_interval95)]
        values = row.values or {}
        lines.append(
            [
                f"{100 * row.clean.value:.1f}",
                f"{100 * row.perturbed.value:.1f}",
                between(row.perturbed.interval95),
                f"{100 * row.drop.difference:+.1f}",
                between(row.drop.interval95),
                p_text(row.drop.p_holm),
                worst,
                *mce,
                row.drop.seeds,
                worst_family,
                *(values.get(axis, "") for axis in axes),
            ]
        )
    return table([*numbers, "worst family", *axes], lines, right=numbers)
