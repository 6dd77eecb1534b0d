"""Options of the verbs that train a network, and how they show what goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import (
    Decorator,
    F,
    device_option,
    option,
    size_options,
    source_options,
    stack,
)
from featkit.training.config import PRECISIONS, REQUEST_OPTIONS, TrainingConfig, option_fields
from featkit.training.config import Option as TrainingOption

if TYPE_CHECKING:
    from featkit.embeddings.pipeline import Compute
    from featkit.runs.fit import Run
    from featkit.runs.train import History
    from featkit.training.history import EpochRecord
    from featkit.training.loop import TrainingCallbacks


class BalanceChoice(click.Choice[str]):
    """The corrections of a training, with ``logit_adjust`` as an alias of ``logit-adjust``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the correction's name with hyphens."""
        return super().convert(str(value).replace("_", "-"), param, ctx)


_BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"


def _config_option(each: Field[Any]) -> Decorator[F]:
    """Return the option that fills a field of ``TrainingConfig``; None if it is not given."""
    setting: TrainingOption = each.metadata["option"]
    kind: Any = None
    if setting.choices:
        choices = BalanceChoice if each.name == "balance" else click.Choice
        kind = choices(setting.choices)
    elif each.type in ("int", "int | None"):
        low = None if setting.low is None else int(setting.low)
        high = None if setting.high is None else int(setting.high)
        kind = click.IntRange(low, high)
    elif each.type == "float":
        kind = click.FloatRange(setting.low, setting.high)
    default = each.default
    return option(
        f"--{each.name.replace('_', '-')}",
        group=setting.group,
        type=kind,
        metavar=setting.metavar or None,
        help=setting.help,
        show_default=setting.default or (default if isinstance(default, str) else f"{default:g}"),
    )


_CONFIG_OPTIONS: dict[str, Decorator[Any]] = {each.name: _config_option(each) for each in option_fields()}

mode_option = _CONFIG_OPTIONS.pop("mode")

training_options = stack(
    source_options,
    option(
        "--weights",
        group="Backbone",
        metavar="SPEC",
        help="Initial weights, as for `featkit extract`.",
        show_default="imagenet; random for scratch",
    ),
    size_options,
    *(added for name, added in _CONFIG_OPTIONS.items() if name not in REQUEST_OPTIONS),
    option(
        "--frozen-precision",
        group="Training",
        type=click.Choice(PRECISIONS),
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
"""The options of commands that train a network, generated from the fields of ``TrainingConfig``."""

NAMES = TrainingConfig.option_names()
"""Options that decide the trained weights."""


def training_of(options: Mapping[str, Any], cache: Path) -> TrainingConfig:
    """Return the training that options ask for."""
    return TrainingConfig.from_options({name: options[name] for name in NAMES}, cache)


def training_compute(options: Mapping[str, Any]) -> Compute:
    """Return the compute options; the batch size is one of the training instead."""
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
            drawn.set_postfix_str(
                f"epoch {number + 1}, step {step}: loss {loss:.3f}, top-1 {100 * top1:.1f} %"
            )

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


def figures(run: Run, history: History) -> dict[str, bytes]:
    """Draw the curves of a training, and what `featkit fit` draws of a head."""
    from featkit.cli.fit import draw_run
    from featkit.plots.files import png_bytes
    from featkit.plots.training import plot_histories

    title = (
        f"{run.source.weights}: top-1 {100 * run.report.top1:.1f} % on test (n = {run.report.n})"
    )
    return {
        "curves.png": png_bytes(plot_histories({run.id: history}, title=title)),
        **draw_run(run),
    }
