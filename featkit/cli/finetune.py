"""``featkit finetune``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from featkit.cli.options import (
    UserPath,
    backbone_option,
    cache_option,
    command,
    cost_option,
    json_option,
    name_option,
    out_option,
)
from featkit.cli.output import between, interactive, print_json, print_text, table
from featkit.cli.training_options import mode_option, training_options

EPILOG = """\b
Examples:
  featkit finetune --data photos --backbone resnet18
  featkit finetune --data photos --mode full --epochs 15 --lr 0.005 --augment trivial
  featkit finetune --data photos --mode deep --unfreeze 1 --views 8 --val 0
  featkit finetune --data photos --cost costs.csv
  featkit finetune --data photos --mode shallow --augment basic --views 0 --norm update
  featkit finetune --mode scratch --backbone resnet18:stem=small --resize 16 --epochs 7
  featkit finetune --data photos --backbone keras:resnet50
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
@click.argument("study", required=False, type=UserPath())
@backbone_option
@mode_option
@training_options
@cache_option
@name_option
@cost_option
@out_option
@json_option
def finetune(study: Path | None, as_json: bool, **options: Any) -> None:
    """Fine-tune a network, or train it from scratch.

    The activations of frozen layers are cached, and the weights of the epoch with the best
    validation accuracy are kept. Writes a run directory with network.safetensors, history.csv,
    curves.png and the files of `featkit fit`; it can be used as --backbone. STUDY is a TOML file
    that defines several trainings, which are compared in one table and figure. keras:NAME trains in
    TensorFlow, and the trained network can be used in both frameworks.
    """
    from featkit import api
    from featkit.evaluation.costs import cost_sentence
    from featkit.evaluation.report import summary

    options["progress"] = interactive()
    if study is None:
        run = api.finetune(**options)
        if run is None:  # another process of torchrun reports
            return
        if as_json:
            name = api.load_run(run.path).name
            found = {"run": run.path.name, "name": name, "path": str(run.path)}
            print_json({**found, **run.report.to_dict()})
        else:
            print_text(summary(run.report))
            if run.report.decision_cost:
                print_text(cost_sentence(run.report.decision_cost))
        return
    _run_study(study, options, as_json)


def _run_study(study: Path, options: dict[str, Any], as_json: bool) -> None:
    """Run the trainings of a TOML file and print their table."""
    from featkit import api

    shared = {name: options.pop(name) for name in ("resume", "device", "cache", "out", "progress")}
    given = [name.replace("_", "-") for name, value in options.items() if value is not None]
    if given:
        names = ", ".join(f"--{name}" for name in given)
        raise click.UsageError(f"the trainings are defined in {study}: leave out {names}")
    trainings = api.finetune_study(study, **shared)
    if trainings is None:
        return
    if as_json:
        print_json(trainings.rows)
    else:
        print_text(_table(trainings.rows))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    has_top5 = any(row["top5"] is not None for row in rows)
    columns = ("top-1 %", "95% CI", *(["top-5 %"] if has_top5 else []), "loss", "n", "epochs")
    lines = []
    for row in rows:
        top5 = "" if row["top5"] is None else f"{100 * row['top5']:.1f}"
        interval = between((row["low"], row["high"]))
        top1 = f"{100 * row['top1']:.1f}"
        loss = f"{row['loss']:.3f}"
        numbers = [top1, interval, *([top5] if has_top5 else []), loss, row["n"], row["epochs"]]
        lines.append([row["name"], *numbers])
    return table(["run", *columns], lines, right=columns)
