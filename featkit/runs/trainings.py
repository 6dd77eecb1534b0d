"""Several trainings in one file: one table, and the curves of all of them in one figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featkit.errors import SpecError
from featkit.registry import check_names
from featkit.runs.train import TrainedRun
from featkit.storage import expand_variables, read_toml, safe_name
from featkit.training.config import TrainingConfig


@dataclass(frozen=True)
class TrainingStudy:
    """Trainings to be compared.

    Attributes:
        name: short name of the study.
        configs: by name.
    """

    name: str
    configs: Mapping[str, TrainingConfig]


def read_trainings(path: Path, cache: Path) -> TrainingStudy:
    """Read ``[fixed]`` and ``[[run]]`` from a TOML file; a run's own options come before the fixed ones.

    Environment variables in ``data``, as in ``$HOME/photos``, are replaced by their values.

    Args:
        path: the file.
        cache: folder of the cache files.

    Raises:
        SpecError: if it is not there, is not TOML, has no run, or asks for something that nobody
            knows.
    """
    document = read_toml(path, "a study")
    check_names("part of a study", document, ["name", "fixed", "run"])
    runs, fixed = document.get("run", []), document.get("fixed", {})
    tables = (
        isinstance(runs, list)
        and all(isinstance(run, dict) for run in runs)
        and isinstance(fixed, dict)
    )
    if not tables or not runs:
        raise SpecError(
            f"{path} has no trainings: write [[run]] and, below it, mode = 'deep' and other options"
        )
    configs = {}
    for run in runs:
        options = {name: value for name, value in {**fixed, **run}.items() if name != "name"}
        if "data" in options:
            options["data"] = expand_variables(options["data"])
        name = str(run.get("name", run.get("mode", "deep")))
        if name in configs:
            raise SpecError(
                f"{path} has two runs called {name}: give one of them another name = '...'"
            )
        configs[name] = TrainingConfig.from_options(options, cache)
    return TrainingStudy(safe_name(str(document.get("name", path.stem))), configs)


def to_rows(done: Mapping[str, TrainedRun]) -> list[dict[str, Any]]:
    """Return a row for each run: top-1 with its interval, top-5, n, epochs."""
    rows = []
    for name, each in done.items():
        report = each.report
        low, high = report.interval95
        scores = {"n": report.n, "top1": report.top1, "low": low, "high": high, "top5": report.top5}
        rows.append({"name": name, "run": each.path.name, **scores, "epochs": len(each.history)})
    return rows
