"""Options of the verbs that train a network, and how they show what goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import Decorator, F, device_option, option, size_options, source_options, stack

if TYPE_CHECKING:
    from featkit.embeddings.pipeline import Compute
    from featkit.runs.fit import Run
    from featkit.runs.train import Lines
    from featkit.training.config import TrainingConfig
    from featkit.training.history import EpochRecord
    from featkit.training.loop import TrainingCallbacks


class BalanceChoice(click.Choice[str]):
    """The corrections of a training, with ``logit_adjust`` as an alias of ``logit-adjust``."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Return the correction's name with hyphens."""
        return super().convert(str(value).replace("_", "-"), param, ctx)


_BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"


def _number(*names: str, low: float = 0, high: float | None = None, **settings: Any) -> Decorator[F]:
    """Return an option of the training that takes a number."""
    return option(*names, group="Training", type=click.FloatRange(low, high), **settings)


mode_option = option(
    "--mode",
    group="Training",
    type=click.Choice(["shallow", "deep", "full", "scratch"]),
    help="Layers to train: classifier only, last blocks, all layers, or all layers from random weights.",
    show_default="deep",
)

training_options = stack(
    source_options,
    option(
        "--augment",
        group="Data",
        type=click.Choice(["none", "basic", "light", "shift", "trivial", "auto", "rand"]),
        help="Augmentation of train images; basic: random resized crop and flip.",
        show_default="basic; none for shallow and for digits",
    ),
    option(
        "--views",
        group="Data",
        type=click.IntRange(0, 100),
        help="Augmented views per image, cached after the frozen layers; 0: new views every epoch.",
        show_default="4",
    ),
    option(
        "--val",
        group="Data",
        type=click.FloatRange(0, 0.9),
        metavar="FRACTION",
        help="Fraction of train for validation; 0: train on all images and keep the last epoch.",
        show_default="own split, else 0.1",
    ),
    option(
        "--weights",
        group="Backbone",
        metavar="SPEC",
        help="Initial weights, as for `featkit extract`.",
        show_default="imagenet; random for scratch",
    ),
    size_options,
    option(
        "--unfreeze",
        group="Training",
        metavar="LAYER|N",
        help="With deep: first trainable stage or block, or the number of trainable blocks.",
        show_default="layer4",
    ),
    option(
        "--epochs",
        group="Training",
        type=click.IntRange(min=1),
        help="Training epochs.",
        show_default="20",
    ),
    option(
        "--batch-size",
        group="Training",
        type=click.IntRange(min=1),
        help="Images per training step.",
        show_default="32",
    ),
    option(
        "--optimiser",
        group="Training",
        type=click.Choice(["sgd", "adamw"]),
        help="Optimiser; sgd has momentum 0.9.",
        show_default="sgd",
    ),
    _number("--lr", help="Peak learning rate.", show_default="0.01"),
    _number(
        "--layer-decay", high=1, help="Layer-wise learning-rate decay, per stage.", show_default="1"
    ),
    _number(
        "--weight-decay",
        help="Weight decay; none for norms and biases.",
        show_default="0.0001",
    ),
    _number("--warmup", help="Warm-up epochs.", show_default="1"),
    _number("--smoothing", high=0.999, help="Label smoothing.", show_default="0"),
    _number("--mixup", help="Alpha of mixup.", show_default="off"),
    _number("--cutmix", help="Alpha of CutMix.", show_default="off"),
    _number("--ema", high=0.999999, help="Decay of averaged weights (EMA).", show_default="off"),
    _number("--clip", help="Maximum gradient norm.", show_default="off"),
    option(
        "--balance",
        group="Training",
        type=BalanceChoice(["none", "reweight", "resample", "logit-adjust"]),
        help="Class-imbalance correction.",
        show_default="none",
    ),
    option(
        "--norm",
        group="Training",
        type=click.Choice(["update", "frozen"]),
        help="BatchNorm statistics of trainable layers.",
        show_default="update; frozen for shallow",
    ),
    option(
        "--patience",
        group="Training",
        type=click.IntRange(min=1),
        help="Stop after this many epochs without validation improvement.",
        show_default="off",
    ),
    option(
        "--precision",
        group="Training",
        type=click.Choice(["auto", "fp32", "bf16"]),
        help="Precision of training.",
        show_default="auto",
    ),
    option(
        "--frozen-precision",
        group="Training",
        type=click.Choice(["auto", "fp32", "bf16"]),
        help="Precision of frozen layers and of evaluation.",
        show_default="auto",
    ),
    option(
        "--resume",
        group="Training",
        is_flag=True,
        help="Resume from the last checkpoint of the same training.",
    ),
    device_option,
)
"""The options of commands that train a network."""


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

    from featkit.training.loop import TrainingCallbacks

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
