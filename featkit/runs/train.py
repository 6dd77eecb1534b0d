"""A trained network is judged as every head is, and kept in a run directory that is a backbone again."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from featkit.backbones import load_backbone
from featkit.backbones.saved import NETWORK_FILE, save_network
from featkit.embeddings.base import Embeddings
from featkit.embeddings.extract import embed
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys, make_recipe
from featkit.errors import DataError, RunError, TrainingError
from featkit.evaluation import Predictions, Temperature, evaluate, fit_temperature
from featkit.evaluation.calibration import apply_temperature
from featkit.evaluation.report import Report
from featkit.heads.linear import LinearHead
from featkit.runs.compare import read_run
from featkit.runs.directory import save_run
from featkit.runs.features import FeatureSet
from featkit.runs.fit import PACKAGES, Run
from featkit.runs.predict import gathered
from featkit.runs.splits import unseen
from featkit.storage import Content, csv_text, peak_memory_mb
from featkit.training.checkpoint import CHECKPOINT_FILE
from featkit.training.finetune import TrainingResult, finetune
from featkit.training.history import EpochRecord, history_numbers, history_rows
from featkit.training.loop import ExecutionConfig
from featkit.training.prepare import PreparedTraining

Lines = list[dict[str, float]]
"""Lines of a ``history.csv``; what is empty in it is NaN."""

Draw = Callable[[Run, Lines], Mapping[str, bytes]]
"""Figures by file name, of a run and its history."""


@dataclass(frozen=True)
class TrainedRun:
    """A trained network and what it is worth.

    Attributes:
        report: on test.
        history: epoch by epoch.
        path: the run directory.
    """

    report: Report
    history: Lines
    path: Path


def work_folder(prepared: PreparedTraining, out: Path) -> Path:
    """Return where the checkpoints of a training lie until it is done."""
    return out / prepared.images.name / f".{prepared.id}.training"


def train_run(
    prepared: PreparedTraining, execution: ExecutionConfig, out: Path, draw: Draw
) -> TrainedRun | None:
    """Train a network, judge it on test, and keep it.

    Args:
        prepared: what is to be trained.
        how: how; ``execution.folder`` is set here.
        out: folder of the results.
        draw: figures by file name, from a run and its history.

    Returns:
        None in a process that is not the one that writes.
    """
    execution = replace(execution, folder=work_folder(prepared, out))
    trained = finetune(prepared, execution)
    return None if execution.group.rank else publish_trained(trained, execution.compute, out, draw)


def publish_trained(trained: TrainingResult, compute: Compute, out: Path, draw: Draw) -> TrainedRun:
    """Judge a trained network and write its run directory; its checkpoints are then removed.

    Raises:
        StorageError: if the disk is full; the checkpoints are then still there.
    """
    prepared = trained.prepared
    with tempfile.TemporaryDirectory(prefix="featkit-") as scratch:
        file = Path(scratch, NETWORK_FILE)
        save_network(trained.network, prepared.description, file)
        run = judge(trained, file, compute, out)
        extra: dict[str, Content] = {
            NETWORK_FILE: lambda path: _copied(file, path),
            "history.csv": history_csv(trained.history),
            **draw(run, history_numbers(trained.history)),
        }
        path = save_run(run, out, extra)
    shutil.rmtree(work_folder(prepared, out), ignore_errors=True)
    return TrainedRun(run.report, history_numbers(trained.history), path)


def finished(prepared: PreparedTraining, out: Path) -> TrainedRun | None:
    """Return the same training if it was done before, or None.

    Raises:
        RunError: if its directory cannot be read.
    """
    path = out / prepared.images.name / prepared.id
    if not (path / "card.json").exists():
        return None
    recipe = json.loads((path / "card.json").read_text(encoding="utf-8"))["recipe"]
    if [recipe["images"], recipe["labels"]] != list(prepared.test):
        raise RunError(
            f"the test images changed since {path} was judged: train again without --resume"
        )
    return TrainedRun(read_run(path)[1], read_history(path / "history.csv"), path)


def _copied(file: Path, path: Path) -> None:
    shutil.copyfile(file, path)


def judge(trained: TrainingResult, file: Path, compute: Compute, out: Path) -> Run:
    """Judge a trained network on test images, through the same engine that will embed other images.

    Args:
        trained: the network.
        file: where it was saved.
        compute: how it is run.
        out: folder of the results.

    Raises:
        DataError: if there is no test image.
    """
    prepared = trained.prepared
    images, config = prepared.images, prepared.config
    directory = out / images.name / prepared.id
    request = replace(
        prepared.config.request, backbone=str(directory), weights="imagenet", augment=None
    )
    head = LinearHead.from_weights(trained.coef, trained.intercept, np.arange(len(images.classes)))
    test = _embedded(prepared, file, "test", compute)
    if not len(test):
        raise DataError(f"{images.name} has no test image: give --split, such as 70/15/15")
    scores = head.predict_proba(test.x)
    temperature = _temperature(head, _embedded(prepared, file, "val", compute))
    counts = np.bincount(images.labels[images.splits == "train"], minlength=len(images.classes))
    spec = {"scratch": "from scratch", "shallow": "classifier"}.get(
        config.mode, f"{config.mode} fine-tuning"
    )
    spec += f", {prepared.about}" if prepared.about else ""
    report = evaluate(
        scores,
        test.y,
        images.classes,
        temperature=temperature,
        train_counts=counts,
        warnings=unseen(images.classes, test.y, np.flatnonzero(counts)),
        provenance={
            "request": request.to_dict(),
            "fingerprint": prepared.fingerprint,
            "weights": prepared.description.label,
            "head": spec,
            "training": config.to_dict(),
            "begun_with": {"backbone": prepared.backbone.name, "weights": prepared.backbone.digest},
            "seed": config.seed,
            "n_train": int((images.splits == "train").sum()),
            "n_val": int((images.splits == "val").sum()),
            "versions": {name: version(name) for name in PACKAGES},
        },
        cost={
            "fit_seconds": sum(each.seconds for each in trained.history),
            "peak_memory_mb": peak_memory_mb(),
        },
        seed=config.seed,
    )
    shown = apply_temperature(scores, temperature) if temperature else scores
    predictions = Predictions(test.ids, test.y, scores.argmax(axis=1), shown.max(axis=1))
    source = FeatureSet(request, test, directory, images.name, prepared.description.label)
    return Run(prepared.id, source, spec, head, report, predictions)


def _embedded(prepared: PreparedTraining, file: Path, split: str, compute: Compute) -> Embeddings:
    """Return the embeddings of one split through a saved network."""
    part = prepared.images.take(prepared.images.rows(split))
    backbone, precision = load_backbone(str(file)), prepared.config.request.precision
    _, x = gathered(embed(part, [(backbone, precision, frozenset(range(len(part))))], compute))
    recipe = make_recipe(part, content_keys(part, compute), backbone, precision)
    return Embeddings(x, part.labels, part.ids, part.classes, part.splits, recipe)


def _temperature(head: LinearHead, val: Embeddings) -> Temperature | None:
    return (
        fit_temperature(head.predict_proba(val.x), val.y, np.arange(len(val.classes)))
        if len(val)
        else None
    )


def history_csv(history: list[EpochRecord]) -> str:
    """Return one line for each epoch: rate, loss, top-1, top-5 and n on train and val."""
    return csv_text(list(history_rows(history)))


def read_history(path: Path) -> Lines:
    """Return the lines of a ``history.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: float(value or "nan") for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def is_begun(prepared: PreparedTraining, out: Path) -> bool:
    """Return whether there is a checkpoint to go on from.

    Raises:
        TrainingError: if there is none, but one of another training on these images.
    """
    if (work_folder(prepared, out) / CHECKPOINT_FILE).exists():
        return True
    others = sorted((out / prepared.images.name).glob(f".*.training/{CHECKPOINT_FILE}"))
    if others:
        raise TrainingError(
            f"{others[0].parent} is of another training: images, network or settings changed since; "
            "give the former ones, or begin anew without --resume"
        )
    return False
