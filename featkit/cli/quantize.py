"""`featkit quantize`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import (
    compute_options,
    data_options,
    given_request,
    json_option,
    layer_option,
    make_compute,
    note,
    out_option,
    size,
    size_options,
    stack,
    table,
)

if TYPE_CHECKING:
    from featkit.compression.quantize import QuantizedNetwork

EPILOG = """\b
Examples:
  featkit quantize resnet18 --data photos
  featkit quantize resnet50 --data photos --method entropy --images 128
  featkit quantize resnet50 --data photos --keep-fp32 conv1 --keep-worst 2
  featkit quantize experiments/prune/resnet18-pruned-1a2b3c4d --data photos

\b
What it leaves is a backbone again, which runs on CPUs:
  featkit fit --data photos --backbone experiments/quantize/resnet18-int8-1a2b3c4d
"""


@click.command(epilog=EPILOG)
@click.argument("spec", metavar="SPEC")
@click.option(
    "--method",
    type=click.Choice(["minmax", "entropy", "percentile", "dynamic"]),
    default="minmax",
    show_default=True,
    help="Where the range of an activation comes from; dynamic: from each image, while the network runs.",
)
@click.option("--images", type=click.IntRange(min=1), default=256, show_default=True, help="Train images to look at.")
@click.option("--keep-fp32", multiple=True, metavar="LAYER", help="Repeatable: leave this layer, or block, in float32.")
@click.option(
    "--keep-worst", type=click.IntRange(min=0), default=0, metavar="N", help="Leave the N layers that lose most, too."
)
@click.option("--weights", metavar="WHICH", help="imagenet, random[:SEED] or a FILE, as for `featkit extract`.")
@layer_option
@data_options
@stack(*size_options)
@compute_options
@out_option
@json_option
def quantize(spec: str, out: Path, as_json: bool, **options: Any) -> None:
    """Put a network into eight bits.

    Calibrates on train images. Prints a table of the layers, those that lose most first, and the directory of the
    network: network.int8.onnx, network.json and quantize.json.
    """
    from featkit.backbones.int8 import Scheme
    from featkit.backbones.saved_int8 import INT8_CARD, INT8_FILE
    from featkit.compression.quantize import FEW, Wish
    from featkit.compression.quantize import quantize as make_int8
    from featkit.embeddings.request import Request
    from featkit.images.files import safe_name
    from featkit.studies.publish import publish

    given = {name: value for name, value in given_request(options).items() if value is not None}
    request = Request(**{**given, "backbone": spec})
    wish = Wish(Scheme(options["method"], options["keep_fp32"]), options["keep_worst"], options["images"])
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, INT8_FILE)
        made = make_int8(request, wish, file, make_compute(options))
        directory = out / "quantize" / safe_name(made.card.name)
        facts = json.dumps(_facts(made, request.data, directory), indent=2)
        publish(directory, {INT8_FILE: file.read_bytes(), INT8_CARD: made.card.to_json(), "quantize.json": facts})
    if made.images < FEW and made.scheme.method != "dynamic":
        note(f"warning: calibrated on {made.images} images, which is few: give {FEW} train images or more")
    kept = f", {', '.join(made.scheme.keep)} in float32" if made.scheme.keep else ""
    bytes_now, bytes_before = (directory / INT8_FILE).stat().st_size, 4 * made.card.parameters
    note(
        f"{made.scheme.method}, {made.images} train images{kept}: {size(bytes_now)}, "
        f"{100 * bytes_now / bytes_before:.0f} % of float32"
    )
    click.echo(facts if as_json else f"{_table(made)}\n{directory}")


def _facts(made: QuantizedNetwork, data: str, directory: Path) -> dict[str, Any]:
    layers = [{"layer": layer, "decibel": noise} for layer, noise in made.noise]
    how = {"method": made.scheme.method, "keep": list(made.scheme.keep), "images": made.images, "data": data}
    return {"directory": str(directory), "name": made.card.name, **how, "layers": layers}


def _table(made: QuantizedNetwork) -> str:
    worst_first = sorted(made.noise, key=lambda each: each[1])
    rows = [
        [layer, f"{noise:.1f}", "float32" if any(_inside(layer, each) for each in made.scheme.keep) else ""]
        for layer, noise in worst_first
    ]
    return table(["layer", "SNR alone in int8, dB", "kept"], rows, right=("SNR alone in int8, dB",))


def _inside(layer: str, block: str) -> bool:
    return layer == block or layer.startswith(f"{block}.")
