"""`featkit distill`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import cache_option, json_option, note, out_option
from featkit.cli.training import figures, training_compute, training_of, training_options, watched

if TYPE_CHECKING:
    from featkit.studies.distill import DistillationResult

EPILOG = """\b
Examples:
  featkit distill --data photos --teacher resnet50 --student resnet18
  featkit distill --data photos --teacher experiments/photos/1a2b3c4d5e6f --student resnet18 --mode full --views 8
  featkit distill --data photos --teacher resnet50 --student resnet18 --mode scratch --loss dkd --epochs 100
  featkit distill --data photos --teacher resnet50 --student resnet18 --seeds 3 --resume
  featkit distill --data photos --teacher resnet50 --teacher-head svm --loss logits+features --alpha 0.7
"""


@click.command(epilog=EPILOG)
@click.option("--teacher", metavar="SPEC", required=True, help="A run directory, or a backbone whose head is fitted.")
@click.option("--teacher-head", metavar="SPEC", default="linear", show_default=True, help="Of a backbone.")
@click.option("--student", "backbone", metavar="SPEC", default="resnet18", show_default=True, help="What learns.")
@click.option(
    "--mode",
    type=click.Choice(["shallow", "deep", "full", "scratch"]),
    default="deep",
    show_default=True,
    help="What of the student learns, as in `featkit finetune`.",
)
@click.option(
    "--loss",
    type=click.Choice(["logits", "dkd", "features", "logits+features"]),
    help="Softened outputs; decoupled; distance of embeddings; both. [logits]",
)
@click.option("--temperature", type=click.FloatRange(0.01, 1000), help="Of softened outputs. [4]")
@click.option("--alpha", type=click.FloatRange(0, 1), help="Weight of the teacher; the labels have the rest. [0.5]")
@click.option("--beta", type=click.FloatRange(min=0), help="dkd: weight of the classes that are not true. [8]")
@click.option("--distance", type=click.Choice(["cosine", "mse"]), help="Of embeddings. [cosine]")
@click.option("--alone/--no-alone", default=True, show_default=True, help="Train the student without a teacher too.")
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, help="Repeat with so many seeds, from --seed on, and pool. [1]"
)
@training_options
@cache_option
@out_option
@json_option
def distill(cache: Path, out: Path, as_json: bool, seeds: int, **options: Any) -> None:
    """Train a student that learns from a teacher as well as from labels.

    Reports the teacher, the student alone and the student distilled on the same test images, with paired tests, and
    how much of the gap is closed. What the teacher says about each view of an image is kept in the cache. A student
    from scratch needs patience: the longer it trains, the more its teacher is worth to it.
    """
    from featkit.studies.distill import compared, pooled

    first = options["seed"] or 0
    runs = {seed: _trained({**options, "seed": seed}, cache, out) for seed in range(first, first + seeds)}
    if not all("distilled" in each for each in runs.values()):
        return  # of several processes, one tells
    found = [compared(each) for each in runs.values()]
    effects = pooled(runs) if seeds > 1 else []
    if as_json:
        several = {"seeds": [one.to_dict() for one in found], "pooled": [one.to_dict() for one in effects]}
        said = several if seeds > 1 else found[0].to_dict()
        click.echo(json.dumps(said, indent=2))
        return
    for one in found:
        _print(one)
    for each in effects:
        low, high = (f"{100 * bound:+.1f}" for bound in each.interval95)
        click.echo(
            f"over {each.seeds} seeds, n = {each.n}: {each.a} less {each.b} is {100 * each.difference:+.1f} points "
            f"({low} to {high}); p = {each.p:.2g}, adjusted {each.p_holm:.2g}"
        )


def _trained(options: Mapping[str, Any], cache: Path, out: Path) -> dict[str, Path]:
    """Make the teacher and train the students; return their runs, without those that another process publishes."""
    from featkit.backbones.engines.torch import pick_device
    from featkit.runs.train import finished
    from featkit.studies.distill import distill_run, make_teacher, prepare_student
    from featkit.training.distill import DistillationConfig
    from featkit.training.distributed import joined
    from featkit.training.finetune import ExecutionConfig

    compute, config, resume = training_compute(options), training_of(options, cache), options["resume"]
    names = ("loss", "temperature", "alpha", "beta", "distance")
    distillation = DistillationConfig(**{name: options[name] for name in names if options[name] is not None})
    taught = make_teacher(options["teacher"], options["teacher_head"], config, compute, out)
    note(f"teacher: {taught.path}")
    runs = {"teacher": taught.path}
    wishes = {"alone": DistillationConfig(alpha=0)} if options["alone"] else {}
    with joined(pick_device(compute.device)) as group:
        for name, wish in {**wishes, "distilled": distillation}.items():
            say = note if not group.rank else (lambda _: None)
            prepared = prepare_student(config, taught, wish, compute)
            ready = finished(prepared, out) if resume else None
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
