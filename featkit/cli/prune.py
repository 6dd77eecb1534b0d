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
    compute_options,
    data_options,
    given_request,
    make_compute,
    note,
    out_option,
    size_options,
    stack,
)

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
What it leaves is a backbone again:
  featkit profile resnet18 experiments/prune/resnet18-pruned-1a2b3c4d --data photos
  featkit fit --data photos --backbone experiments/prune/resnet18-pruned-1a2b3c4d
"""


@click.command(epilog=EPILOG)
@click.argument("spec", metavar="SPEC")
@click.option(
    "--sparsity",
    multiple=True,
    type=float,
    metavar="SHARE",
    help="Set this share of the weights to zero, the smallest of the whole network. Repeatable: each step begins "
    "with the network of the step before. No faster on ordinary hardware.",
)
@click.option("--macs", type=float, metavar="SHARE", help="Take channels away until this share of the MACs is left.")
@click.option(
    "--by",
    type=click.Choice(["magnitude", "activation"]),
    default="magnitude",
    show_default=True,
    help="Which channels matter: by their weights, or by what they give on train images.",
)
@click.option(
    "--reconstruct",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="With --macs: fit the weights behind missing channels so that each block gives what it gave for N train "
    "images, which takes no labels and no training. [leave them]",
)
@click.option(
    "--calibrate",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Take the BatchNorms' means and variances anew from N train images. [leave them]",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=0),
    default=0,
    help="Train all of what is left for so many epochs after each step, on labelled images. [0]",
)
@click.option("--lr", type=click.FloatRange(min=0), default=0.005, show_default=True, help="Of that training.")
@click.option(
    "--distill",
    is_flag=True,
    help="In that training, learn also from the outputs and embeddings of the network before it was pruned, on five "
    "fixed views of each image, from the cache.",
)
@click.option("--head", metavar="SPEC", help="Judge the network, and each step, by this head on the test images.")
@click.option("--weights", metavar="WHICH", help="imagenet, random[:SEED] or a FILE, as for `featkit extract`.")
@data_options
@stack(*size_options)
@compute_options
@cache_option
@out_option
def prune(spec: str, out: Path, **options: Any) -> None:
    """Make a network smaller: fewer channels, or zeros among its weights.

    Prints the directory of each network made: network.safetensors and prune.json.
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
    from featkit.cli.training import training_compute, watched
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
