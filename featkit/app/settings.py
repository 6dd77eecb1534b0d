"""What the app may read and where it writes: the paths that were named when it was started."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featkit.errors import DataError, RunError
from featkit.images.archives import is_archive_spec
from featkit.images.remote import is_url
from featkit.images.sources import SOURCES
from featkit.runs.card import is_run

VARIABLE = "FEATKIT_APP"
"""Environment variable with the settings as JSON, for the pages and for the training process."""

DIGITS = "digits"
"""The data set that needs no path: 1,797 scanned digits of scikit-learn."""

UPLOAD_MB = 50
"""Largest file that can be uploaded, in megabytes."""

MAX_UPLOADS = 200
"""Largest number of images that are classified at once."""

_MAX_RUNS = 500


@dataclass(frozen=True)
class AppSettings:
    """Paths that the pages may use.

    Attributes:
        runs: run directories, exported files (``.onnx``), and folders of both.
        data: specs of images: folders, CSV files, or names such as ``digits``.
        studies: folders with results of ``ablate``, ``longtail`` and ``robustness``.
        cache: folder of the embeddings cache.
        out: folder for new runs.
        device: where networks run.
    """

    runs: tuple[Path, ...] = ()
    data: tuple[str, ...] = ()
    studies: tuple[Path, ...] = ()
    cache: Path = Path("cache")
    out: Path = Path("experiments/runs")
    device: str = "auto"

    def to_json(self) -> str:
        """Return the settings as JSON, with absolute paths."""
        return json.dumps(
            {
                "runs": [str(path.resolve()) for path in self.runs],
                "data": list(self.data),
                "studies": [str(path.resolve()) for path in self.studies],
                "cache": str(self.cache.resolve()),
                "out": str(self.out.resolve()),
                "device": self.device,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> AppSettings:
        """Read what ``to_json`` returned."""
        values: dict[str, Any] = json.loads(text)
        return cls(
            runs=tuple(map(Path, values["runs"])),
            data=tuple(values["data"]),
            studies=tuple(map(Path, values["studies"])),
            cache=Path(values["cache"]),
            out=Path(values["out"]),
            device=values["device"],
        )

    @property
    def jobs(self) -> Path:
        """Folder with the state of trainings that the app has started."""
        return self.out / ".app"


def current_settings() -> AppSettings:
    """Return the settings of this process; the defaults outside of ``featkit app``."""
    text = os.environ.get(VARIABLE)
    return AppSettings.from_json(text) if text else AppSettings()


def check_settings(settings: AppSettings) -> None:
    """Check the paths that were named.

    Raises:
        RunError: if a run does not exist, or a folder holds no run.
        DataError: if images do not exist.
    """
    for path in settings.runs:
        if not path.exists():
            raise RunError(
                f"there is no run at {path}: give the directory that `featkit fit` printed"
            )
        if not runs_below([path]):
            raise RunError(
                f"{path} holds no run and no exported file: give the directory that `featkit fit` "
                "printed, a folder of runs, or a file written by `featkit export`"
            )
    for spec in settings.data:
        if is_path_spec(spec) and not Path(spec).exists():
            raise DataError(f"the images {spec} do not exist: give a folder or a CSV file")
    for path in settings.studies:
        if not path.is_dir():
            raise DataError(f"{path} is not a folder: give the folder of a study's results")


def is_path_spec(spec: str) -> bool:
    """Return whether a spec of images is a path, not the name of a data source."""
    is_named = spec.partition(":")[0] in SOURCES.names()
    return not (is_named or is_archive_spec(spec) or is_url(spec))


def runs_below(paths: Sequence[Path]) -> list[Path]:
    """Return run directories and exported files, newest first: those named, and those in folders.

    Folders are searched two levels deep, as ``experiments/runs/<data>/<run>``.
    """
    found: dict[Path, float] = {}
    for path in paths:
        for each in _candidates(path):
            if each.suffix == ".onnx" or is_run(each):
                found.setdefault(each, each.stat().st_mtime)
    return sorted(found, key=lambda each: (-found[each], str(each)))[:_MAX_RUNS]


def _candidates(path: Path) -> list[Path]:
    if path.is_file() or is_run(path):
        return [path]
    return sorted([*path.glob("*"), *path.glob("*/*")])


def named_data(settings: AppSettings) -> list[str]:
    """Return the specs of images that can be chosen, ``digits`` last."""
    return list(dict.fromkeys([*settings.data, DIGITS]))


def resolve_data(settings: AppSettings, spec: str) -> str:
    """Return the spec of images that a page may read: named at the start, or a folder below.

    Args:
        settings: the paths that were named.
        spec: what was chosen or typed on a page.

    Raises:
        DataError: if it is not among the named images nor a folder below one, or does not exist.
    """
    spec = spec.strip()
    if spec in named_data(settings):
        return spec
    path = Path(spec).expanduser()
    folders = [Path(each).resolve() for each in settings.data if is_path_spec(each)]
    inside = spec != "" and any(path.resolve().is_relative_to(folder) for folder in folders)
    if not inside:
        raise DataError(
            f"{spec or 'no path'} was not named when the app was started: start it with "
            f"`featkit app --data {shlex.quote(spec or 'FOLDER')}`"
        )
    if not path.is_dir():
        raise DataError(f"{spec} is not a folder: give a folder of images")
    return str(path)


def resolve_run(settings: AppSettings, text: str) -> Path:
    """Return the run that a page may read.

    Raises:
        RunError: if it is not among the named runs, nor among those that the app has made.
    """
    for path in available_runs(settings):
        if str(path) == text:
            return path
    raise RunError(
        f"{text} is not among the runs of this app: start it with `featkit app {shlex.quote(text)}`"
    )


def available_runs(settings: AppSettings) -> list[Path]:
    """Return the runs that can be chosen: those named, and those that the app has made."""
    made = [settings.out] if settings.out.is_dir() else []
    return runs_below([*settings.runs, *made])
