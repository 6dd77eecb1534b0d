"""`featkit prune`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import (
    cache_option,
    command,
    compute_options,
    data_options,
    given_request,
    make_compute,
    option,
    out_option,
    size_options,
    weights_option,
)
from featkit.cli.output import note

if TYPE_CHECKING:
    from featkit.embeddings.request import Request
    from featkit.studies.prune import PruningStep
    from featkit.studies.recover import Recovery

EPILOG = """\b
Examples:
  featkit prune resnet18 --macs 0.5
  featkit prune resnet18 --macs 0.5 --by activation --calibrate 512 --data photos
  featkit prune resnet50 --sparsity 0.5 --sparsity 0.8 --sparsity 0.9
  featkit prune resnet18 --macs 0.5 --by activation --reconstruct 512 --data photos --epochs 10 --distill
  featkit prune resnet18 --sparsity 0.5 --sparsity 0.8 --data photos --epochs 1 --head linear

\b
Use the pruned network as a backbone:
  featkit profile resnet18 experiments/runs/prune/resnet18-pruned-1a2b3c4d --data photos
  featkit fit --data photos --backbone experiments/runs/prune/resnet18-pruned-1a2b3c4d
"""


@command(epilog=EPILOG)
@click.argument("spec", metavar="BACKBONE")
@option(
    "--sparsity",
    group="Pruning",
    multiple=True,
    type=float,
    metavar="FRACTION",
    help="Unstructured magnitude pruning: fraction of the weights set to zero. Repeatable: each step "
    "continues from the one before. Does not run faster on ordinary hardware.",
)
@option(
    "--macs",
    group="Pruning",
    type=float,
    metavar="FRACTION",
    help="Structured pruning: remove channels until this fraction of the MACs remains.",
)
@option(
    "--by",
    group="Pruning",
    type=click.Choice(["magnitude", "activation"]),
    default="magnitude",
    help="Channel importance: weight magnitude, or activation on train images.",
)
@option(
    "--reconstruct",
    group="Pruning",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="With --macs: refit the weights after removed channels to the original activations on N "
    "train images (least squares; no labels).",
    show_default="off",
)
@option(
    "--calibrate",
    group="Pruning",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="BatchNorm recalibration on N train images.",
    show_default="off",
)
@option(
    "--epochs",
    group="Training",
    type=click.IntRange(min=0),
    default=0,
    help="Epochs of fine-tuning after each step, on labelled images.",
)
@option(
    "--lr",
    group="Training",
    type=click.FloatRange(min=0),
    default=0.005,
    help="Peak learning rate of the fine-tuning.",
)
@option(
    "--distill",
    group="Training",
    is_flag=True,
    help="Fine-tune with the unpruned network as teacher (logits and embeddings).",
)
@option(
    "--head",
    group="Head",
    metavar="SPEC",
    help="Evaluate the network after each step with this head.",
    show_default="off",
)
@weights_option
@data_options
@size_options
@compute_options
@cache_option
@out_option
def prune(spec: str, out: Path, **options: Any) -> None:
    """Prune a network: remove channels, or set weights to zero.

    Prints the directory of each pruned network, which is a backbone again: network.safetensors and
    prune.json.
    """
    from featkit.compression.prune import PruningConfig
    from featkit.embeddings.request import Request
    from featkit.reports.figures import sparsity_figures
    from featkit.storage import csv_text, publish, safe_name
    from featkit.studies.prune import prune_network, step_rows

    given = {name: value for name, value in given_request(options).items() if value is not None}
    request = Request(**{**given, "backbone": spec})
    chosen = {
        name: options[name] for name in ("sparsity", "macs", "by", "reconstruct", "calibrate")
    }
    looking = [name for name in ("reconstruct", "calibrate", "epochs", "head") if options[name]]
    if "data" not in given and (looking or (options["macs"] and options["by"] == "activation")):
        names = "--reconstruct, --calibrate, --epochs, --head and --by activation"
        raise click.UsageError(f"{names} look at images: give --data")
    if options["distill"] and not options["epochs"]:
        raise click.UsageError("--distill says how --epochs train: give --epochs")
    config = PruningConfig(**chosen, seed=request.seed)
    compute = make_compute(options)
    recovery = _recovery(request, options) if options["epochs"] else None
    steps = []
    for step in prune_network(
        request,
        config,
        out,
        cache=options["cache"],
        compute=compute,
        recovery=recovery,
        head=options["head"],
        on_message=note,
    ):
        steps.append(step)
        if step.facts:
            facts = step.facts
            note(
                f"{step.label}: {facts['parameters']:,} parameters, {100 * facts['sparsity']:.1f}% of the weights "
                f"zero, {facts['macs'] / 1e9:.2f} of {facts['macs_before'] / 1e9:.2f} GMACs"
            )
        if step.report:
            note(f"{options['head']}: {_accuracy(step)}")
        if step.path:
            click.echo(step.path)
    if options["head"]:
        rows = step_rows(steps)
        title = f"{options['head']} on {Path(request.data).name}, n = {rows[0]['n']}"
        folder = out / "prune" / safe_name(f"{steps[-1].network}-steps")
        publish(folder, {"steps.csv": csv_text(rows), **sparsity_figures({"pruned": rows}, title)})
        note(f"steps.csv, steps.png: {folder}")


def _accuracy(step: PruningStep) -> str:
    """Return the accuracy of a step and its difference to the unpruned network."""
    assert step.report is not None
    low, high = step.report.interval95
    text = f"top-1 {100 * step.report.top1:.1f}% (95% CI {100 * low:.1f} to {100 * high:.1f}), n = {step.report.n}"
    if step.difference:
        least, most = step.difference.interval95
        text += (
            f"; minus unpruned {100 * step.difference.difference:+.1f} points "
            f"(95% CI {100 * least:+.1f} to {100 * most:+.1f})"
        )
    return text


def _recovery(request: Request, options: Mapping[str, Any]) -> Recovery:
    """Return the retraining that the options ask for."""
    from featkit.cli.training_options import training_compute, watched
    from featkit.studies.recover import RecoveryConfig, make_recovery

    recovery = RecoveryConfig(options["epochs"], options["lr"], options["distill"])
    with watched(recovery.epochs, note, bar=False) as callbacks:
        return make_recovery(
            request, recovery, options["cache"], training_compute(options), callbacks
        )
