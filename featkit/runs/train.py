"""Train a network, evaluate it, and save it to a run directory that can be used as a backbone."""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from featkit.backbones import load_backbone
from featkit.backbones.saved import KERAS, NETWORK_FILE, save_network
from featkit.embeddings.base import Embeddings
from featkit.embeddings.extract import embed
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys, make_recipe
from featkit.errors import DataError, RunError, TrainingError
from featkit.evaluation import Temperature, fit_temperature
from featkit.evaluation.costs import CostMatrix
from featkit.evaluation.report import Report
from featkit.heads.linear import LinearHead
from featkit.runs.card import CARD_FILE, read_card, run_errors
from featkit.runs.directory import rename_run, save_run
from featkit.runs.features import FeatureSet
from featkit.runs.fit import Run, evaluate_classifier, package_versions, report_costs
from featkit.runs.predict import gathered
from featkit.runs.results import read_run
from featkit.runs.splits import (
    group_facts,
    group_warnings,
    untested_class_warnings,
    untrained_class_warnings,
)
from featkit.storage import Content, LockHeldError, csv_text, locked, read_text
from featkit.training.checkpoint import CHECKPOINT_FILE
from featkit.training.finetune import TrainingResult, finetune
from featkit.training.history import history_numbers, history_rows
from featkit.training.loop import ExecutionConfig
from featkit.training.prepare import PreparedTraining

HISTORY_FILE = "history.csv"

History = list[dict[str, float]]
"""Rows of ``history.csv``; empty values are NaN."""

Draw = Callable[[Run, History], Mapping[str, bytes]]
"""Draws the figures of a run and its history, by file name."""


@dataclass(frozen=True)
class TrainedRun:
    """A trained network.

    Attributes:
        report: on the test set.
        history: one row per epoch.
        path: the run directory.
    """

    report: Report
    history: History
    path: Path


def checkpoint_folder(prepared: PreparedTraining, out: Path) -> Path:
    """Return the folder of the checkpoints of a training; it is removed when the run is saved."""
    return out / prepared.images.name / f".{prepared.id}.training"


def has_checkpoint(prepared: PreparedTraining, out: Path) -> bool:
    """Return whether there is a checkpoint to resume from.

    Raises:
        TrainingError: if there is only one of another training on these images.
    """
    if (checkpoint_folder(prepared, out) / CHECKPOINT_FILE).exists():
        return True
    others = sorted((out / prepared.images.name).glob(f".*.training/{CHECKPOINT_FILE}"))
    if others:
        raise TrainingError(
            f"{others[0].parent} is of another training: images, network or options have changed; "
            "restore them, or start again without --resume"
        )
    return False


def find_finished(
    prepared: PreparedTraining, out: Path, costs: CostMatrix | None = None
) -> TrainedRun | None:
    """Return the run of the same training if it has finished before, or None.

    Args:
        prepared: the training.
        out: folder of the results.
        costs: what its evaluation must report, or None.

    Raises:
        RunError: if its directory cannot be read, the test images have changed, or it was evaluated
            without these costs.
    """
    path = out / prepared.images.name / prepared.id
    if not (path / CARD_FILE).exists():
        return None
    card = read_card(path)
    if (card.recipe.images, card.recipe.labels) != prepared.test:
        raise RunError(
            f"the test images have changed since {path} was evaluated: train again without --resume"
        )
    for name in (HISTORY_FILE, NETWORK_FILE):
        with run_errors(path):
            card.check_file(path / name)
    report = read_run(path)[1]
    found = None if report.decision_cost is None else report.decision_cost.matrix.rows
    if costs is not None and found != costs.rows:
        raise RunError(
            f"{path} has finished, and was evaluated with {'no' if found is None else 'other'} "
            "costs: leave out --cost, or train again without --resume"
        )
    if prepared.name:
        rename_run(path, prepared.name)
    return TrainedRun(report, read_history(path / HISTORY_FILE), path)


def train_run(
    prepared: PreparedTraining,
    execution: ExecutionConfig,
    out: Path,
    draw: Draw,
    *,
    costs: CostMatrix | None = None,
) -> TrainedRun | None:
    """Train a network, evaluate it on the test set, and save it.

    Args:
        prepared: the training.
        execution: device, callbacks, processes; its folder is set here.
        out: folder of the results.
        draw: draws the figures.
        costs: cost of each predicted class for each true class, which the evaluation reports.

    Returns:
        None in all but the main process.
    """
    folder = checkpoint_folder(prepared, out)
    with training_folder(folder, execution):
        result = finetune(prepared, replace(execution, folder=folder))
        if not execution.group.is_main:
            return None
        return publish_trained(result, execution.compute, out, draw, costs=costs)


@contextmanager
def training_folder(folder: Path, execution: ExecutionConfig) -> Iterator[None]:
    """Hold the lock of a folder of checkpoints; an interruption says what is kept in it.

    Raises:
        TrainingError: if another process is running the same training.
    """
    with ExitStack() as stack:
        if execution.group.is_main:
            stack.callback(_remove_if_empty, folder)
            try:
                stack.enter_context(locked(folder / ".lock"))
            except LockHeldError as error:
                raise TrainingError(
                    f"{error.owner} is running the same training in {folder.parent}: "
                    "wait for it, or choose another --out"
                ) from None
        try:
            yield
        except KeyboardInterrupt as interrupt:
            if (folder / CHECKPOINT_FILE).exists():
                interrupt.add_note(f"the last checkpoint is kept in {folder}")
            raise


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def publish_trained(
    result: TrainingResult,
    compute: Compute,
    out: Path,
    draw: Draw,
    *,
    costs: CostMatrix | None = None,
) -> TrainedRun:
    """Evaluate a trained network, write its run directory and remove its checkpoints.

    Raises:
        StorageError: if the disk is full; the checkpoints are kept.
    """
    prepared = result.prepared
    history = history_numbers(result.history)
    with tempfile.TemporaryDirectory(prefix="featkit-") as folder:
        file = Path(folder, NETWORK_FILE)
        save_network(result.network, prepared.description, file)
        run = evaluate_trained(result, file, compute, out, costs=costs)
        files: dict[str, Content] = {
            NETWORK_FILE: partial(shutil.copyfile, file),
            HISTORY_FILE: csv_text(list(history_rows(result.history))),
            **draw(run, history),
        }
        path = save_run(run, out, files)
    shutil.rmtree(checkpoint_folder(prepared, out), ignore_errors=True)
    return TrainedRun(run.report, history, path)


def evaluate_trained(
    result: TrainingResult,
    file: Path,
    compute: Compute,
    out: Path,
    *,
    costs: CostMatrix | None = None,
) -> Run:
    """Evaluate a trained network on the test images, through the engine that embeds images.

    Args:
        result: the network.
        file: where it is saved.
        compute: how the embeddings are extracted.
        out: folder of the results.
        costs: cost of each predicted class for each true class, or None.

    Raises:
        DataError: if there are no test images.
    """
    prepared = result.prepared
    images, config = prepared.images, prepared.config
    directory = out / images.name / prepared.id
    head = LinearHead.from_weights(result.coef, result.intercept, np.arange(len(images.classes)))
    test = _extract(prepared, file, "test", compute)
    if not len(test):
        raise DataError(f"{images.name} has no test images: give --split, such as 70/15/15")
    train_labels = images.labels[images.splits == "train"]
    counts = np.bincount(train_labels, minlength=len(images.classes))
    request = replace(config.request, backbone=str(directory), weights="imagenet", augment=None)
    head_spec = _describe_training(prepared)
    report, predictions, probabilities = evaluate_classifier(
        head,
        test,
        temperature=_fit_temperature(head, _extract(prepared, file, "val", compute)),
        train_counts=counts,
        warnings=[
            *untrained_class_warnings(images.classes, test.y, np.flatnonzero(counts)),
            *untested_class_warnings(images.classes, test.y, np.flatnonzero(counts)),
            *group_warnings(np.array(images.groups, np.str_), images.splits),
        ],
        provenance={
            "request": request.to_dict(),
            "fingerprint": prepared.fingerprint,
            "weights": prepared.description.label,
            "head": head_spec,
            "training": config.to_dict(),
            "begun_with": {
                "backbone": prepared.backbone.name,
                "weights": prepared.backbone.digest,
            },
            "seed": config.seed,
            "n_train": len(train_labels),
            "n_val": int((images.splits == "val").sum()),
            **group_facts(np.array(images.groups, np.str_), images.splits),
            "versions": package_versions(),
        },
        fit_seconds=sum(epoch.seconds for epoch in result.history),
        seed=config.seed,
    )
    report = report_costs(report, costs, head, predictions, probabilities)
    features = FeatureSet(request, test, directory, images.name, prepared.description.label)
    return Run(prepared.id, features, head_spec, head, report, predictions, name=prepared.name)


def _describe_training(prepared: PreparedTraining) -> str:
    mode = prepared.config.mode
    names = {"scratch": "from scratch", "shallow": "classifier"}
    text = names.get(mode, f"{mode} fine-tuning")
    return f"{text}, {prepared.about}" if prepared.about else text


def _extract(prepared: PreparedTraining, file: Path, split: str, compute: Compute) -> Embeddings:
    """Return the embeddings of one split, extracted by a saved network.

    They are not cached: the cache would keep embeddings of a network that may never be published.
    """
    images = prepared.images.take(prepared.images.rows(split))
    # Evaluated in the framework that trained it.
    prefix = KERAS if prepared.backbone.framework == "keras" else ""
    backbone = load_backbone(f"{prefix}{file}")
    precision = prepared.config.request.precision
    all_rows = frozenset(range(len(images)))
    _, x = gathered(embed(images, [(backbone, precision, all_rows)], compute))
    recipe = make_recipe(images, content_keys(images, compute), backbone, precision)
    groups = np.array(images.groups, np.str_) if images.groups else None
    return Embeddings(x, images.labels, images.ids, images.classes, images.splits, recipe, groups)


def _fit_temperature(head: LinearHead, val: Embeddings) -> Temperature | None:
    """Return the temperature that calibrates the head on validation images; None without any."""
    if not len(val):
        return None
    return fit_temperature(head.predict_proba(val.x), val.y, np.arange(len(val.classes)))


def read_history(path: Path) -> History:
    """Return the rows of a ``history.csv``.

    Raises:
        RunError: if it cannot be read.
    """
    history = []
    with run_errors(path.parent):
        for row in csv.DictReader(io.StringIO(read_text(path), newline="")):
            history.append({name: float(value or "nan") for name, value in row.items()})
    return history
