"""``featkit quantize``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import (
    command,
    compute_options,
    data_options_with_default,
    integers,
    json_option,
    layer_option,
    name_option,
    option,
    out_option,
    size_options,
    weights_option,
)
from featkit.cli.output import interactive, note, print_json, print_line, print_text, size, table

if TYPE_CHECKING:
    from featkit.studies.quantize import QuantizedRun

EPILOG = """\b
Examples:
  featkit quantize resnet18 --data photos
  featkit quantize resnet50 --data photos --method entropy --images 128
  featkit quantize resnet50 --data photos --keep-fp32 conv1 --keep-worst 2
  featkit quantize resnet50 --data photos --bias-correct
  featkit quantize experiments/runs/prune/resnet18-pruned-1a2b3c4d --data photos
  featkit quantize latest

\b
Use the int8 network as a backbone (on CPUs):
  featkit fit --data photos --backbone experiments/runs/quantize/resnet18-int8-1a2b3c4d
  featkit profile resnet18 experiments/runs/quantize/resnet18-int8-1a2b3c4d@int8-openvino
  featkit predict experiments/runs/quantize/resnet18-int8-1a2b3c4d/model.onnx new.jpg
"""


@command(epilog=EPILOG)
@click.argument("backbone", metavar="BACKBONE|RUN")
@option(
    "--method",
    group="Quantization",
    type=click.Choice(["minmax", "entropy", "percentile", "dynamic"]),
    default="minmax",
    help="Calibration method for activation ranges; dynamic: computed for each image at run time.",
)
@option(
    "--images",
    group="Quantization",
    type=integers(1),
    default=256,
    help="Number of train images for calibration.",
)
@option(
    "--keep-fp32",
    group="Quantization",
    multiple=True,
    metavar="LAYER",
    help="Keep this layer or block in float32. Repeatable.",
)
@option(
    "--keep-worst",
    group="Quantization",
    type=integers(0),
    default=0,
    metavar="N",
    help="Keep the N layers with the largest quantization error in float32.",
)
@option(
    "--weight-bits",
    group="Quantization",
    type=click.IntRange(7, 8),
    default=7,
    help="Bits of weights; 8 saturates on x86 processors without VNNI.",
)
@option(
    "--bias-correct",
    group="Quantization",
    is_flag=True,
    help="Correct biases for the mean error of weight rounding.",
)
@weights_option
@layer_option
@data_options_with_default("digits; for RUN, its own images")
@size_options
@compute_options
@name_option
@out_option
@json_option
def quantize(backbone: str, as_json: bool, **options: Any) -> None:
    """Quantize a network, or a run of `featkit fit` or `finetune`, to int8.

    Calibrates on train images. Writes a directory with network.int8.onnx, network.json and
    quantize.json and prints the layers sorted by quantization error, and the path of the directory,
    which can be used as --backbone. For a run, also writes the classifier (network and head) as
    model.onnx and compares its test accuracy with that of the run, or its mean average precision
    with several labels per image.
    """
    from featkit import api

    model = api.quantize(backbone, progress=interactive(), **options)
    if model.run:
        _note_accuracy(model.run)
    result = model.result
    share = 100 * model.size / (4 * result.description.parameters)
    note(
        f"{result.config.method}, {result.images} train images{result.config.extras}: "
        f"{size(model.size)}, {share:.0f}% of float32"
    )
    note(str(result.record))
    if as_json:
        print_json(model.to_dict())
        return
    columns = ("SNR alone in int8, dB",)
    rows = []
    for layer, noise in sorted(result.snr, key=lambda each: each[1]):
        rows.append([layer, f"{noise:.1f}", "float32" if result.config.keeps(layer) else ""])
    print_text(table(["layer", *columns, "kept"], rows, right=columns))
    print_line(model.path)


def _note_accuracy(run: QuantizedRun) -> None:
    """Print the accuracy of the int8 classifier and that of the run."""
    paired = run.paired
    low, high = (f"{100 * end:+.2f}" for end in paired.interval95)
    note(
        f"{paired.metric}: run {100 * run.before:.2f}%, int8 {100 * run.after:.2f}%, difference "
        f"{100 * paired.difference:+.2f} points (95% CI {low} to {high}), n = {paired.n}"
    )
    if paired.difference < -_LARGE_LOSS:
        note(
            "more than half a point lost: try --bias-correct, --keep-worst 2 or --method percentile"
        )


_LARGE_LOSS = 0.005
