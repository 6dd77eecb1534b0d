"""Distillation as a study: teacher, student alone, student distilled, and how much of the gap is closed."""

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
from featkit.evaluation.effects import SEED, Effect, adjusted, effects, score_cells
from featkit.runs.compare import read_run
from featkit.runs.directory import load_run, save_run
from featkit.runs.features import load_features
from featkit.runs.fit import fit_run
from featkit.runs.train import Draw, TrainedRun, publish_trained, work_folder
from featkit.storage import digest
from featkit.training.config import TrainingConfig
from featkit.training.data import Teacher
from featkit.training.distill import DistillationConfig, distill, teacher_of
from featkit.training.loop import ExecutionConfig
from featkit.training.prepare import PreparedTraining, prepare

_DRAWS = 2000


@dataclass(frozen=True)
class FittedTeacher:
    """A teacher on the data of its student.

    Attributes:
        teacher: what is asked while the student learns.
        width: of its embeddings.
        path: its run directory.
    """

    teacher: Teacher
    width: int
    path: Path


@dataclass(frozen=True)
class DistillationResult:
    """What came of a distillation.

    Attributes:
        reports: of the runs.
        runs: directories of ``teacher``, ``alone`` (if there is one) and ``distilled``.
        pairs: every two of them, on the same test images.
        gap: share of the distance from the student alone to its teacher that distillation closed;
            None without the student alone, or where the teacher is not better.
        gap_interval: 95 % bootstrap interval over the test images.
    """

    runs: Mapping[str, Path]
    reports: Mapping[str, Report]
    pairs: tuple[PairedComparison, ...]
    gap: float | None
    gap_interval: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "runs": {name: str(path) for name, path in self.runs.items()},
            "top1": {
                name: {"n": each.n, "top1": each.top1, "interval95": each.interval95}
                for name, each in self.reports.items()
            },
            "pairs": [pair.to_dict() for pair in self.pairs],
            "gap_closed": self.gap,
            "gap_closed_interval95": self.gap_interval,
        }


def make_teacher(
    spec: str, head: str, config: TrainingConfig, compute: Compute, out: Path
) -> FittedTeacher:
    """Return a teacher: a run directory, or a backbone with a head that is fitted on the student's train images.

    Args:
        spec: run directory with a head, or spec of a backbone.
        head: of a backbone.
        config: the student, whose images the teacher sees.
        compute: how embeddings are made.
        out: folder of the results, where a head that is fitted is kept.

    Raises:
        FeatkitError: of the kind that says what cannot be had.
    """
    images = replace(config.request, seed=config.seed)
    given = {name: getattr(images, name) for name in ("data", "split", "limit", "seed")}
    if is_path(spec) and Path(spec, "card.json").exists():
        path = Path(spec)
        saved = load_run(path)
        saved.load_backbone()
        if saved.quantized:
            raise SpecError(
                f"{path} is a run in int8, which is not asked about augmented images: use another"
            )
        _same_test(path, config)
        request = replace(saved.request, **given)
        classes = images.load_images().classes
        source = load_features(
            request.to_dict() | {"backbone": request.backbone}, config.cache, compute
        )
        return FittedTeacher(
            teacher_of(source.request, saved.head, saved.classes, classes),
            source.embeddings.x.shape[1],
            path,
        )
    source = load_features({**given, "backbone": spec}, config.cache, compute)
    run = fit_run(source, head, seed=config.seed)
    names = source.embeddings.classes
    teacher = teacher_of(source.request, run.head, names, names)
    return FittedTeacher(teacher, source.embeddings.x.shape[1], save_run(run, out, {}))


def _same_test(path: Path, config: TrainingConfig) -> None:
    """Make sure that a teacher has not learned from the images that its student is judged on.

    Raises:
        DataError: if it was judged on other images.
    """
    images = config.request.load_images()
    theirs, ours = set(read_run(path)[2].ids), {images.ids[row] for row in images.rows("test")}
    if theirs != ours:
        raise DataError(
            f"the teacher {path} was judged on other test images ({len(ours - theirs)} of {len(ours)} are none of its "
            "own), so it may have learned from the student's: use one --seed, --split and --limit for both"
        )


def distill_run(
    prepared: PreparedTraining,
    taught: FittedTeacher,
    distillation: DistillationConfig,
    execution: ExecutionConfig,
    out: Path,
    *,
    draw: Draw,
) -> TrainedRun | None:
    """Train a student with its teacher, judge it on test, and keep it.

    Args:
        prepared: from ``prepare_student``, with the same teacher and distillation.
        taught: the teacher.
        distillation: how much of what.
        how: how it is trained; ``execution.folder`` is set here.
        out: folder of the results.
        draw: figures by file name.

    Returns:
        None in a process that is not the one that writes.
    """
    execution = replace(execution, folder=work_folder(prepared, out))
    trained = distill(prepared, taught.teacher, taught.width, distillation, execution)
    return None if execution.group.rank else publish_trained(trained, execution.compute, out, draw)


def prepare_student(
    config: TrainingConfig,
    taught: FittedTeacher,
    distillation: DistillationConfig,
    compute: Compute,
) -> PreparedTraining:
    """Find the images and the student; without a weight on its teacher, it is the student alone."""
    if not distillation.alpha:
        return prepare(config, compute)
    request = taught.teacher.request
    about = f"taught by {request.load_backbone().name} ({distillation.loss})"
    return prepare(
        config, compute, extra=f"{distillation.to_json()} {_digest(taught.path)}", about=about
    )


def _digest(run: Path) -> str:
    """Return the digest of what decides a teacher; the bytes of its head hold the time at which they were written."""
    card: dict[str, str] = json.loads((run / "card.json").read_text(encoding="utf-8"))
    return digest([card["run"], json.dumps(card["recipe"], sort_keys=True)])


def compared(runs: Mapping[str, Path], seed: int = 0) -> DistillationResult:
    """Compare ``teacher``, ``alone`` (if there is one) and ``distilled`` on their test images.

    Raises:
        DataError: if they were judged on different images.
        RunError: if a directory is not that of a run.
    """
    read = {name: read_run(path) for name, path in runs.items()}
    reports = {name: report for name, (_, report, _) in read.items()}
    found = {name: predictions for name, (_, _, predictions) in read.items()}
    made = DistillationResult(runs, reports, tuple(compare(found)), None, None)
    if "alone" not in found:
        return made
    right = {name: _right(predictions) for name, predictions in found.items()}
    names = sorted(right["teacher"])
    table = np.array(
        [[right[run][name] for name in names] for run in ("teacher", "alone", "distilled")],
        dtype=float,
    )
    rng = np.random.default_rng(seed)
    drawn = [_gap(table[:, rng.integers(len(names), size=len(names))]) for _ in range(_DRAWS)]
    known = [gap for gap in drawn if gap is not None]
    gap = _gap(table)
    if gap is None or len(known) < 0.95 * _DRAWS:
        return replace(made, gap=gap)
    low, high = np.quantile(known, [0.025, 0.975])
    return replace(made, gap=gap, gap_interval=(float(low), float(high)))


def pooled(runs: Mapping[int, Mapping[str, Path]]) -> list[Effect]:
    """Compare the runs of several seeds: the student distilled with itself alone, the teacher with both.

    Args:
        runs: for each seed, directories as ``DistillationResult`` has them.

    Raises:
        DataError: if the runs of one seed were judged on different images.
    """
    cells = [
        ({"run": name, SEED: seed}, read_run(path)[2])
        for seed, each in runs.items()
        for name, path in each.items()
    ]
    names = [
        name
        for name in ("alone", "distilled", "teacher")
        if all(name in each for each in runs.values())
    ]
    return adjusted(effects(score_cells(cells), "run", [(b, a) for a, b in combinations(names, 2)]))


def _right(predictions: Predictions) -> dict[str, bool]:
    right = predictions.correct
    return dict(zip(predictions.ids, right.tolist(), strict=True))


def _gap(table: NDArray[np.float64]) -> float | None:
    """Return the share of the gap that is closed, for rows teacher, alone, distilled; None where there is no gap."""
    teacher, alone, distilled = table.mean(axis=1)
    return float((distilled - alone) / (teacher - alone)) if teacher > alone else None
