"""`featkit distill`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import cache_option, command, json_option, option, out_option
from featkit.cli.output import note
from featkit.cli.training_options import figures, mode_option, training_compute, training_of, training_options, watched

if TYPE_CHECKING:
    from featkit.studies.distill import DistillationResult

EPILOG = """\b
Examples:
  featkit distill --data photos --teacher resnet50 --student resnet18
  featkit distill --data photos --teacher experiments/runs/photos/1a2b3c4d5e6f --student resnet18 --mode full --views 8
  featkit distill --data photos --teacher resnet50 --student resnet18 --mode scratch --loss dkd --epochs 100
  featkit distill --data photos --teacher resnet50 --student resnet18 --seeds 3 --resume
  featkit distill --data photos --teacher resnet50 --teacher-head svm --loss logits+features --alpha 0.7
"""


@command(epilog=EPILOG)
@option(
    "--teacher",
    group="Distillation",
    metavar="SPEC",
    required=True,
    help="Run directory, or backbone on which a head is fitted.",
)
@option(
    "--teacher-head",
    group="Distillation",
    metavar="SPEC",
    default="linear",
    help="Head of a teacher that is a backbone.",
)
@option(
    "--student",
    "backbone",
    group="Backbone",
    metavar="SPEC",
    default="resnet18",
    help="Backbone to train.",
)
@mode_option
@option(
    "--loss",
    group="Distillation",
    type=click.Choice(["logits", "dkd", "features", "logits+features"]),
    help="Distillation loss: softened logits, decoupled (DKD), embedding distance, or both.",
    show_default="logits",
)
@option(
    "--temperature",
    group="Distillation",
    type=click.FloatRange(0.01, 1000),
    help="Softmax temperature of the distillation loss.",
    show_default="4",
)
@option(
    "--alpha",
    group="Distillation",
    type=click.FloatRange(0, 1),
    help="Weight of the distillation loss; the label loss has weight 1 - alpha.",
    show_default="0.5",
)
@option(
    "--beta",
    group="Distillation",
    type=click.FloatRange(min=0),
    help="Weight of the non-target classes in DKD.",
    show_default="8",
)
@option(
    "--distance",
    group="Distillation",
    type=click.Choice(["cosine", "mse"]),
    help="Distance between embeddings.",
    show_default="cosine",
)
@option(
    "--alone/--no-alone",
    group="Distillation",
    default=True,
    help="Train the student without its teacher too, for comparison.",
    show_default="alone",
)
@option(
    "--seeds",
    group="Training",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Repeat with N seeds, starting at --seed, and pool the results.",
)
@training_options
@cache_option
@out_option
@json_option
def distill(cache: Path, out: Path, as_json: bool, seeds: int, **options: Any) -> None:
    """Train a student network with a teacher (knowledge distillation).

    Compares the teacher, the student trained alone and the distilled student on the same test images
    with paired tests, and reports the fraction of the gap that distillation closes. Teacher outputs
    are cached. Students from scratch need many epochs to benefit.
    """
    from featkit.studies.distill import compare_over_seeds, compare_students

    first = options["seed"] or 0
    runs = {seed: _trained({**options, "seed": seed}, cache, out) for seed in range(first, first + seeds)}
    if not all("distilled" in each for each in runs.values()):
        return  # of several processes, one tells
    found = [compare_students(each) for each in runs.values()]
    effects = compare_over_seeds(runs) if seeds > 1 else []
    if as_json:
        several = {"seeds": [one.to_dict() for one in found], "pooled": [one.to_dict() for one in effects]}
        said = several if seeds > 1 else found[0].to_dict()
        click.echo(json.dumps(said, indent=2))
        return
    for one in found:
        _print(one)
    for each in effects:
        click.echo(f"averaged over {each.seeds} seeds, n = {each.n}: {each.sentence()}")


def _trained(options: Mapping[str, Any], cache: Path, out: Path) -> dict[str, Path]:
    """Make the teacher and train the students; return their runs, without those that another process publishes."""
    from featkit.backbones.devices import pick_device
    from featkit.runs.train import find_finished
    from featkit.studies.distill import distill_run, make_teacher, prepare_student
    from featkit.training.distill import DistillationConfig
    from featkit.training.distributed import join_process_group
    from featkit.training.loop import ExecutionConfig

    compute, config, resume = training_compute(options), training_of(options, cache), options["resume"]
    names = ("loss", "temperature", "alpha", "beta", "distance")
    distillation = DistillationConfig(**{name: options[name] for name in names if options[name] is not None})
    taught = make_teacher(options["teacher"], options["teacher_head"], config, compute, out)
    note(f"teacher: {taught.path}")
    runs = {"teacher": taught.path}
    wishes = {"alone": DistillationConfig(alpha=0)} if options["alone"] else {}
    with join_process_group(pick_device(compute.device)) as group:
        for name, wish in {**wishes, "distilled": distillation}.items():
            say = note if not group.rank else (lambda _: None)
            prepared = prepare_student(config, taught, wish, compute)
            ready = find_finished(prepared, out) if resume else None
            say(f"student {name}" + (f", already there: {ready.path}" if ready else ""))
            if ready:
                runs[name] = ready.path
                continue
            with watched(config.epochs, say, bar=compute.progress and not group.rank) as callbacks:
                execution = ExecutionConfig(compute, resume=resume, callbacks=callbacks, group=group)
                done = distill_run(prepared, taught, wish, execution, out, draw=figures)
            if done:
                note(f"run: {done.path}")
                runs[name] = done.path
    return runs


def _print(found: DistillationResult) -> None:
    """Print the runs, what can be said about each pair, and how much of the gap is closed."""
    from featkit.cli.compare import print_compared

    print_compared(found.reports.items(), found.pairs)
    if found.gap is not None:
        low, high = found.gap_interval or (float("nan"), float("nan"))
        ends = f" ({100 * low:.0f} to {100 * high:.0f})" if found.gap_interval else ""
        click.echo(f"gap to the teacher closed: {100 * found.gap:.0f} %{ends}")
