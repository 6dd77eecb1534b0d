"""``featkit longtail``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featkit.cli.grid_commands import axis_options, grid_options, print_grid
from featkit.cli.options import FiniteRange, command, option
from featkit.cli.output import between, print_text, table
from featkit.cli.table_files import prints_table

if TYPE_CHECKING:
    from featkit.ablation.conditions import LongTailRow

EPILOG = """\b
Examples:
  featkit longtail --data photos --backbone resnet50
  featkit longtail --data photos --if 50 --balance none --balance logit-adjust --seed 0 --seed 1
  featkit longtail --data photos --subset longtail:profile=natural --head linear --head svm
  featkit longtail --data photos --latex longtail.tex
  featkit longtail --data photos --dry-run
  featkit longtail --data photos --cluster local:4

\b
Class c of C keeps n_max * IF^(-c/(C-1)) train images; the order of the classes is random.
Hyperparameters of corrections are tuned on the validation set; `values tried` is their number.
`best on val` marks the correction with the best balanced accuracy on the validation set. Gains are
differences in balanced accuracy from `none` on the same test images, in points; their p-values are
adjusted for the number of gains.
"""


@command(epilog=EPILOG)
@option(
    "--if",
    "factors",
    group="Data",
    multiple=True,
    type=FiniteRange(),
    help="Imbalance factor: ratio of the largest to the smallest class size. Repeatable.",
    show_default="10 and 50",
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
    "perturb",
    "train_perturb",
)
@axis_options("backbone", "weights", "layer", "pool", "resize", "crop", "precision")
@axis_options("head", "balance", balance="all corrections")
@grid_options
def longtail(factors: tuple[float, ...], **options: Any) -> None:
    """Compare class-imbalance corrections on long-tailed training sets.

    Runs a grid of imbalance factors, corrections and heads. Writes longtail.csv in addition to the
    files of `featkit ablate`.
    """
    from featkit import api
    from featkit.ablation.conditions import long_tail

    grid = api.longtail_grid({**options, "factors": factors or None})
    result = print_grid(grid, options)
    if result and not options["as_json"] and not prints_table(options):
        print_text("\n" + _table(long_tail(result.findings)))


def _table(rows: Sequence[LongTailRow]) -> str:
    from featkit.ablation.conditions import GROUPS
    from featkit.reports.wording import p_text, tuning_notes

    numbers = (
        "balanced accuracy %",
        "95% CI",
        "gain",
        "gain, unadjusted 95% CI",
        "Holm-adjusted p",
        "values tried",
        "many",
        "medium",
        "few",
        "seeds",
    )
    axes = ("data", "backbone", "subset", "head", "balance")
    lines = []
    for row in rows:
        gain = ["", "", ""]
        if row.gain:
            points, interval = f"{100 * row.gain.difference:+z.1f}", between(row.gain.interval95)
            gain = [points, interval, p_text(row.gain.p_holm)]
        groups = [
            f"{100 * row.groups[name].value:.1f}" if name in row.groups else "" for name in GROUPS
        ]
        lines.append(
            [
                f"{100 * row.mean.value:.1f}",
                between(row.mean.interval95),
                *gain,
                row.candidates,
                *groups,
                row.mean.seeds,
                *(row.values[axis] for axis in axes),
                "best on val" if row.best_on_val else "",
            ]
        )
    lines_below = []
    gains = [row.gain for row in rows if row.gain]
    if gains:
        significant = sum(gain.significant for gain in gains)
        lines_below.append(
            f"{significant} of {len(gains)} gains are significant (p below 0.05 after Holm "
            "correction); their intervals are unadjusted."
        )
    lines_below.extend(tuning_notes(rows))
    return "\n".join([table([*numbers, *axes, ""], lines, right=numbers), *lines_below])
