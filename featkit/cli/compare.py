"""``featkit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featkit.cli.options import UserPath, command, json_option
from featkit.cli.output import between, print_json, print_line, print_text, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from featkit.evaluation import PairedComparison, Report

EPILOG = """\b
Examples:
  featkit compare experiments/runs/photos/0123456789ab experiments/runs/photos/ba9876543210
  featkit compare experiments/runs/photos/*/ --json
"""


@command(epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, type=UserPath(), metavar="RUN RUN...")
@json_option
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Compare runs that were evaluated on the same test images.

    For each pair: the difference in top-1 accuracy with its 95% confidence interval, and McNemar's
    test (mid-p) with Holm correction.
    """
    from featkit import api

    found = api.compare(runs)
    if as_json:
        print_json(found.to_dict())
        return
    print_comparison(found.runs, found.pairs)
    if found.note:
        print_line(found.note)


def print_comparison(runs: Iterable[tuple[str, Report]], pairs: Iterable[PairedComparison]) -> None:
    """Print a table of runs in their order, and a line for each pair."""
    rows = []
    for name, report in runs:
        rows.append([name, f"{100 * report.top1:.1f}", between(report.interval95), report.n])
    print_text(table(["run", "top-1 %", "95% CI", "n"], rows, right=("top-1 %", "95% CI", "n")))
    print_line("")
    for pair in pairs:
        print_line(pair.sentence)
