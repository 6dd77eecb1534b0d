"""The card of a run: what predicting with it needs, and the digests of its other files."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featkit.arguments import printable_line
from featkit.backbones.saved import is_path
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.request import Request
from featkit.errors import DataError, RunError, SpecError
from featkit.evaluation import Temperature
from featkit.evaluation.multilabel import LabelCalibration
from featkit.registry import check_types
from featkit.storage import file_sha256, read_json

RUNS_FOLDER = Path("experiments/runs")
"""Default folder for results."""
CARD_FILE = "card.json"
HEAD_FILE = "head.skops"
PREDICTIONS_FILE = "predictions.csv"
RESULTS_FILE = "results.json"
FOLDS_FILE = "folds.csv"
"""Out-of-fold predictions of every repeat."""

_LIMIT = 2**26
"""Largest card in bytes: a million class names fit."""
_FIX = "fit it again with `featkit fit`"


@dataclass(frozen=True)
class LabelRule:
    """How the score of one of several labels per image becomes an answer.

    Attributes:
        threshold: calibrated probability from which on an image has the label.
        calibration: of the score; None for none.
    """

    threshold: float
    calibration: LabelCalibration | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON can hold them."""
        return {
            "threshold": self.threshold,
            "calibration": asdict(self.calibration) if self.calibration else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelRule:
        """Read what ``to_dict`` returned.

        Raises:
            FeatkitError, KeyError, TypeError, ValueError: if something is missing or invalid.
        """
        stored, calibration = values["calibration"], None
        if stored is not None:
            check_types(LabelCalibration, stored)
            calibration = LabelCalibration(**stored)
            if not (calibration.slope > 0 and np.isfinite(calibration.intercept)):
                raise ValueError("slope of a label must be positive")
        threshold = float(values["threshold"])
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold {threshold} is not in 0..1")
        return cls(threshold, calibration)


@dataclass(frozen=True)
class Card:
    """Content of the card of a run.

    Attributes:
        run: id of the run.
        request: network and preprocessing.
        recipe: recipe of the features that the head was fitted on.
        weights: label of the weights of the network.
        classes: class names; the head's labels are positions in it.
        head_spec: spec of the head.
        head_sha256: digest of the file of the head.
        temperature: temperature of the head's scores, or None.
        threshold: confidence below which an image is rejected as unknown; 0 for never.
        cost: times and memory of the run.
        created: date and time.
        files: digest of each other file of the run; empty in runs of version 0.1.0.
        name: name that the user gave to the run, for tables and figures, see ``runs.names``; it is
            no part of the id. Empty if none was given, as in runs up to version 0.3.0.
        labels: threshold and calibration of each of several labels per image, whose names are
            ``classes``; empty for runs with one label per image.
    """

    run: str
    request: Request
    recipe: Recipe
    weights: str
    classes: tuple[str, ...]
    head_spec: str
    head_sha256: str
    temperature: Temperature | None = None
    threshold: float = 0.0
    cost: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    labels: tuple[LabelRule, ...] = ()

    @property
    def network(self) -> str:
        """Short name of the network; of a trained run that of the network it was trained from."""
        spec = self.request.backbone
        if not is_path(spec):
            return spec
        name = Path(spec).name
        if name != self.run:
            return name
        # The request of a trained run is for the run itself, see ``PreparedTraining.description``.
        return re.sub(rf"-\w+-{re.escape(self.run[:8])}$", "", self.recipe.backbone)

    def to_json(self) -> str:
        """Return the card as indented JSON with its checksum."""
        content: dict[str, Any] = {
            "run": self.run,
            "request": self.request.to_dict(),
            "recipe": self.recipe.to_dict(),
            "weights": self.weights,
            "classes": list(self.classes),
            "head": {"spec": self.head_spec, "file": HEAD_FILE, "sha256": self.head_sha256},
            "temperature": asdict(self.temperature) if self.temperature else None,
            "threshold": self.threshold,
            "cost": dict(self.cost),
            "created": self.created,
            "files": dict(self.files),
            "name": self.name,
        }
        if self.labels:
            content["labels"] = [rule.to_dict() for rule in self.labels]
        return json.dumps({**content, "sha256": seal(content)}, indent=2)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Card:
        """Build from the JSON of ``to_json``; types and ranges are checked, not the checksum.

        Raises:
            FeatkitError, KeyError, TypeError, ValueError: if something is missing or invalid.
        """
        head, temperature = content["head"], content.get("temperature")
        check_types(Recipe, content["recipe"])
        check_types(Request, content["request"])
        values = {
            "run": content["run"],
            "request": Request.from_dict(content["request"]),
            "recipe": Recipe(**content["recipe"]),
            "weights": content["weights"],
            "classes": content["classes"],
            "head_spec": head["spec"],
            "head_sha256": head["sha256"],
            "temperature": _read_temperature(temperature) if temperature is not None else None,
            "threshold": content.get("threshold", 0.0),
            "cost": content.get("cost", {}),
            "created": content.get("created", ""),
            "files": content.get("files", {}),
            "name": content.get("name", ""),
            "labels": [LabelRule.from_dict(rule) for rule in content.get("labels", ())],
        }
        check_types(cls, values)
        values["classes"] = tuple(values["classes"])
        values["labels"] = tuple(values["labels"])
        if values["labels"] and len(values["labels"]) != len(values["classes"]):
            raise ValueError("there must be a threshold for each label")
        card = cls(**values)
        if not card.classes or len(set(card.classes)) < len(card.classes):
            raise ValueError("classes must be different names")
        if not 0 <= card.threshold <= 1:
            raise ValueError(f"threshold {card.threshold} is not in 0..1")
        if card.name:
            printable_line(card.name)
        return card

    def check_file(self, path: Path) -> None:
        """Check that a file of the run is the one that the run wrote.

        Files of version 0.1.0, which recorded only the head, are accepted.

        Raises:
            RunError: if it was changed.
            OSError: if it cannot be read.
        """
        expected = self.head_sha256 if path.name == HEAD_FILE else self.files.get(path.name)
        if expected is None or file_sha256(path) == expected:
            return
        if path.name == HEAD_FILE:
            card = path.with_name(CARD_FILE)
            raise RunError(f"{path} is not the head that {card} describes: {_FIX}")
        raise RunError(_unreadable(path.parent, f"{path.name} was changed after the run"))


def _read_temperature(values: Any) -> Temperature:
    check_types(Temperature, values)
    temperature = Temperature(**values)
    if temperature.value <= 0 or temperature.smoothing < 0:
        raise ValueError("temperature must be positive")
    return temperature


def seal(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of canonical JSON, without the key ``sha256`` that stores it."""
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_card(directory: Path) -> Card:
    """Read the card of a run directory and verify its checksum.

    Raises:
        RunError: if it is missing, cannot be read or was changed.
    """
    path = directory / CARD_FILE
    with run_errors(directory):
        content = read_json(path, _LIMIT)
        if content["sha256"] != seal(content):
            raise RunError(f"{path} was changed after the run: {_FIX}")
        return Card.from_dict(content)


@contextmanager
def run_errors(directory: Path) -> Iterator[None]:
    """Convert errors while a run directory is read.

    Raises:
        RunError: for a missing or invalid file.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(missing_run_message(directory, Path(error.filename).name)) from error
    except KeyError as error:
        raise RunError(_unreadable(directory, f"{error} is missing")) from error
    except OSError as error:
        raise RunError(_unreadable(directory, error.strerror or str(error))) from error
    except (SpecError, DataError, AttributeError, TypeError, ValueError) as error:
        raise RunError(_unreadable(directory, str(error))) from error


def _unreadable(directory: Path, reason: str) -> str:
    return f"{directory} cannot be read as a run ({reason}): {_FIX}"


def is_run(directory: Path) -> bool:
    """Return whether a directory has the card and the head of a run."""
    return (directory / CARD_FILE).is_file() and (directory / HEAD_FILE).is_file()


def missing_run_message(directory: Path, missing: str) -> str:
    """Return the error message for a path that is not the directory of a run.

    Args:
        directory: the given path; if it does not exist, its name may be the start of a run id.
        missing: name of the missing file.
    """
    if directory.is_file():
        return _message_for_file(directory)
    if not directory.exists():
        similar = _runs_below(RUNS_FOLDER, f"{glob.escape(directory.name)}*")
        if directory.name and similar:
            return f"there is no run at {directory}: did you mean {_some_paths(similar)}?"
        return (
            f"there is no run at {directory}: give the directory that `featkit fit` printed, by "
            f"default in {RUNS_FOLDER}"
        )
    inside = _runs_below(directory, "*")
    if inside:
        return f"{directory} is not a run but a folder of runs: give one, such as {inside[0]}"
    return (
        f"{directory} is not a run directory: {missing} is missing; "
        "fit it again with `featkit fit`, or give the directory that `featkit fit` printed"
    )


def _message_for_file(file: Path) -> str:
    """Return the error message for a file that is given in place of a run directory."""
    if is_run(file.parent):
        return f"{file} is a file of a run: give the directory, {file.parent}"
    return (
        f"{file} is not a run directory but a file: give the directory that `featkit fit` printed, "
        "and then the images, as in `featkit predict RUN IMAGE`"
    )


def _runs_below(folder: Path, name: str) -> list[Path]:
    """Return the run directories in a folder or one folder deeper, whose name matches a pattern."""
    found: list[Path] = []
    for pattern in (name, f"*/{name}"):
        cards = sorted(folder.glob(f"{pattern}/{CARD_FILE}"))
        found.extend(card.parent for card in cards if is_run(card.parent))
    return found


def _some_paths(paths: Sequence[Path]) -> str:
    more = ["..."] if len(paths) > _MOST_NAMED else []
    return ", ".join([*map(str, paths[:_MOST_NAMED]), *more])


_MOST_NAMED = 3
