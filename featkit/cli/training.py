"""Options of the verbs that train a network, and how they show what goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import F, device_option, size_options, source_options, stack

if TYPE_CHECKING:
    from featkit.embeddings.pipeline import Compute
    from featkit.runs.fit import Run
    from featkit.runs.train import Lines
    from featkit.training.config import TrainingConfig
    from featkit.training.finetune import TrainingCallbacks
    from featkit.training.history import EpochRecord


_BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"


def training_options(function: F) -> F:
    """Add the options of verbs that train a network."""
    number = click.FloatRange(min=0)
    return stack(
        source_options,
        click.option("--weights", metavar="WHICH", help="As of `featkit extract`. [imagenet; random for scratch]"),
        *size_options,
        click.option("--unfreeze", metavar="BLOCK|N", help="deep: the first block that learns, or how many. [layer4]"),
        click.option(
            "--augment",
            type=click.Choice(["none", "basic", "light", "shift", "trivial", "auto", "rand"]),
            help="basic: random resized crop and flip. [basic; none for shallow and for digits]",
        ),
        click.option(
            "--views",
            type=click.IntRange(0, 100),
            help="Augmented views of each image, kept where blocks stay as they are; 0: new ones in each epoch. [4]",
        ),
        click.option(
            "--val",
            type=click.FloatRange(0, 0.9),
            help="Share of train that chooses the epoch; 0: train on all, keep the last. [the data's own, else 0.1]",
        ),
        click.option("--epochs", type=click.IntRange(min=1), help="How often each image is seen. [20]"),
        click.option("--batch-size", type=click.IntRange(min=1), help="Images in one step. [32]"),
        click.option("--optimiser", type=click.Choice(["sgd", "adamw"]), help="[sgd, momentum 0.9]"),
        click.option("--lr", type=number, help="Learning rate at its height. [0.01]"),
        click.option("--layer-decay", type=click.FloatRange(0, 1), help="Factor on it from stage to stage, down. [1]"),
        click.option("--weight-decay", type=number, help="Of weights, not of norms and biases. [0.0001]"),
        click.option("--warmup", type=number, help="Epochs in which the rate rises. [1]"),
        click.option("--smoothing", type=click.FloatRange(0, 0.999), help="Label smoothing. [0]"),
        click.option("--mixup", type=number, help="Alpha of mixup; 0: none. [0]"),
        click.option("--cutmix", type=number, help="Alpha of CutMix; 0: none. [0]"),
        click.option("--ema", type=click.FloatRange(0, 0.999999), help="Decay of averaged weights; 0: none. [0]"),
        click.option("--clip", type=number, help="Largest norm of the gradient; 0: any. [0]"),
        click.option(
            "--balance",
            type=click.Choice(["none", "reweight", "resample", "logit-adjust"]),
            help="What is done about classes of unequal size. [none]",
        ),
        click.option(
            "--norm",
            type=click.Choice(["update", "frozen"]),
            help="BatchNorm of what learns. [update; frozen for shallow]",
        ),
        click.option("--patience", type=click.IntRange(min=1), help="Epochs to wait for a better val. [wait for all]"),
        click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Of training. [auto]"),
        click.option(
            "--frozen-precision",
            type=click.Choice(["auto", "fp32", "bf16"]),
            help="Of blocks that stay as they are, and of judging. [auto]",
        ),
        click.option("--resume", is_flag=True, help="Go on from the last checkpoint of the same training."),
        device_option,
    )(function)


NAMES = (
    *(
        "data",
        "split",
        "limit",
        "seed",
        "backbone",
        "weights",
        "resize",
        "crop",
        "mode",
        "unfreeze",
        "augment",
        "views",
    ),
    *("val", "epochs", "batch_size", "optimiser", "lr", "layer_decay", "weight_decay", "warmup", "smoothing", "mixup"),
    *("cutmix", "ema", "clip", "balance", "norm", "patience", "precision", "frozen_precision"),
)
"""Options that decide what is trained."""


def training_of(options: Mapping[str, Any], cache: Path) -> TrainingConfig:
    """Return the training that options ask for."""
    from featkit.training.config import TrainingConfig

    return TrainingConfig.from_options({name: options[name] for name in NAMES}, cache)


def training_compute(options: Mapping[str, Any]) -> Compute:
    """Return how the work is to be done; the size of a batch is that of training, and decides the weights."""
    import sys

    from featkit.embeddings.pipeline import Compute

    return Compute(device=options["device"], progress=sys.stderr.isatty())


@contextmanager
def watched(epochs: int, say: Callable[[str], None], *, bar: bool) -> Iterator[TrainingCallbacks]:
    """Show how a training goes: a bar of steps with loss and top-1, a line for each epoch."""
    from tqdm import tqdm

    from featkit.training.finetune import TrainingCallbacks

    with tqdm(total=epochs, unit="epoch", disable=not bar, bar_format=_BAR) as drawn:

        def step(number: int, step: int, loss: float, top1: float) -> None:
            drawn.set_postfix_str(f"epoch {number + 1}, step {step}: loss {loss:.3f}, top-1 {100 * top1:.1f} %")

        def epoch(done: EpochRecord) -> None:
            drawn.update(done.number + 1 - drawn.n)
            say(_line(done, epochs))

        yield TrainingCallbacks(step, epoch, say)


def _line(epoch: EpochRecord, epochs: int) -> str:
    parts = [
        f"{name}: loss {score.loss:.3f}, top-1 {100 * score.top1:.1f} %, top-5 {100 * score.top5:.1f} %"
        for name, score in (("train", epoch.train), ("val", epoch.val))
        if score
    ]
    return f"epoch {epoch.number + 1}/{epochs}, {epoch.seconds:.0f} s; {'; '.join(parts)}"


def figures(run: Run, history: Lines) -> dict[str, bytes]:
    """Draw the curves of a training, and what `featkit fit` draws of a head."""
    from featkit.cli.fit import draw_run
    from featkit.plots.files import png_bytes
    from featkit.plots.training import plot_histories

    title = f"{run.source.weights}: top-1 {100 * run.report.top1:.1f} % on test (n = {run.report.n})"
    return {"curves.png": png_bytes(plot_histories({run.id: history}, title=title)), **draw_run(run)}
