"""Distillation study: teacher, student alone and distilled student on the same test images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.saved import is_path
from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError, SpecError
from featkit.evaluation import PairedComparison, Predictions, Report, compare
from featkit.evaluation.clusters import Clusters
from featkit.evaluation.effects import SEED, Effect, adjusted, effects, score_cells
from featkit.runs.card import read_card
from featkit.runs.directory import load_run, save_run
from featkit.runs.features import load_features
from featkit.runs.fit import fit_run
from featkit.runs.results import read_run
from featkit.runs.train import Draw, TrainedRun, checkpoint_folder, publish_trained, training_folder
from featkit.storage import digest
from featkit.training.config import TrainingConfig
from featkit.training.data import Teacher
from featkit.training.distill import DistillationConfig, distill, teacher_of
from featkit.training.loop import ExecutionConfig
from featkit.training.prepare import PreparedTraining, prepare

_BOOTSTRAP_SAMPLES = 2000


@dataclass(frozen=True)
class FittedTeacher:
    """A teacher with a head for the classes of the student.

    Attributes:
        teacher: its network and outputs.
        width: of its embeddings.
        path: its run directory.
    """

    teacher: Teacher
    width: int
    path: Path


@dataclass(frozen=True)
class DistillationResult:
    """Comparison of the runs of a distillation.

    Attributes:
        runs: directories of ``teacher``, ``alone`` (the student without a teacher, if trained) and
            ``distilled``.
        reports: of these runs.
        pairs: every two of them on the same test images.
        gap: fraction of the accuracy gap between the student alone and the teacher that
            distillation closes; None without the student alone, or if the teacher is not better.
        gap_interval: 95 % bootstrap interval over the test images, or over their groups; or None.
    """

    runs: Mapping[str, Path]
    reports: Mapping[str, Report]
    pairs: tuple[PairedComparison, ...]
    gap: float | None
    gap_interval: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        top1 = {
            name: {"n": report.n, "top1": report.top1, "interval95": report.interval95}
            for name, report in self.reports.items()
        }
        return {
            "runs": {name: str(path) for name, path in self.runs.items()},
            "top1": top1,
            "pairs": [pair.to_dict() for pair in self.pairs],
            "gap_closed": self.gap,
            "gap_closed_interval95": self.gap_interval,
        }


def make_teacher(
    spec: str, head: str, config: TrainingConfig, compute: Compute, out: Path
) -> FittedTeacher:
    """Return a teacher from a run directory, or fit a head on a backbone.

    Args:
        spec: run directory with a head, or spec of a backbone.
        head: spec of the head of a backbone; it is fitted on the training images of the student.
        config: of the student.
        compute: how embeddings are extracted.
        out: folder of the results, where the run of a fitted head is saved.

    Raises:
        SpecError: if the teacher is an int8 network, or a spec is unknown.
        DataError: if the teacher was evaluated on other test images, or lacks a class.
        RunError: if the run directory cannot be read.
    """
    student_request = replace(config.request, seed=config.seed)
    fields = (
        *("data", "split", "limit", "intensity_range", "seed"),
        *("group", "allow_group_leak"),
    )
    images = {name: getattr(student_request, name) for name in fields}
    if is_path(spec) and Path(spec, "card.json").exists():
        return _teacher_from_run(
            Path(spec), config, images, student_request.load_images().classes, compute
        )
    features = load_features({**images, "backbone": spec}, config.cache, compute)
    run = fit_run(features, head, seed=config.seed)
    names = features.embeddings.classes
    teacher = teacher_of(features.request, run.head, names, names)
    width = features.embeddings.x.shape[1]
    return FittedTeacher(teacher, width, save_run(run, out, {}))


def _teacher_from_run(
    path: Path,
    config: TrainingConfig,
    images: Mapping[str, Any],
    classes: tuple[str, ...],
    compute: Compute,
) -> FittedTeacher:
    saved = load_run(path)
    saved.load_backbone()  # raises if its weights have changed since
    if saved.quantized:
        raise SpecError(
            f"{path} is an int8 run, which cannot be a teacher of augmented images: use another run"
        )
    _check_same_test_images(path, config)
    request = replace(saved.request, **images)
    # ``to_dict`` makes the path of a saved network absolute; the cache file is named after the
    # spec.
    values = request.to_dict() | {"backbone": request.backbone}
    features = load_features(values, config.cache, compute)
    teacher = teacher_of(features.request, saved.head, saved.classes, classes)
    return FittedTeacher(teacher, features.embeddings.x.shape[1], path)


def _check_same_test_images(path: Path, config: TrainingConfig) -> None:
    """Check that the teacher was not trained on test images of the student.

    Raises:
        DataError: if it was evaluated on other test images, or by folds.
    """
    images = config.request.load_images()
    student_test = {images.ids[row] for row in images.rows("test")}
    _, report, predictions = read_run(path)
    if report.folds is not None:
        raise DataError(
            f"the teacher {path} was evaluated by --folds on all images and is fitted on all of "
            "them, test images of the student too: use a run without --folds"
        )
    teacher_test = set(predictions.ids)
    if teacher_test != student_test:
        raise DataError(
            f"the teacher {path} was evaluated on other test images "
            f"({len(student_test - teacher_test)} of {len(student_test)} are not among its own), "
            "so it may be trained on test images of the student: use the same --seed, --split and "
            "--limit for both"
        )


def prepare_student(
    config: TrainingConfig,
    teacher: FittedTeacher,
    distillation: DistillationConfig,
    compute: Compute,
) -> PreparedTraining:
    """Prepare the training of a student; with alpha 0, it is the student alone."""
    if not distillation.alpha:
        return prepare(config, compute)
    network = teacher.teacher.request.load_backbone().name
    about = f"distilled from {network} ({distillation.loss})"
    # The teacher's run decides the student's weights, so it is part of the fingerprint.
    extra = f"{distillation.to_json()} {_teacher_digest(teacher.path)}"
    return prepare(config, compute, extra=extra, about=about)


def _teacher_digest(run: Path) -> str:
    """Return the digest of a teacher's run id and recipe."""
    # Not of its files: that of the head contains a time stamp.
    card = read_card(run)
    return digest([card.run, json.dumps(card.recipe.to_dict(), sort_keys=True)])


def distill_run(
    prepared: PreparedTraining,
    teacher: FittedTeacher,
    distillation: DistillationConfig,
    execution: ExecutionConfig,
    out: Path,
    *,
    draw: Draw,
) -> TrainedRun | None:
    """Train a student with its teacher, evaluate it on the test set, and save it.

    Args:
        prepared: from ``prepare_student``, with the same teacher and distillation.
        teacher: the teacher.
        distillation: the loss.
        execution: device, callbacks, processes; its folder is set here.
        out: folder of the results.
        draw: draws the figures.

    Returns:
        None in all but the main process.
    """
    folder = checkpoint_folder(prepared, out)
    with training_folder(folder, execution):
        execution = replace(execution, folder=folder)
        result = distill(prepared, teacher.teacher, teacher.width, distillation, execution)
        if not execution.group.is_main:
            return None
        return publish_trained(result, execution.compute, out, draw)


def compare_students(runs: Mapping[str, Path], seed: int = 0) -> DistillationResult:
    """Compare ``teacher``, ``alone`` (if there is one) and ``distilled`` on their test images.

    Args:
        runs: run directories.
        seed: of the bootstrap.

    Raises:
        DataError: if they were evaluated on different images.
        RunError: if a directory is not a run directory.
    """
    reports: dict[str, Report] = {}
    predictions: dict[str, Predictions] = {}
    for name, path in runs.items():
        _, reports[name], predictions[name] = read_run(path)
    result = DistillationResult(runs, reports, compare(predictions), None, None)
    if "alone" not in predictions:
        return result
    # The runs list the test images in different orders: align them by name.
    names = sorted(predictions["teacher"].ids)
    correct = []
    for run in ("teacher", "alone", "distilled"):
        by_name = dict(zip(predictions[run].ids, predictions[run].correct.tolist(), strict=True))
        correct.append([by_name[name] for name in names])
    table = np.array(correct, dtype=float)
    gap, groups = _gap_closed(table), predictions["teacher"].groups
    if groups is not None:
        group_of = dict(zip(predictions["teacher"].ids, groups.tolist(), strict=True))
        clusters = Clusters.of([group_of[name] for name in names], len(names))
        if clusters is not None:
            table = np.array([clusters.sums(row) for row in table])
    return replace(result, gap=gap, gap_interval=None if gap is None else _interval(table, seed))


def _interval(table: NDArray[np.float64], seed: int) -> tuple[float, float] | None:
    """Return the bootstrap interval of the fraction of the gap that is closed.

    Args:
        table: ``(3, n)``, as for ``_gap_closed``; the columns are resampled.
        seed: of the bootstrap.

    Returns:
        The interval; None without a gap in many samples, where the ratio has no meaningful one.
    """
    rng, n = np.random.default_rng(seed), table.shape[1]
    samples = []
    for _ in range(_BOOTSTRAP_SAMPLES):
        sample = _gap_closed(table[:, rng.integers(n, size=n)])
        if sample is not None:
            samples.append(sample)
    if len(samples) < 0.95 * _BOOTSTRAP_SAMPLES:
        return None
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


def compare_over_seeds(runs: Mapping[int, Mapping[str, Path]]) -> list[Effect]:
    """Compare teacher, student alone and distilled student over several seeds.

    Args:
        runs: run directories by seed and name, see ``DistillationResult.runs``.

    Raises:
        DataError: if the runs of one seed were evaluated on different images.
    """
    cells = []
    for seed, paths in runs.items():
        for name, path in paths.items():
            cells.append(({"run": name, SEED: seed}, read_run(path)[2]))
    names = []
    for name in ("alone", "distilled", "teacher"):
        if all(name in paths for paths in runs.values()):
            names.append(name)
    pairs = [(second, first) for first, second in combinations(names, 2)]
    return adjusted(effects(score_cells(cells), "run", pairs))


def _gap_closed(table: NDArray[np.float64]) -> float | None:
    """Return the fraction of the gap that is closed, or None without a gap.

    Args:
        table: ``(3, n)`` whether teacher, student alone and distilled student are correct, or how
            many images of a group are: the sizes of the groups cancel out.
    """
    teacher, alone, distilled = table.mean(axis=1)
    if teacher <= alone:
        return None
    return float((distilled - alone) / (teacher - alone))
