"""``featkit distill``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featkit.cli.compare import print_comparison
from featkit.cli.options import (
    FiniteRange,
    cache_option,
    command,
    integers,
    json_option,
    name_option,
    option,
    out_option,
)
from featkit.cli.output import interactive, print_json, print_line, print_text
from featkit.cli.training_options import mode_option, training_options

if TYPE_CHECKING:
    from featkit.studies.distill import DistillationResult

EPILOG = """\b
Examples:
  featkit distill --data photos --teacher resnet50 --student resnet18
  featkit distill --data photos --teacher experiments/runs/photos/1a2b3c4d5e6f --mode full
  featkit distill --data photos --teacher resnet50 --mode scratch --loss dkd --epochs 100
  featkit distill --data photos --teacher resnet50 --student resnet18 --seeds 3 --resume
  featkit distill --data photos --teacher resnet50 --loss logits+features --alpha 0.7
"""


@command(epilog=EPILOG)
@option(
    "--teacher",
    group="Distillation",
    metavar="SPEC",
    required=True,
    help="Teacher: a run directory, or a backbone, on the features of which a head is fitted.",
)
@option(
    "--teacher-head",
    group="Distillation",
    metavar="SPEC",
    default="linear",
    help="Head to fit if the teacher is a backbone.",
)
@option(
    "--student",
    "backbone",
    group="Backbone",
    metavar="SPEC",
    default="resnet18",
    help="Backbone to train, as --backbone of `featkit finetune`.",
)
@mode_option
@option(
    "--loss",
    group="Distillation",
    type=click.Choice(["logits", "dkd", "features", "logits+features"]),
    help="Distillation loss; logits: KL divergence of softened probabilities; dkd: decoupled "
    "knowledge distillation; features: distance between embeddings.",
    show_default="logits",
)
@option(
    "--temperature",
    group="Distillation",
    type=FiniteRange(0.01, 1000),
    help="Softmax temperature of the distillation loss.",
    show_default="4",
)
@option(
    "--alpha",
    group="Distillation",
    type=FiniteRange(0, 1),
    help="Weight of the distillation loss; the label loss has weight 1 - alpha.",
    show_default="0.5",
)
@option(
    "--beta",
    group="Distillation",
    type=FiniteRange(min=0),
    help="Weight of the non-target classes, with --loss dkd.",
    show_default="8",
)
@option(
    "--distance",
    group="Distillation",
    type=click.Choice(["cosine", "mse"]),
    help="Distance between embeddings, with --loss features.",
    show_default="cosine",
)
@option(
    "--alone/--no-alone",
    group="Distillation",
    default=True,
    help="Also train the student without a teacher, as a baseline.",
    show_default="alone",
)
@option(
    "--seeds",
    group="Training",
    type=integers(1),
    default=1,
    metavar="N",
    help="Repeat with N random seeds (--seed, --seed + 1, ...) and average the results.",
)
@training_options
@cache_option
@name_option
@out_option
@json_option
def distill(seeds: int, as_json: bool, **options: Any) -> None:
    """Train a student network with a teacher (knowledge distillation).

    Compares the teacher, the student trained alone and the distilled student on the same test
    images with paired tests, and reports the fraction of the gap that distillation closes. Teacher
    outputs are cached. A student trained from scratch needs many epochs to benefit from its
    teacher.
    """
    from featkit import api

    results, effects = api.distill_seeds(seeds, {**options, "progress": interactive()})
    if not results:  # another process of torchrun reports
        return
    if as_json:
        values = [result.to_dict() for result in results]
        pooled = [effect.to_dict() for effect in effects]
        print_json({"seeds": values, "pooled": pooled} if seeds > 1 else values[0])
        return
    for result in results:
        print_comparison(result.reports.items(), result.pairs)
        if result.gap is not None:
            print_text(_gap_text(result))
    for effect in effects:
        seeds_text = f"averaged over {effect.seeds} seeds, n = {effect.n}"
        print_line(f"{seeds_text}: {effect.sentence()}")


def _gap_text(result: DistillationResult) -> str:
    assert result.gap is not None
    text = f"gap to the teacher closed: {100 * result.gap:.0f}%"
    if result.gap_interval:
        low, high = (100 * end for end in result.gap_interval)
        text += f" (95% CI {low:.0f} to {high:.0f})"
    return text
