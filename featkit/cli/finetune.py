"""`featkit finetune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from featkit.cli.options import backbone_option, cache_option, json_option, note, out_option
from featkit.cli.training import figures, make_wanted, training_compute, training_options, watched

EPILOG = """\b
Examples:
  featkit finetune --data photos --backbone resnet18
  featkit finetune --data photos --mode full --epochs 15 --lr 0.005 --augment trivial
  featkit finetune --data photos --mode deep --unfreeze 1 --views 8 --val 0
  featkit finetune --data photos --mode shallow --views 0 --norm update
  featkit finetune --mode scratch --backbone resnet18:stem=small --data digits --augment none --epochs 12 --lr 0.05
  featkit finetune --resume --data photos --mode full --epochs 15 --lr 0.005 --augment trivial
  torchrun --nproc-per-node 2 -m featkit finetune --data photos --mode full --device cuda

\b
What it leaves is a backbone again:
  featkit fit --data photos --backbone experiments/photos/1a2b3c4d5e6f --head svm
  featkit predict experiments/photos/1a2b3c4d5e6f new.jpg
"""


@click.command(epilog=EPILOG)
@click.option(
    "--mode",
    type=click.Choice(["shallow", "deep", "full", "scratch"]),
    default="deep",
    show_default=True,
    help="What learns: the classifier; the last blocks with it; all of a trained network; all of an untrained one.",
)
@backbone_option
@training_options
@cache_option
@out_option
@json_option
def finetune(cache: Path, out: Path, as_json: bool, resume: bool, **options: Any) -> None:
    """Train a network, wholly or in part.

    Blocks that stay as they are run once: their output for some augmented views of each image is kept in the cache,
    and only the rest is trained. The epoch is chosen on val, the network judged on test. Leaves a run directory:
    network.safetensors, history.csv, curves.png, and what `featkit fit` leaves.
    """
    from featkit.cli.fit import run_text
    from featkit.studies.train import is_begun, train_run, work_folder
    from featkit.training.distributed import joined
    from featkit.training.finetune import How
    from featkit.training.prepare import prepare

    compute = training_compute(options)
    wanted = make_wanted(options, cache)
    with joined(compute.device) as group:
        prepared = prepare(wanted, compute)
        images = prepared.images
        counts = ", ".join(f"{int((images.splits == split).sum()):,} {split}" for split in ("train", "val", "test"))
        say = note if not group.rank else (lambda _: None)
        say(f"{images.name}: {counts}, {len(images.classes)} classes; {prepared.blueprint.label}")
        if resume:
            begun = is_begun(work_folder(prepared, out))
            say("going on from the last checkpoint" if begun else "no checkpoint of this training: beginning anew")
        with watched(wanted.settings.epochs, say, bar=compute.progress and not group.rank) as watch:
            done = train_run(prepared, How(compute, resume=resume, watch=watch, group=group), out, figures)
    if done:
        note(f"run: {done.path}")
        click.echo(json.dumps(done.run.report.to_dict(), indent=2) if as_json else run_text(done.run))
