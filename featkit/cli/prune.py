"""`featkit prune`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
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
    from featkit.compression.prune import Recover
    from featkit.embeddings.request import Request
    from featkit.studies.prune import PruningSteps

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
    from featkit.backbones.saved import NETWORK_FILE, save_network
    from featkit.compression.pruned import PruningConfig
    from featkit.compression.pruned import prune as make_smaller
    from featkit.embeddings.request import Request
    from featkit.storage import publish, safe_name

    given = {name: value for name, value in given_request(options).items() if value is not None}
    request = Request(**{**given, "backbone": spec})
    chosen = {name: options[name] for name in ("sparsity", "macs", "by", "reconstruct", "calibrate")}
    looking = [name for name in ("reconstruct", "calibrate", "epochs", "head") if options[name]]
    if "data" not in given and (looking or (options["macs"] and options["by"] == "activation")):
        names = "--reconstruct, --calibrate, --epochs, --head and --by activation"
        raise click.UsageError(f"{names} look at images: give --data")
    if options["distill"] and not options["epochs"]:
        raise click.UsageError("--distill says how --epochs train: give --epochs")
    goal = PruningConfig(**chosen, seed=request.seed)
    steps = _steps(request, options) if options["head"] else None
    trained, learned, recover = _recovery(request, options) if options["epochs"] else ("", (), None)
    goal = replace(goal, recovery=trained)
    for pruned in make_smaller(request, goal, make_compute(options), recover, note=note):
        facts, description = pruned.facts, pruned.description
        description = replace(description, trained_on=tuple(sorted({*description.trained_on, *learned})))
        directory = out / "prune" / safe_name(description.name)
        network = partial(save_network, pruned.module, description)
        publish(directory, {NETWORK_FILE: network, "prune.json": json.dumps(facts, indent=2)})
        note(
            f"{description.label}: {facts['parameters']:,} parameters, {100 * facts['sparsity']:.1f} % of the weights "
            f"zero, {facts['macs'] / 1e9:.2f} of {facts['macs_before'] / 1e9:.2f} GMACs"
        )
        if steps:
            note(steps.add(str(directory), facts["sparsity"], facts["macs"]))
        click.echo(directory)
    if steps:
        folder = out / "prune" / safe_name(f"{description.name}-steps")
        publish(folder, steps.files())
        note(f"steps.csv, steps.png: {folder}")


def _steps(request: Request, options: Mapping[str, Any]) -> PruningSteps:
    """Return what judges one network after the other, beginning with the one that is to be pruned."""
    from featkit.studies.prune import PruningSteps

    steps = PruningSteps(request, options["head"], options["cache"], make_compute(options))
    note(steps.first)
    return steps


def _recovery(request: Request, options: Mapping[str, Any]) -> tuple[str, tuple[str, ...], Recover]:
    """Return what is done to a pruned network, for people, the images it learns from, and what does it."""
    from featkit.cli.training_options import training_compute, watched
    from featkit.studies.recover import recovery
    from featkit.training.config import TrainingConfig
    from featkit.training.distill import DistillationConfig

    compute, epochs = training_compute(options), options["epochs"]
    config = TrainingConfig(epochs=epochs, lr=options["lr"], seed=request.seed)
    distillation = DistillationConfig(loss="logits+features") if options["distill"] else None
    with watched(epochs, note, bar=False) as callbacks:
        prepared, recover = recovery(request, config, options["cache"], compute, callbacks, distillation=distillation)
    done = f"then {epochs} epochs at {options['lr']:g}{', distilled' if distillation else ''} ({prepared.id[:8]})"
    return done, prepared.learned, recover
