"""Combine several prunings into one table and one figure.

    python experiments/pruning_figure.py OUT NAME=FOLDER...

Each FOLDER is an ``--out`` of ``featkit prune --head``; writes OUT.csv and OUT.png.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from featkit.reports.figures import sparsity_figures
from featkit.storage import csv_text


def main(out: str, *prunings: str) -> None:
    """Read the steps of each pruning and write them to one table and one figure."""
    steps = {}
    for pruning in prunings:
        name, _, folder = pruning.partition("=")
        (file,) = Path(folder).glob("prune/*-steps/steps.csv")
        steps[name] = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    rows = [{"course": name, **row} for name, lines in steps.items() for row in lines]
    Path(f"{out}.csv").write_text(csv_text(rows), encoding="utf-8")
    figure = sparsity_figures(steps, f"linear, n = {rows[0]['n']}")
    Path(f"{out}.png").write_bytes(figure["steps.png"])


if __name__ == "__main__":
    main(*sys.argv[1:])
