"""``featkit compare-frameworks``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import (
    cache_option,
    command,
    integers,
    json_option,
    option,
    out_option,
    size_options,
    source_options,
    weights_option,
)
from featkit.cli.output import between, interactive, print_json, print_text, table
from featkit.cli.training_options import config_options
from featkit.training.config import MODES

if TYPE_CHECKING:
    from featkit.studies.frameworks import FrameworksResult

EPILOG = """\b
Examples:
  featkit compare-frameworks --data photos --backbone resnet50
  featkit compare-frameworks --data photos --backbone resnet18 --mode shallow --seeds 5
  featkit compare-frameworks --data photos --resize 112 --deep-limit train=1000,test=500

\b
Needs the extra tensorflow. Everything runs in float32 on the CPU. Finished trainings are not
repeated, interrupted ones are resumed. `difference`: TensorFlow minus torch.
"""


@command(name="compare-frameworks", epilog=EPILOG)
@source_options
@option(
    "--backbone",
    group="Backbone",
    metavar="NAME",
    help="Network: resnet18 to resnet152.",
    show_default="resnet18",
)
@weights_option
@size_options
@option(
    "--mode",
    group="Training",
    type=click.Choice(MODES),
    multiple=True,
    default=("shallow", "deep"),
    help="Training to compare, as --mode of `featkit finetune`; repeatable.",
)
@option(
    "--seeds",
    group="Training",
    type=integers(1, 100),
    default=3,
    help="Number of trainings of each mode in each framework; the images stay the same.",
)
@option(
    "--deep-limit",
    group="Data",
    metavar="LIMIT",
    help="--limit of all modes but shallow.",
    show_default="--limit",
)
@config_options("augment", "views", "val", "epochs", "batch_size", "optimiser", "lr")
@option(
    "--images",
    group="Compute",
    type=integers(2, 10_000),
    default=64,
    help="Number of test images on which the outputs of the layers are compared.",
)
@option(
    "--repeats",
    group="Compute",
    type=integers(3),
    default=10,
    help="Number of timed batches of 32.",
)
@cache_option
@out_option
@json_option
def compare_frameworks(as_json: bool, **options: Any) -> None:
    """Compare torch and TensorFlow on the same network.

    Compares the outputs of the layers, speed and memory, and fine-tuning from the same weights on
    the same batches, with paired tests over seeds. Writes report.html, curves.png and results.json.
    """
    from featkit import api

    result = api.compare_frameworks(progress=interactive(), **options)
    if as_json:
        print_json(result.to_dict())
    else:
        print_text(_text(result))


def _text(result: FrameworksResult) -> str:
    from featkit.reports.frameworks import summary_lines

    rows = []
    for training in result.trainings:
        for (framework, seed), run in training.runs.items():
            report = run.report
            top1 = f"{100 * report.top1:.1f}"
            rows.append(
                [training.mode, framework, seed, top1, between(report.interval95), report.n]
            )
    columns = ("seed", "top-1 %", "95% CI", "n")
    text = table(["mode", "framework", *columns], rows, right=columns)
    return "\n".join([text, *summary_lines(result)])
