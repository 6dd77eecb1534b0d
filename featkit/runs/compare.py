"""Saved runs, compared on the images that they were all judged on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featkit.backbones.saved import is_path
from featkit.errors import DataError, RunError, SpecError
from featkit.evaluation import PairedComparison, Predictions, Report, compare
from featkit.runs.directory import PREDICTIONS_FILE


@dataclass(frozen=True)
class Compared:
    """Some runs, best first, and what can be said about each pair of them."""

    runs: tuple[tuple[str, Report], ...]
    pairs: tuple[PairedComparison, ...]


def compare_runs(directories: Sequence[Path]) -> Compared:
    """Compare run directories; a run is named by its head and backbone, and by its id where that is not enough.

    Raises:
        SpecError: if there are fewer than two runs.
        RunError: if a directory is not that of a run, or was made before runs kept their predictions.
        DataError: if two runs were judged on different images or labels.
    """
    if len({directory.resolve() for directory in directories}) < 2:
        raise SpecError("a comparison needs two runs or more: give their directories")
    found = [read_run(directory) for directory in directories]
    titles = [title for title, _, _ in found]
    names = [
        title if titles.count(title) == 1 else f"{title} ({directory.name})"
        for title, directory in zip(titles, directories, strict=True)
    ]
    best_first = sorted(zip(names, found, strict=True), key=lambda run: -run[1][1].top1)
    pairs = compare({name: predictions for name, (_, _, predictions) in best_first})
    return Compared(tuple((name, report) for name, (_, report, _) in best_first), tuple(pairs))


def read_run(directory: Path) -> tuple[str, Report, Predictions]:
    """Return what a run is called, its report, and what it predicted.

    Raises:
        RunError: if the directory is not that of a run, or was made before runs kept their predictions.
    """
    again = "make it again with `featkit fit`"
    try:
        report = Report.from_json((directory / "results.json").read_text(encoding="utf-8"))
        rows = list(csv.DictReader(io.StringIO((directory / PREDICTIONS_FILE).read_text(encoding="utf-8"))))
        made = report.provenance
        extra = [" tuned"] if made.get("tuned") else []
        extra += [f" {made[name]}" for name in ("balance", "subset") if made.get(name)]
        extra += [f" {made['request']['perturb']}"] if made["request"].get("perturb") else []
        title = f"{made['head']}{''.join(extra)} on {_network(made)}"
        ids = [row["id"] for row in rows]
        y, predicted = (np.array([row[name] for row in rows]) for name in ("true", "predicted"))
    except FileNotFoundError as error:
        raise RunError(f"{directory} is no run to compare: {Path(error.filename).name} is missing; {again}") from error
    except (OSError, DataError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{directory} cannot be read as a run ({error}): {again}") from error
    return title, report, Predictions(ids, y, predicted)


def _network(made: Mapping[str, Any]) -> str:
    """Return the name of a run's network: of one that was trained, what it was made from."""
    begun: str = made.get("begun_with", {}).get("backbone", "")
    backbone: str = made["request"]["backbone"]
    return begun or (str(made["weights"]) if is_path(backbone) else backbone)


def to_json(compared: Compared) -> str:
    """Return the runs and the pairs as indented JSON."""
    runs = [{"name": name, "n": run.n, "top1": run.top1, "interval95": run.interval95} for name, run in compared.runs]
    return json.dumps({"runs": runs, "pairs": [pair.to_dict() for pair in compared.pairs]}, indent=2)
