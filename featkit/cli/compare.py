"""``featkit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import UserPath, command, json_option
from featkit.cli.output import between, print_json, print_line, print_text, table
from featkit.cli.table_files import check_table_options, prints_table, table_options, write_tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from featkit.evaluation import PairedComparison, Report
    from featkit.evaluation.multilabel import MultiLabelReport
    from featkit.runs.compare import CommonAccuracy, RunComparison

EPILOG = """\b
Examples:
  featkit compare flowers-v1 flowers-v2
  featkit compare experiments/runs/photos/*/ --json
  featkit compare experiments/runs/photos/*/ --latex comparison.tex
  featkit compare experiments/runs/photos/*/ --markdown -
"""


@command(epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, type=UserPath(), metavar="RUN RUN...")
@table_options
@json_option
def compare(runs: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Compare runs that were evaluated on the same test images.

    For each pair: the difference in top-1 accuracy with its 95% confidence interval, and McNemar's
    test (mid-p) with Holm correction; over groups of images, if they have groups. Runs on the same
    folds are compared by the corrected resampled t-test too. A run on folds is compared with one on
    a test set over the images that both were evaluated on. Runs with the same --cost are compared
    by the difference of their mean costs too, and runs on images with several labels by their mean
    average precision (mAP).
    """
    from featkit import api

    options["as_json"] = as_json
    check_table_options(options)
    found = api.compare(runs)
    write_tables(found, options)
    if as_json:
        print_json(found.to_dict())
    elif not prints_table(options):
        print_comparison(found.runs, found.pairs, found.common)
        print_further_pairs(found)
        if found.note:
            print_line(found.note)


def print_further_pairs(found: RunComparison) -> None:
    """Print a line for each pair of runs that were evaluated on the same folds, or with costs."""
    for sentence in found.further_sentences:
        print_line(sentence)


def print_comparison(
    runs: Iterable[tuple[str, Report | MultiLabelReport]],
    pairs: Iterable[PairedComparison],
    common: Sequence[CommonAccuracy] = (),
) -> None:
    """Print a table of runs in their order, and a line for each pair.

    Args:
        runs: name and report of each run.
        pairs: every two of them.
        common: accuracy of each run on the images of the pairs, if these are not all of its images.
    """
    from featkit.evaluation.costs import mean_cost_text
    from featkit.evaluation.standing import standings_of_pairs

    runs, pairs = list(runs), list(pairs)
    values = [each.top1 for each in common] or [report.headline.value for _, report in runs]
    names = [name for name, _ in runs]
    standings = standings_of_pairs(dict(zip(names, values, strict=True)), pairs)
    with_costs = any(report.decision_cost for _, report in runs)
    rows = []
    metric = ""
    for row, (name, report) in enumerate(runs):
        found = standings.get(name)
        metric, value, interval = report.headline
        numbers = [f"{100 * value:.1f}", between(interval), report.n]
        if with_costs:
            numbers.append(mean_cost_text(report.decision_cost) if report.decision_cost else "")
        rows.append([name, *numbers, *_common_cells(common, row), found.text if found else ""])
    right = [f"{metric} %", "95% CI", "n", *(["mean cost (95% CI)"] if with_costs else [])]
    if common:
        right += [f"on {common[0].n} common", "its 95% CI"]
    print_text(table(["run", *right, "compared with the best"], rows, right=right))
    print_line("")
    for pair in pairs:
        print_line(pair.sentence)


def _common_cells(common: Sequence[CommonAccuracy], row: int) -> list[str]:
    """Return accuracy and interval of a run on common images; nothing if there are none."""
    if not common:
        return []
    return [f"{100 * common[row].top1:.1f}", between(common[row].interval95)]
