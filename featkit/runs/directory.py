"""Run directories: card, results, predictions, head and figures of one run."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featkit.backbones.base import Backbone, QuantizedNetwork
from featkit.backbones.saved import INT8_FILE, NETWORK_FILE
from featkit.embeddings.calibration import find_by_digest
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.request import Request
from featkit.errors import CacheError, RunError, WeightsError
from featkit.evaluation import Temperature
from featkit.heads.persist import load_head, save_head
from featkit.runs.fit import Run
from featkit.storage import Content, csv_text, file_sha256, publish

RUNS_FOLDER = Path("experiments/runs")
"""Default folder for results."""
CARD_FILE = "card.json"
HEAD_FILE = "head.skops"
PREDICTIONS_FILE = "predictions.csv"
RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class SavedRun:
    """A run read from its directory, ready to predict.

    Attributes:
        path: the directory.
        request: network and preprocessing.
        classes: class names; the head's labels are positions in it.
        head: the fitted estimator.
        head_spec: spec of the head.
        recipe: recipe of the features that the head was fitted on.
        quantized: the int8 network that extracted the features, if it was one.
        temperature: temperature of the head's scores; None if there was no validation set.
        threshold: confidence below which an image is rejected as unknown; 0 for never.
    """

    path: Path
    request: Request
    classes: tuple[str, ...]
    head: Any
    head_spec: str
    recipe: Recipe
    quantized: QuantizedNetwork | None = None
    temperature: Temperature | None = None
    threshold: float = 0.0

    def load_backbone(self) -> Backbone:
        """Load the network that extracted the features.

        Raises:
            WeightsError: if the weights found are not those that the head was fitted with.
        """
        backbone = replace(self.request.load_backbone(), quantized=self.quantized)
        if backbone.digest != self.recipe.weights:
            raise WeightsError(
                f"{self.path} was fitted with weights {self.recipe.weights[:12]}, "
                f"but {backbone.weights} has {backbone.digest[:12]}: "
                "copy the original weights to the folder of weights"
            )
        return backbone


def save_run(run: Run, out: Path, more: Mapping[str, Content]) -> Path:
    """Write the run directory ``out/<data>/<run id>/`` atomically and return its path.

    Args:
        run: the run.
        out: folder for results.
        more: other files by name, such as figures.

    Raises:
        StorageError: if the disk is full or cannot be written.
    """
    directory = out / run.source.data / run.id
    head_digest = ""

    def write_head(path: Path) -> None:
        nonlocal head_digest
        save_head(run.head, path)
        head_digest = file_sha256(path)

    def write_card(path: Path) -> None:
        # Files are written in the order of the dict: the digest of the head is known here.
        card = _card(run, head_digest)
        path.write_text(json.dumps({**card, "sha256": seal(card)}, indent=2), encoding="utf-8")

    predictions = [
        {**row, "confidence": f"{row['confidence']:.6f}"} for row in run.prediction_rows()
    ]
    files: dict[str, Content] = {
        HEAD_FILE: write_head,
        CARD_FILE: write_card,
        RESULTS_FILE: json.dumps(run.to_dict(), indent=2),
        PREDICTIONS_FILE: csv_text(predictions),
        **more,
    }
    calibration = run.source.embeddings.recipe.calibration
    if calibration != "none":
        files[INT8_FILE] = _read_quantized_network(run, calibration)
    publish(directory, files)
    return directory


def _read_quantized_network(run: Run, sha256: str) -> bytes:
    """Return the file of the int8 network of the features; a run needs it to predict."""
    cache = run.source.path.parent
    found = run.source.request.load_backbone().quantized or find_by_digest(cache, sha256)
    if found is None:
        raise CacheError(
            f"the int8 network {sha256[:12]} of the features was not found in {cache}: "
            "extract them again"
        )
    return found.path.read_bytes()


def _card(run: Run, head_digest: str) -> dict[str, Any]:
    report = run.report
    return {
        "run": run.id,
        "request": run.source.request.to_dict(),
        "recipe": asdict(run.source.embeddings.recipe),
        "weights": run.source.weights,
        "classes": list(run.source.embeddings.classes),
        "head": {"spec": run.head_spec, "file": HEAD_FILE, "sha256": head_digest},
        "temperature": asdict(report.temperature) if report.temperature else None,
        "threshold": report.rejection.threshold if report.rejection else 0.0,
        "cost": dict(report.cost),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def seal(card: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of canonical JSON, without the key ``sha256`` that stores it."""
    content = {name: value for name, value in card.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
        f"{file} is not a run directory but a file: give the directory that `featkit fit` printed, and then "
        "the images, as in `featkit predict RUN IMAGE`"
    )


def _runs_below(folder: Path, name: str) -> list[Path]:
    """Return the run directories in a folder or one folder deeper, whose name matches a pattern."""
    found = []
    for pattern in (name, f"*/{name}"):
        cards = sorted(folder.glob(f"{pattern}/{CARD_FILE}"))
        found.extend(card.parent for card in cards if is_run(card.parent))
    return found


def _some_paths(paths: Sequence[Path]) -> str:
    more = ["..."] if len(paths) > _MOST_NAMED else []
    return ", ".join([*map(str, paths[:_MOST_NAMED]), *more])


_MOST_NAMED = 3


def load_run(directory: Path) -> SavedRun:
    """Read a run directory and verify the checksums of its card and its head.

    Raises:
        RunError: if a file is missing, cannot be read or was changed.
        HeadError: if the head contains a type that is not on the list of trusted types.
    """
    fix = "fit it again with `featkit fit`"
    card_file, head_file = directory / CARD_FILE, directory / HEAD_FILE
    try:
        card = json.loads(card_file.read_text(encoding="utf-8"))
        if card["sha256"] != seal(card):
            raise RunError(f"{card_file} was changed after the run: {fix}")
        if file_sha256(head_file) != card["head"]["sha256"]:
            raise RunError(f"{head_file} is not the head that {card_file} describes: {fix}")
        recipe = Recipe(**card["recipe"])
        request = Request.from_dict(card["request"])
        if (directory / NETWORK_FILE).exists():
            # The run has its own network, and the directory may have been moved since.
            request = replace(request, backbone=str(directory))
        quantized = None
        if recipe.calibration != "none":
            quantized = QuantizedNetwork(directory / INT8_FILE, recipe.calibration)
        temperature = card.get("temperature")
        return SavedRun(
            path=directory,
            request=request,
            classes=tuple(card["classes"]),
            head=load_head(head_file),
            head_spec=card["head"]["spec"],
            recipe=recipe,
            quantized=quantized,
            temperature=Temperature(**temperature) if temperature else None,
            threshold=float(card.get("threshold", 0.0)),
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(missing_run_message(directory, Path(error.filename).name)) from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{card_file} cannot be read ({error}): {fix}") from error
