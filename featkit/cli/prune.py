"""``featkit prune``."""

from __future__ import annotations

from typing import Any

import click

from featkit.cli.options import (
    FiniteRange,
    cache_option,
    command,
    compute_options,
    data_options_with_default,
    integers,
    name_option,
    option,
    out_option,
    size_options,
    weights_option,
)
from featkit.cli.output import interactive, print_line

EPILOG = """\b
Examples:
  featkit prune resnet18 --macs 0.5
  featkit prune resnet18 --macs 0.5 --by activation --calibrate 512 --data photos
  featkit prune resnet50 --sparsity 0.5 --sparsity 0.8 --sparsity 0.9
  featkit prune resnet18 --macs 0.5 --reconstruct 512 --data photos --epochs 10 --distill
  featkit prune resnet18 --sparsity 0.5 --sparsity 0.8 --data photos --epochs 1 --head linear

\b
Use the pruned network as a backbone:
  featkit profile resnet18 experiments/runs/prune/resnet18-pruned-1a2b3c4d --data photos
  featkit fit --data photos --backbone experiments/runs/prune/resnet18-pruned-1a2b3c4d
"""


@command(epilog=EPILOG)
@click.argument("backbone", metavar="BACKBONE")
@option(
    "--sparsity",
    group="Pruning",
    multiple=True,
    type=FiniteRange(),
    metavar="FRACTION",
    help="Fraction of the weights to set to zero, those of the smallest magnitude (unstructured "
    "pruning). Repeatable: the network is pruned step by step. Zero weights do not reduce latency "
    "on ordinary hardware.",
)
@option(
    "--macs",
    group="Pruning",
    type=FiniteRange(),
    metavar="FRACTION",
    help="Fraction of the multiply-accumulate operations (MACs) that remains after channels are "
    "removed (structured pruning).",
)
@option(
    "--by",
    group="Pruning",
    type=click.Choice(["magnitude", "activation"]),
    default="magnitude",
    help="Importance of a channel in structured pruning: weight magnitude, or mean activation on "
    "train images.",
)
@option(
    "--reconstruct",
    group="Pruning",
    type=integers(0),
    default=0,
    metavar="N",
    help="With --macs: fit the remaining weights to the original activations on N train images by "
    "least squares, without labels.",
    show_default="off",
)
@option(
    "--calibrate",
    group="Pruning",
    type=integers(0),
    default=0,
    metavar="N",
    help="Recalibrate BatchNorm statistics on N train images.",
    show_default="off",
)
@option(
    "--epochs",
    group="Training",
    type=integers(0),
    default=0,
    help="Epochs of fine-tuning on the labelled train images after each pruning step.",
)
@option(
    "--lr",
    group="Training",
    type=FiniteRange(min=0),
    default=0.005,
    help="Peak learning rate of fine-tuning.",
)
@option(
    "--distill",
    group="Training",
    is_flag=True,
    help="Distill from the unpruned network (logits and embeddings) while fine-tuning.",
)
@option(
    "--head",
    group="Head",
    metavar="SPEC",
    help="Head to fit and evaluate on the features after each pruning step.",
    show_default="off",
)
@weights_option
@data_options_with_default("no images")
@size_options
@compute_options
@cache_option
@name_option
@out_option
def prune(backbone: str, **options: Any) -> None:
    """Prune a network: remove channels, or set weights to zero.

    Writes a directory with network.safetensors and prune.json for each pruning step and prints its
    path, which can be used as --backbone.
    """
    from featkit import api

    for step in api.prune(backbone, progress=interactive(), **options):
        if step.path:
            print_line(step.path)
