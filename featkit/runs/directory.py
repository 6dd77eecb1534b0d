"""Run directories: card, results, predictions, head and figures of one run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featkit.backbones.base import Backbone, QuantizedNetwork
from featkit.backbones.saved import INT8_CARD, INT8_FILE, NETWORK_FILE, is_path
from featkit.embeddings.calibration import find_by_digest
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.request import Request
from featkit.errors import CacheError, DataError, RunError, WeightsError
from featkit.evaluation import Temperature
from featkit.evaluation.multilabel import MultiLabelReport
from featkit.heads.persist import load_head, save_head
from featkit.images.base import ImageSet
from featkit.images.multilabel import multilabel_message
from featkit.runs.bundle import bundled_backbone, missing_weights
from featkit.runs.card import (
    CARD_FILE,
    FOLDS_FILE,
    HEAD_FILE,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    Card,
    LabelRule,
    is_run,
    read_card,
    run_errors,
)
from featkit.runs.fit import Run
from featkit.runs.multilabel import MultiLabelRun
from featkit.runs.names import network_name, readable
from featkit.runs.registry import remember_folder
from featkit.storage import Content, csv_text, file_sha256, publish, read_directory, write_file

if TYPE_CHECKING:
    from featkit.runs.predict import Prediction

log = logging.getLogger(__name__)


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
        name: name that the user gave to the run; empty if none was given.
        labels: threshold and calibration of each label of a run with several labels per image, in
            the order of ``classes``; empty for one label per image.
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
    name: str = ""
    labels: tuple[LabelRule, ...] = ()

    @property
    def multilabel(self) -> bool:
        """Whether the run gives an image several labels."""
        return bool(self.labels)

    @property
    def title(self) -> str:
        """The given name, or a composed one, such as ``linear on ResNet-18``."""
        if self.name:
            return self.name
        if (self.path / NETWORK_FILE).exists():  # a trained network, described by its own name
            return self.network
        return f"{readable(self.head_spec)} on {self.network}"

    @property
    def network(self) -> str:
        """Name of the network, such as ``ResNet-18, int8``."""
        request = self.request
        return network_name(request.backbone, weights=request.weights, precision=request.precision)

    def predict(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        top: int = 5,
        all_probabilities: bool = False,
        compute: Compute | None = None,
    ) -> list[Prediction]:
        """Classify image files.

        Args:
            files: image files, and folders with images in them or below them.
            top: number of classes per image, the most probable first.
            all_probabilities: whether each prediction has the probability of every class too.
            compute: device, batch size, treatment of unreadable images.

        Raises:
            WeightsError: if the weights of the network are not found, or are other weights.
            DataError: if there is no image, or one cannot be read.
        """
        from featkit.runs.predict import image_names, predict

        names = image_names([files] if isinstance(files, str | Path) else files)
        return predict(
            self, names, compute or Compute(), top=top, all_probabilities=all_probabilities
        )

    def check_images(self, *fixes: str) -> None:
        """Check that the images of the run are still where they were.

        Args:
            fixes: what else can be done if they are not.

        Raises:
            DataError: if they are not, or were given in memory.
        """
        if not self.request.data:
            raise DataError(
                f"the images of {self.path} were given in memory, not by --data",
                fixes=["fit again with --data", *fixes],
            )
        if not self.request.source_exists:
            raise DataError(
                f"the images of {self.path} are no longer at {self.request.data}",
                fixes=["move them back", *fixes],
            )

    def load_images(self) -> ImageSet:
        """Load the images that the run was fitted and evaluated on.

        Raises:
            DataError: if they are no longer where they were, or cannot be used.
        """
        self.check_images()
        return self.request.load_images()

    def load_backbone(self) -> Backbone:
        """Load the network that extracted the features.

        Raises:
            WeightsError: if the weights are not found, or not those that the head was fitted with.
            RunError: if the weights that are bundled with the run were changed.
        """
        backbone = bundled_backbone(self.path, self.request, self.recipe)
        if backbone is None:
            backbone = self._find_backbone()
        backbone = replace(backbone, quantized=self.quantized)
        if backbone.digest != self.recipe.weights:
            raise WeightsError(
                f"{self.path} was fitted with weights {self.recipe.weights[:12]}, "
                f"but {backbone.weights} has {backbone.digest[:12]}: "
                "copy the original weights to the folder of weights"
            )
        return backbone

    def _find_backbone(self) -> Backbone:
        """Find the network on this machine; raises WeightsError that says what is missing."""
        try:
            return self.request.load_backbone()
        except WeightsError as error:
            if is_path(self.request.backbone) or not is_run(self.path):
                raise
            message = missing_weights(self.path, self.request, self.recipe, error)
            raise WeightsError(message) from error


def save_run(run: Run | MultiLabelRun, out: Path, more: Mapping[str, Content]) -> Path:
    """Write the run directory ``out/<data>/<run id>/`` atomically and return its path.

    Args:
        run: the run.
        out: folder for results.
        more: other files by name, such as figures.

    Raises:
        StorageError: if the disk is full or cannot be written.
    """
    directory = out / run.source.data / run.id
    earlier = _earlier_card(directory)
    if earlier and not run.name:  # a run that is repeated keeps its name
        run = replace(run, name=earlier.name)
    if earlier and earlier.name not in ("", run.name):
        log.info("the run was named %s before, and is %s now", earlier.name, run.name)
    files: dict[str, Content] = {}

    def write_card(path: Path) -> None:
        # Files are written in the order of the dict: all others are there by now.
        names = [name for name in files if name != CARD_FILE]
        digests = {name: file_sha256(path.with_name(name)) for name in names}
        path.write_text(_card(run, digests).to_json(), encoding="utf-8")

    files |= {
        HEAD_FILE: partial(save_head, run.head),
        RESULTS_FILE: json.dumps(run.to_dict(), indent=2),
        PREDICTIONS_FILE: csv_text([_rounded(row) for row in run.prediction_rows()]),
        **more,
    }
    if run.folds is not None:
        files[FOLDS_FILE] = csv_text([_rounded(row) for row in run.fold_rows()])
    calibration = run.source.embeddings.recipe.calibration
    if calibration != "none":
        files[INT8_FILE] = _read_quantized_network(run, calibration)
    files[CARD_FILE] = write_card
    publish(directory, files, own=list(earlier.files) if earlier else [])
    remember_folder(out)
    return directory


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with probabilities of six decimals, and the score as exact as it is."""
    found = dict(row)
    for name, value in row.items():
        if isinstance(value, float):
            found[name] = repr(value) if name == "score" else f"{value:.6f}"
    return found


def rename_run(directory: Path, name: str) -> None:
    """Give a finished run another name; nothing else in its directory changes.

    Raises:
        RunError: if its card cannot be read.
        StorageError: if the disk is full or cannot be written.
    """
    card = read_card(directory)
    if card.name != name:
        write_file(directory / CARD_FILE, replace(card, name=name).to_json())


def _earlier_card(directory: Path) -> Card | None:
    """Return the card of the same run from an earlier time, if there is one that can be read."""
    try:
        return read_card(directory)
    except RunError:
        return None


def _read_quantized_network(run: Run | MultiLabelRun, sha256: str) -> bytes:
    """Return the file of the int8 network of the features; a run needs it to predict."""
    cache = run.source.path.parent
    found = run.source.request.load_backbone().quantized or find_by_digest(cache, sha256)
    if found is None:
        raise CacheError(
            f"the int8 network {sha256[:12]} of the features was not found in {cache}: "
            "extract them again"
        )
    return found.path.read_bytes()


def _card(run: Run | MultiLabelRun, digests: Mapping[str, str]) -> Card:
    if isinstance(run, MultiLabelRun):
        rules = label_rules(run.report)
        return replace(_plain_card(run, digests), classes=run.report.labels, labels=rules)
    report = run.report
    rejection = report.rejection
    return replace(
        _plain_card(run, digests),
        temperature=report.temperature,
        threshold=rejection.threshold if rejection else 0.0,
    )


def label_rules(report: MultiLabelReport) -> tuple[LabelRule, ...]:
    """Return threshold and calibration of each label of a report."""
    return tuple(LabelRule(row.threshold, row.calibration) for row in report.per_label)


def _plain_card(run: Run | MultiLabelRun, digests: Mapping[str, str]) -> Card:
    """Return the card of a run without temperature and thresholds."""
    return Card(
        run=run.id,
        request=run.source.request,
        recipe=run.source.embeddings.recipe,
        weights=run.source.weights,
        classes=run.source.embeddings.classes,
        head_spec=run.head_spec,
        head_sha256=digests[HEAD_FILE],
        cost=run.report.cost,
        # With its fraction: "latest" tells runs of the same second apart.
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
        files=digests,
        name=run.name,
    )


def load_run(directory: Path, *, multilabel: bool = False) -> SavedRun:
    """Read a run directory and verify the checksums of its card and its head.

    Args:
        directory: of the run.
        multilabel: whether the run may have several labels per image.

    Raises:
        RunError: if a file is missing, cannot be read or was changed; or if the run has several
            labels per image, unless ``multilabel``.
        HeadError: if the head contains a type that is not on the list of trusted types.
    """
    run = read_directory(directory, lambda: _load_run(directory))
    if not multilabel:
        refuse_multilabel_run(run)
    return run


def refuse_multilabel_run(run: SavedRun) -> None:
    """Raise RunError if a run has several labels per image."""
    if run.multilabel:
        raise RunError(multilabel_message(str(run.path), "this command"))


def _load_run(directory: Path) -> SavedRun:
    card = read_card(directory)
    head_file = directory / HEAD_FILE
    with run_errors(directory):
        card.check_file(head_file)
        head = load_head(head_file)
        _check_labels(head, len(card.classes))
    # Earlier versions decoded all images in full, and did not record it.
    request = replace(card.request, decode=card.request.decode or "full")
    quantized = None
    if any((directory / name).exists() for name in (NETWORK_FILE, INT8_CARD)):
        # The run has its own network, and the directory may have been moved since.
        request = replace(request, backbone=str(directory))
    if card.recipe.calibration != "none":
        quantized = QuantizedNetwork(directory / INT8_FILE, card.recipe.calibration)
    return SavedRun(
        path=directory,
        request=request,
        classes=card.classes,
        head=head,
        head_spec=card.head_spec,
        recipe=card.recipe,
        quantized=quantized,
        temperature=card.temperature,
        threshold=float(card.threshold),
        name=card.name,
        labels=card.labels,
    )


def _check_labels(head: Any, classes: int) -> None:
    """Raise ValueError if the labels of a head are not positions in the class names."""
    labels = np.asarray(head.classes_)
    valid = labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels) > 0
    if not valid or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"the labels of {HEAD_FILE} are not those of {classes} classes")
