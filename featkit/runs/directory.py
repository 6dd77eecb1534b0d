"""The directory that a run leaves behind: ``card.json``, ``results.json``, predictions, the head, the figures."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featkit.backbones.base import Backbone, QuantizedNetwork
from featkit.backbones.saved import INT8_FILE, NETWORK_FILE
from featkit.embeddings.calibration import find as find_calibration
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.request import Request
from featkit.errors import CacheError, RunError, WeightsError
from featkit.evaluation import Temperature
from featkit.heads.persist import load_head, save_head
from featkit.runs.features import FeatureSet
from featkit.runs.fit import Run
from featkit.storage import Content, publish

HEAD_FILE = "head.skops"
PREDICTIONS_FILE = "predictions.csv"


@dataclass(frozen=True)
class SavedRun:
    """What a run directory holds, ready to predict.

    Attributes:
        path: the directory.
        request: which network, which preprocessing.
        classes: class names; the head's labels are positions in it.
        head: the fitted estimator.
        head_spec: how it was asked for.
        recipe: what decided the vectors that it was fitted on.
        quantized: the int8 network that made the vectors, if it was one.
        temperature: what makes the head's scores mean what they say, if there was val to choose it on.
        threshold: confidence below which an image is unknown, 0 if it never is.
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
        """Return the network that made the vectors.

        Raises:
            WeightsError: if there are other weights now than those that the head was fitted on.
        """
        backbone = replace(self.request.load_backbone(), quantized=self.quantized)
        if backbone.digest != self.recipe.weights:
            raise WeightsError(
                f"{self.path} was made with weights {self.recipe.weights[:12]}, but {backbone.weights} has "
                f"{backbone.digest[:12]}: put the former where featkit looks for weights"
            )
        return backbone


def results(run: Run) -> dict[str, Any]:
    """Return what ``results.json`` holds: the same for the same seed on the same machine."""
    tried = {"search": [each._asdict() for each in run.search.candidates]} if run.search else {}
    return {"run": run.id, **run.report.to_dict(), **tried}


def _predictions(run: Run) -> str:
    """Return one line for each test image: names of the true and the predicted class, and the confidence."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "true", "predicted", "confidence"])
    classes, predictions = run.source.embeddings.classes, run.predictions
    assert predictions.confidence is not None  # fit_run always computes it
    for name, true, predicted, confidence in zip(
        predictions.ids, predictions.y, predictions.predicted, predictions.confidence, strict=True
    ):
        writer.writerow([name, classes[true], classes[predicted], f"{confidence:.6f}"])
    return out.getvalue()


def save_run(run: Run, out: Path, more: Mapping[str, Content]) -> Path:
    """Write ``out/<data>/<run id>/`` whole or not at all, and return it; ``more`` are figures and other files.

    Raises:
        StorageError: if the disk is full or cannot be written.
    """
    directory = out / run.source.data / run.id
    digests: dict[str, str] = {}

    def write_head(path: Path) -> None:
        save_head(run.head, path)
        digests["head"] = hashlib.sha256(path.read_bytes()).hexdigest()

    def write_card(path: Path) -> None:
        card = _card(run, digests["head"])
        path.write_text(json.dumps({**card, "sha256": seal(card)}, indent=2), encoding="utf-8")

    files: dict[str, Content] = {
        HEAD_FILE: write_head,
        "card.json": write_card,
        "results.json": json.dumps(results(run), indent=2),
        PREDICTIONS_FILE: _predictions(run),
        **more,
    }
    calibration = run.source.embeddings.recipe.calibration
    if calibration != "none":
        files[INT8_FILE] = _network(run.source, calibration)
    publish(directory, files)
    return directory


def _network(source: FeatureSet, sha256: str) -> bytes:
    """Read the int8 network that made the vectors: without it, the run could not predict anywhere else."""
    cache = source.path.parent
    found = source.request.load_backbone().quantized or find_calibration(cache, sha256)
    if found is None:
        raise CacheError(f"the int8 network {sha256[:12]} that made the vectors is no longer in {cache}: extract again")
    return found.path.read_bytes()


def _card(run: Run, head_digest: str) -> dict[str, Any]:
    recipe = run.source.embeddings.recipe
    return {
        "run": run.id,
        "request": run.source.request.to_dict(),
        "recipe": asdict(recipe),
        "weights": run.source.weights,
        "classes": list(run.source.embeddings.classes),
        "head": {"spec": run.head_spec, "file": HEAD_FILE, "sha256": head_digest},
        "temperature": asdict(run.report.temperature) if run.report.temperature else None,
        "threshold": run.report.rejection.threshold if run.report.rejection else 0.0,
        "cost": dict(run.report.cost),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def seal(card: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of a card's canonical JSON, in which the card's own ``sha256`` does not count."""
    content = {name: value for name, value in card.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_run(directory: Path) -> bool:
    """Return whether a directory has a card and a head, as a run does."""
    return (directory / "card.json").is_file() and (directory / HEAD_FILE).is_file()


def load_run(directory: Path) -> SavedRun:
    """Read a run directory, checking the card (classes, temperature) and the head against their digests.

    Raises:
        RunError: if a part is missing, cannot be read or was changed.
        HeadError: if the head holds anything that is not on the trusted list.
    """
    again = "make it again with `featkit fit`"
    try:
        card = json.loads((directory / "card.json").read_text(encoding="utf-8"))
        if card["sha256"] != seal(card):
            raise RunError(f"{directory / 'card.json'} was changed after the run: {again}")
        head_file = directory / HEAD_FILE
        found = hashlib.sha256(head_file.read_bytes()).hexdigest()
        if found != card["head"]["sha256"]:
            raise RunError(f"{head_file} is not the head that {directory / 'card.json'} describes: {again}")
        recipe = Recipe(**card["recipe"])
        request = Request.from_dict(card["request"])
        if (directory / NETWORK_FILE).exists():
            # The directory may have been moved since.
            request = replace(request, backbone=str(directory))
        return SavedRun(
            path=directory,
            request=request,
            classes=tuple(card["classes"]),
            head=load_head(head_file),
            head_spec=card["head"]["spec"],
            recipe=recipe,
            temperature=Temperature(**card["temperature"]) if card.get("temperature") else None,
            threshold=float(card.get("threshold", 0.0)),
            quantized=None if recipe.calibration == "none" else QuantizedNetwork(directory / INT8_FILE, recipe.calibration),
        )
    except FileNotFoundError as error:
        raise RunError(
            f"{directory} is not a run directory: {Path(error.filename).name} is missing; {again}"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{directory / 'card.json'} cannot be read ({error}): {again}") from error
