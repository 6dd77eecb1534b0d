"""Train networks: fine-tuning, distillation, comparison of frameworks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.api.fitting import _read_costs
from featkit.api.options import (
    OUT,
    PathLike,
    Strings,
    as_strings,
    log,
    network_spec,
    request_options,
    training_kinds,
)
from featkit.api.progress import first_process_log, training_callbacks
from featkit.arguments import FLAG, NAME, PATH, checked, integer, number, several, text

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from featkit.embeddings.pipeline import Compute
    from featkit.evaluation.effects import Effect
    from featkit.runs.costs import CostTable
    from featkit.runs.train import TrainedRun
    from featkit.storage import Content
    from featkit.studies.distill import DistillationResult
    from featkit.studies.frameworks import FrameworksResult
    from featkit.training.config import TrainingConfig
    from featkit.training.distributed import ProcessGroup


@checked(**training_kinds(), cost=PATH)
def finetune(
    data: PathLike | None = None,
    *,
    backbone: PathLike | None = None,
    mode: str | None = None,
    unfreeze: str | int | None = None,
    weights: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    val: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimiser: str | None = None,
    lr: float | None = None,
    layer_decay: float | None = None,
    weight_decay: float | None = None,
    warmup: float | None = None,
    smoothing: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    ema: float | None = None,
    clip: float | None = None,
    balance: str | None = None,
    norm: str | None = None,
    patience: int | None = None,
    precision: str | None = None,
    frozen_precision: str | None = None,
    name: str | None = None,
    cost: PathLike | None = None,
    resume: bool = False,
    device: str = "auto",
    cache: PathLike = "cache",
    out: PathLike = OUT,
    progress: bool = False,
) -> TrainedRun | None:
    """Fine-tune a network, or train it from scratch, and evaluate it on the test set.

    Writes a run directory in ``out``, which can be used as a backbone.

    Args:
        data: spec of the images; None for ``digits``.
        backbone: spec of the network; None for ``resnet18``.
        mode: ``shallow`` (classifier only), ``deep`` (last blocks, the default), ``full`` (all
            layers) or ``scratch``.
        unfreeze: for ``deep``: first trainable stage or block, or number of trainable blocks.
        val: fraction of train for validation where the data has none; 0: train on all images.
        epochs, batch_size, optimiser, lr, layer_decay, weight_decay, warmup, smoothing, mixup,
            cutmix, ema, clip, balance, norm, patience, precision, frozen_precision, augment, views:
            see ``featkit.training.config.TrainingConfig``, which has the defaults for None.
        weights, resize, crop, split, limit, intensity_range, group, allow_group_leak, seed: as for
            ``extract``.
        name: name of the network for tables and figures; None for a composed one.
        cost: file with the cost of each error, as for ``fit``: the report has the mean cost of an
            image; the training does not depend on it.
        resume: resume from the last checkpoint of the same training.
        device, cache, progress: as for ``extract``.
        out: folder for results.

    Returns:
        Report, history and directory of the run; None in a distributed process that is not the
        first.

    Raises:
        SpecError: if an option is unknown or out of range.
        DataError: if there are no test images.
        TrainingError: if the loss is not finite, or a checkpoint belongs to another training.
    """
    options = locals()
    compute = training_compute(options)
    config = _training_config(options)
    table = _read_costs(cost)
    with _process_group(compute) as processes:
        return _train(config, compute, Path(out), resume, processes, name=name or "", table=table)


@checked(
    **{
        **training_kinds(),
        "mode": several(text("shallow"), least=1),
        "deep_limit": text("train=500,test=200"),
        "seeds": integer(1, 100),
        "images": integer(2, 10_000),
        "repeats": integer(3),
    }
)
def compare_frameworks(
    data: PathLike | None = None,
    *,
    backbone: str | None = None,
    mode: Strings = ("shallow", "deep"),
    seeds: int = 3,
    weights: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    split: str | None = None,
    limit: str | None = None,
    deep_limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    val: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimiser: str | None = None,
    lr: float | None = None,
    images: int = 64,
    repeats: int = 10,
    cache: PathLike = "cache",
    out: PathLike = OUT,
    progress: bool = False,
) -> FrameworksResult:
    """Compare torch and TensorFlow on the same ResNet, weights and images, on the CPU.

    Compares the outputs layer by layer, speed and memory, and fine-tuning from the same start.
    Finished trainings in ``out`` are not repeated, and interrupted ones are resumed. Writes a page,
    the training curves and the numbers below ``out``.

    Args:
        data: spec of the images; None for ``digits``.
        backbone: one of torchvision's ResNets; None for ``resnet18``.
        mode: modes of training.
        seeds: trainings of each mode in each framework; the images stay the same.
        limit: subset of the images.
        deep_limit: subset for all modes but ``shallow``; None for ``limit``.
        images: test images on which outputs are compared.
        repeats: timed batches of 32.
        weights, resize, crop, split, intensity_range, group, allow_group_leak, seed, augment,
            views, val, epochs, batch_size, optimiser, lr: as for ``finetune``.
        cache, out, progress: as for ``finetune``.

    Returns:
        Differences of the outputs by layer, speed and memory of both frameworks, and for each mode
        the accuracies with a paired test over seeds.

    Raises:
        SpecError: if an option is unknown, or the backbone is none of torchvision's.
        MissingExtraError: if TensorFlow is not installed.
    """
    options = locals()
    from featkit.embeddings.pipeline import Compute
    from featkit.reports import frameworks as page
    from featkit.storage import digest, publish
    from featkit.studies import frameworks as study

    compute = Compute(device="cpu", progress=progress)
    training = {name: options[name] for name in _FRAMEWORK_OPTIONS if options[name] is not None}
    if data is not None:
        training["data"] = str(data)
    config = study.FrameworksConfig(
        options=training,
        modes=as_strings(mode),
        deep_limit=deep_limit,
        seeds=seeds,
        images=images,
        repeats=repeats,
        cache=Path(cache),
    )

    def train(planned: TrainingConfig) -> TrainedRun:
        with _process_group(compute) as processes:
            run = _train(planned, compute, Path(out), True, processes, name="")
        assert run is not None, "only other processes of a group have no run"
        return run

    result = study.compare_frameworks(config, compute, train, log.info)
    figures = page.frameworks_figures(result)
    text = json.dumps(result.to_dict(), indent=2)
    files: dict[str, Content] = {
        "report.html": page.frameworks_page(result, figures[page.CURVES_FILE]),
        "results.json": text,
        **figures,
    }
    keys = [json.dumps(training, sort_keys=True), *config.modes, str(deep_limit), str(seeds)]
    directory = Path(out) / "frameworks" / digest(keys)[:12]
    publish(directory, files)
    log.info("%s: %s", ", ".join(files), directory)
    return result


_FRAMEWORK_OPTIONS = (
    *("backbone", "weights", "resize", "crop", "split", "limit", "intensity_range", "seed"),
    *("group", "allow_group_leak"),
    *("augment", "views", "val", "epochs", "batch_size", "optimiser", "lr"),
)
"""Options of ``compare_frameworks`` that are those of both trainings."""


@dataclass(frozen=True)
class TrainingComparison:
    """Trainings of one study file.

    Attributes:
        runs: by name.
        rows: one row per run: top-1 with its interval, top-5, n, epochs.
    """

    runs: Mapping[str, TrainedRun]
    rows: list[dict[str, Any]]


@checked(**training_kinds(), study=PATH)
def finetune_study(
    study: PathLike,
    *,
    resume: bool = False,
    device: str = "auto",
    cache: PathLike = "cache",
    out: PathLike = OUT,
    progress: bool = False,
) -> TrainingComparison | None:
    """Train the networks of a TOML file, ``[fixed]`` and ``[[run]]``, and compare them.

    Returns:
        The trainings; None in a distributed process that is not the first.
    """
    compute = training_compute(locals())
    from featkit.reports.figures import history_figures
    from featkit.runs.trainings import read_training_study, to_rows
    from featkit.storage import csv_text, digest, publish

    trainings = read_training_study(Path(study), Path(cache))
    runs = {}
    with _process_group(compute) as group:
        for name, config in trainings.configs.items():
            run_name = trainings.names.get(name, "")
            run = _train(config, compute, Path(out), resume, group, name=run_name)
            if run is not None:
                runs[name] = run
        if group.rank:
            return None
    rows = to_rows(runs)
    histories = {name: run.history for name, run in runs.items()}
    files: dict[str, Content] = {
        "results.csv": csv_text(rows),
        "results.json": json.dumps(rows, indent=2),
        **history_figures(histories, title=trainings.name),
    }
    ids = [row["run"] for row in rows]
    directory = Path(out) / trainings.name / f"study-{digest(ids)[:12]}"
    publish(directory, files)
    log.info("%s: %s", ", ".join(files), directory)
    return TrainingComparison(runs, rows)


def _train(
    config: TrainingConfig,
    compute: Compute,
    out: Path,
    resume: bool,
    group: ProcessGroup,
    *,
    name: str,
    table: CostTable | None = None,
) -> TrainedRun | None:
    """Train one network, or return the run of the same training that is finished already."""
    from featkit.reports.figures import training_figures
    from featkit.runs.train import find_finished, has_checkpoint, train_run
    from featkit.training.loop import ExecutionConfig
    from featkit.training.prepare import prepare

    note = first_process_log(group)
    prepared = replace(prepare(config, compute), name=name)
    images = prepared.images
    costs = None if table is None else table.matrix(images.classes)
    counts = []
    for split in ("train", "val", "test"):
        counts.append(f"{int((images.splits == split).sum()):,} {split}")
    classes = len(images.classes)
    note(f"{images.name}: {', '.join(counts)}, {classes} classes; {prepared.description.label}")
    if resume:
        run = find_finished(prepared, out, costs)
        if run:
            note(f"already finished: {run.path}")
            return None if group.rank else run
        found = has_checkpoint(prepared, out)
        note(
            "resuming from the last checkpoint"
            if found
            else "checkpoint not found, starting from scratch"
        )
    with training_callbacks(config.epochs, compute.progress, group) as callbacks:
        execution = ExecutionConfig(compute, resume=resume, callbacks=callbacks, group=group)
        run = train_run(prepared, execution, out, training_figures, costs=costs)
    if run:
        note(f"run: {run.path}")
    return run


def _training_config(options: Mapping[str, Any]) -> TrainingConfig:
    from featkit.training.config import TrainingConfig

    names = [name for name in TrainingConfig.option_names() if name in options]
    given = {**{name: options[name] for name in names}, **request_options(options)}
    # ``precision`` is that of training here, not a field of the request.
    return TrainingConfig.from_options(
        {name: given[name] for name in names}, Path(options["cache"])
    )


def training_compute(options: Mapping[str, Any]) -> Compute:
    """Return the compute options of a training."""
    from featkit.embeddings.pipeline import Compute

    return Compute(device=options["device"], progress=options["progress"])


def _process_group(compute: Compute) -> AbstractContextManager[ProcessGroup]:
    """Join the other processes of ``torchrun``, if there are any."""
    from featkit.backbones.devices import pick_device
    from featkit.training.distributed import join_process_group

    return join_process_group(pick_device(compute.device))


@checked(
    **training_kinds(),
    teacher=PATH,
    teacher_head=text("linear"),
    student=PATH,
    loss=text("logits"),
    temperature=number(0),
    alpha=number(0, 1),
    beta=number(0),
    distance=text("cosine"),
    alone=FLAG,
)
def distill(
    data: PathLike | None = None,
    *,
    teacher: PathLike,
    teacher_head: str = "linear",
    student: PathLike = "resnet18",
    mode: str = "deep",
    loss: str | None = None,
    temperature: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    distance: str | None = None,
    alone: bool = True,
    unfreeze: str | int | None = None,
    weights: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    val: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimiser: str | None = None,
    lr: float | None = None,
    layer_decay: float | None = None,
    weight_decay: float | None = None,
    warmup: float | None = None,
    smoothing: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    ema: float | None = None,
    clip: float | None = None,
    balance: str | None = None,
    norm: str | None = None,
    patience: int | None = None,
    precision: str | None = None,
    frozen_precision: str | None = None,
    name: str | None = None,
    resume: bool = False,
    device: str = "auto",
    cache: PathLike = "cache",
    out: PathLike = OUT,
    progress: bool = False,
) -> DistillationResult | None:
    """Train a student network with a teacher, and compare both with the student trained alone.

    Writes the run directories of teacher and students in ``out``.

    Args:
        data: spec of the images; None for ``digits``.
        teacher: run directory, or spec of a backbone on which ``teacher_head`` is fitted.
        teacher_head: head of a teacher that is a backbone.
        student: spec of the backbone to train.
        loss: ``logits`` (the default), ``dkd``, ``features`` or ``logits+features``.
        temperature: softmax temperature of the distillation loss.
        alpha: weight of the distillation loss; the label loss has weight 1 - alpha.
        beta: weight of the non-target classes in ``dkd``.
        distance: ``cosine`` or ``mse``, between embeddings.
        alone: train the student without its teacher too, for comparison.
        name: name of the distilled student for tables and figures; the one trained alone gets
            "trained alone" added. None for composed names.
        mode, unfreeze, weights, resize, crop, split, limit, intensity_range, group,
            allow_group_leak, seed, augment, views, val, epochs, batch_size, optimiser, lr,
            layer_decay, weight_decay, warmup, smoothing, mixup, cutmix, ema, clip, balance, norm,
            patience, precision, frozen_precision, resume, device, cache, out, progress: as for
            ``finetune``.

    Returns:
        Reports, paired tests and the fraction of the gap that distillation closes; None in a
        distributed process that is not the first.

    Raises:
        SpecError: if an option is unknown or out of range.
        DataError: if there are no test images, or the teacher has other classes or was trained on
            a test image.
        TrainingError: if the loss is not finite, or a checkpoint belongs to another training.
    """
    options = dict(locals())
    options["backbone"] = options.pop("student")
    results, _ = distill_seeds(1, options)
    return results[0] if results else None


def distill_seeds(
    seeds: int, options: Mapping[str, Any]
) -> tuple[list[DistillationResult], list[Effect]]:
    """Distill with several seeds; return a result for each, and the effects pooled over them.

    Args:
        seeds: number of seeds, from ``options["seed"]`` on.
        options: of ``distill``, with ``backbone`` for the student.

    Returns:
        Both empty in a distributed process that is not the first; no effects for one seed.
    """
    from featkit.studies.distill import compare_over_seeds, compare_students

    first = options["seed"] or 0
    name = NAME.check("name", options["name"]) if options["name"] is not None else ""
    runs = {}
    for seed in range(first, first + seeds):
        own = f"{name}, seed {seed}" if name and seeds > 1 else name
        runs[seed] = _distill_runs({**options, "seed": seed, "name": own})
    if not all("distilled" in paths for paths in runs.values()):
        return [], []
    results = [compare_students(paths) for paths in runs.values()]
    return results, compare_over_seeds(runs) if seeds > 1 else []


def _distill_runs(options: Mapping[str, Any]) -> dict[str, Path]:
    """Prepare the teacher, train the students, and return their run directories."""
    from featkit.reports.figures import training_figures
    from featkit.runs.train import find_finished
    from featkit.studies.distill import distill_run, make_teacher, prepare_student
    from featkit.training.distill import DistillationConfig
    from featkit.training.loop import ExecutionConfig

    compute, config, out = (
        training_compute(options),
        _training_config(options),
        Path(options["out"]),
    )
    students = {"distilled": DistillationConfig.from_options(options)}
    if options["alone"]:
        # Trained first, without a weight on the teacher.
        students = {"alone": DistillationConfig(alpha=0), **students}
    teacher = make_teacher(
        network_spec(str(options["teacher"])), options["teacher_head"], config, compute, out
    )
    log.info("teacher: %s", teacher.path)
    runs = {"teacher": teacher.path}
    with _process_group(compute) as group:
        note = first_process_log(group)
        for name, distillation in students.items():
            prepared = prepare_student(config, teacher, distillation, compute)
            if options["name"]:
                added = ", trained alone" if name == "alone" else ""
                prepared = replace(prepared, name=f"{options['name']}{added}")
            run = find_finished(prepared, out) if options["resume"] else None
            if run:
                note(f"student {name}, already finished: {run.path}")
                runs[name] = run.path
                continue
            note(f"student {name}")
            with training_callbacks(config.epochs, compute.progress, group) as callbacks:
                execution = ExecutionConfig(
                    compute, resume=options["resume"], callbacks=callbacks, group=group
                )
                run = distill_run(
                    prepared, teacher, distillation, execution, out, draw=training_figures
                )
            if run:
                note(f"run: {run.path}")
                runs[name] = run.path
    return runs
