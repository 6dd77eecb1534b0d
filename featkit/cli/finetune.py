"""`featkit finetune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import backbone_option, cache_option, command, json_option, out_option
from featkit.cli.output import between, note, table
from featkit.cli.training_options import (
    NAMES,
    figures,
    mode_option,
    training_compute,
    training_of,
    training_options,
    watched,
)

if TYPE_CHECKING:
    from featkit.embeddings.pipeline import Compute
    from featkit.runs.train import TrainedRun
    from featkit.training.config import TrainingConfig
    from featkit.training.distributed import ProcessGroup

EPILOG = """\b
Examples:
  featkit finetune --data photos --backbone resnet18
  featkit finetune --data photos --mode full --epochs 15 --lr 0.005 --augment trivial
  featkit finetune --data photos --mode deep --unfreeze 1 --views 8 --val 0
  featkit finetune --data photos --mode shallow --augment basic --views 0 --norm update
  featkit finetune --data digits --mode scratch --backbone resnet18:stem=small --resize 16 --epochs 7 --lr 0.05
  featkit finetune --resume --data photos --mode full --epochs 15 --lr 0.005 --augment trivial
  featkit finetune experiments/cifar100.toml
  torchrun --nproc-per-node 2 -m featkit finetune --data photos --mode full --device cuda

\b
Use the trained network as a backbone:
  featkit fit --data photos --backbone experiments/runs/photos/1a2b3c4d5e6f --head svm
  featkit predict experiments/runs/photos/1a2b3c4d5e6f new.jpg

\b
study.toml:
  [fixed]
  data = "photos"
  backbone = "resnet18"
  [[run]]
  mode = "deep"
  [[run]]
  name = "deep, 8 views"
  mode = "deep"
  views = 8
"""


@command(epilog=EPILOG)
@click.argument("study", required=False, type=click.Path(path_type=Path))
@backbone_option
@mode_option
@training_options
@cache_option
@out_option
@json_option
def finetune(study: Path | None, cache: Path, out: Path, as_json: bool, resume: bool, **options: Any) -> None:
    """Fine-tune a network, or train it from scratch.

    With STUDY, a TOML file, trains several networks and compares them in one table and figure. Frozen
    layers run once and their output is cached. The best epoch is chosen on the validation set. Writes
    a run directory that is a backbone again: network.safetensors, history.csv, curves.png and the
    files of `featkit fit`.
    """
    from featkit.backbones.devices import pick_device
    from featkit.evaluation.report import summary
    from featkit.training.distributed import join_process_group

    compute = training_compute(options)
    with join_process_group(pick_device(compute.device)) as group:
        if study is None:
            done = _train(training_of(options, cache), compute, out, resume, group)
            if done:
                click.echo(json.dumps(done.report.to_dict(), indent=2) if as_json else summary(done.report))
            return
        given = [name for name in NAMES if options[name] is not None]
        if given:
            raise click.UsageError(
                f"the trainings are in {study}: leave out {', '.join('--' + name for name in given)}"
            )
        _train_all(study, cache, compute, out, resume=resume, group=group, as_json=as_json)


def _train(config: TrainingConfig, compute: Compute, out: Path, resume: bool, group: ProcessGroup) -> TrainedRun | None:
    from featkit.runs.train import find_finished, has_checkpoint, train_run
    from featkit.training.loop import ExecutionConfig
    from featkit.training.prepare import prepare

    prepared = prepare(config, compute)
    images = prepared.images
    counts = ", ".join(f"{int((images.splits == split).sum()):,} {split}" for split in ("train", "val", "test"))
    say = note if not group.rank else (lambda _: None)
    say(f"{images.name}: {counts}, {len(images.classes)} classes; {prepared.description.label}")
    done = find_finished(prepared, out) if resume else None
    if done:
        say(f"already there: {done.path}")
        return None if group.rank else done
    if resume:
        say("going on from the last checkpoint" if has_checkpoint(prepared, out) else "nothing to go on from: beginning anew")
    with watched(config.epochs, say, bar=compute.progress and not group.rank) as callbacks:
        done = train_run(prepared, ExecutionConfig(compute, resume=resume, callbacks=callbacks, group=group), out, figures)
    if done:
        note(f"run: {done.path}")
    return done


def _train_all(
    study: Path, cache: Path, compute: Compute, out: Path, *, resume: bool, group: ProcessGroup, as_json: bool
) -> None:
    from featkit.plots.files import png_bytes
    from featkit.plots.training import plot_histories
    from featkit.runs.trainings import read_training_study, to_rows
    from featkit.storage import csv_text, digest, publish

    asked = read_training_study(study, cache)
    found = {name: _train(config, compute, out, resume, group) for name, config in asked.configs.items()}
    done = {name: each for name, each in found.items() if each}
    if group.rank:
        return
    rows = to_rows(done)
    curves = plot_histories({name: each.history for name, each in done.items()}, title=asked.name)
    results = json.dumps(rows, indent=2)
    texts = {"results.csv": csv_text(rows), "results.json": results}
    directory = out / asked.name / f"study-{digest([row['run'] for row in rows])[:12]}"
    publish(directory, {**texts, "curves.png": png_bytes(curves)})
    note(f"results.csv, results.json and curves.png: {directory}")
    shown = [
        [row["name"], f"{100 * row['top1']:.1f}", between((row["low"], row["high"]))]
        + ["" if row["top5"] is None else f"{100 * row['top5']:.1f}", row["n"], row["epochs"]]
        for row in rows
    ]
    numbers = ("top-1 %", "95 % interval", "top-5 %", "n", "epochs")
    click.echo(results if as_json else table(["run", *numbers], shown, right=numbers))
