"""Study files: several trainings in one TOML file, compared in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featkit.arguments import NAME
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
        configs: the trainings by name, or by mode where no name is given.
        names: the names that are given, each by itself; runs are saved with them.
    """

    name: str
    configs: Mapping[str, TrainingConfig]
    names: Mapping[str, str]


def read_training_study(path: Path, cache: Path) -> TrainingStudy:
    """Read ``[fixed]`` and ``[[run]]`` from a TOML file; options of a run override the fixed ones.

    Environment variables in ``data``, such as ``$HOME/photos``, are expanded.

    Args:
        path: the file.
        cache: folder of the cache files.

    Raises:
        SpecError: if the file is missing, is not TOML, has no run, or has an unknown option or
            value.
    """
    document = read_toml(path, "a study")
    check_names("part of a study", document, ["name", "fixed", "run"])
    runs, fixed = document.get("run", []), document.get("fixed", {})
    valid = isinstance(fixed, dict) and isinstance(runs, list)
    if not valid or not runs or not all(isinstance(run, dict) for run in runs):
        raise SpecError(
            f"{path} has no trainings: write [[run]] and, below it, mode = 'deep' and other options"
        )
    configs: dict[str, TrainingConfig] = {}
    names: dict[str, str] = {}
    for run in runs:
        options = {**fixed, **run}
        name = str(run.get("mode", "deep"))
        if "name" in run:
            name = str(NAME.check("name", run["name"]))
            names[name] = name
        options.pop("name", None)
        if "data" in options:
            options["data"] = expand_variables(options["data"])
        if name in configs:
            raise SpecError(
                f"{path} has two runs named {name}: give one of them another name = '...'"
            )
        configs[name] = TrainingConfig.from_options(options, cache)
    return TrainingStudy(safe_name(str(document.get("name", path.stem))), configs, names)


def to_rows(runs: Mapping[str, TrainedRun]) -> list[dict[str, Any]]:
    """Return a table of the runs: top-1 with its interval, top-5, test loss, test images, epochs.

    The loss is the mean cross-entropy of the test images, in nats.
    """
    rows = []
    for name, run in runs.items():
        low, high = run.report.interval95
        rows.append(
            {
                "name": name,
                "run": run.path.name,
                "n": run.report.n,
                "top1": run.report.top1,
                "low": low,
                "high": high,
                "top5": run.report.top5,
                "loss": run.report.nll,
                "epochs": len(run.history),
            }
        )
    return rows
