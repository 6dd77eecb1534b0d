"""Combine the sparsity curves of several prunings into one table and one figure.

    python experiments/pruning_figure.py OUT NAME=FOLDER...

Each FOLDER is the ``--out`` of a ``featkit prune --head``. Writes OUT.csv and OUT.png.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from featkit.reports.figures import sparsity_figures
from featkit.storage import csv_text


def main(out: str, *prunings: str) -> None:
    """Read steps.csv of each pruning and write one table and one figure."""
    steps_by_name = {}
    rows = []
    for pruning in prunings:
        name, _, folder = pruning.partition("=")
        (file,) = Path(folder).glob("prune/*-steps/steps.csv")
        steps = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
        steps_by_name[name] = steps
        rows += [{"course": name, **step} for step in steps]
    Path(f"{out}.csv").write_text(csv_text(rows), encoding="utf-8")
    figures = sparsity_figures(steps_by_name, f"linear, n = {rows[0]['n']}")
    Path(f"{out}.png").write_bytes(figures["steps.png"])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
