"""`featkit quantize`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
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
from featkit.errors import SpecError

if TYPE_CHECKING:
    from featkit.backbones.base import QuantizedNetwork
    from featkit.compression.quantize import QuantizationResult
    from featkit.embeddings.pipeline import Compute
    from featkit.embeddings.request import Request
    from featkit.runs.directory import SavedRun

EPILOG = """\b
Examples:
  featkit quantize resnet18 --data photos
  featkit quantize resnet50 --data photos --method entropy --images 128
  featkit quantize resnet50 --data photos --keep-fp32 conv1 --keep-worst 2
  featkit quantize resnet50 --data photos --bias-correct
  featkit quantize experiments/prune/resnet18-pruned-1a2b3c4d --data photos
  featkit quantize experiments/photos/0123456789ab

\b
What it leaves is a backbone again, which runs on CPUs:
  featkit fit --data photos --backbone experiments/quantize/resnet18-int8-1a2b3c4d
  featkit fit --data photos --backbone experiments/quantize/resnet18-int8-1a2b3c4d --precision int8-openvino
  featkit predict experiments/quantize/resnet18-int8-1a2b3c4d/model.onnx new.jpg
"""

CLASSIFIER_FILE = "model.onnx"
_MUCH = 0.005


@click.command(epilog=EPILOG)
@click.argument("spec", metavar="SPEC")
@click.option(
    "--method",
    type=click.Choice(["minmax", "entropy", "percentile", "dynamic"]),
    default="minmax",
    show_default=True,
    help="Where the range of an activation comes from; percentile is slower to find and, with --bias-correct, the "
    "nearest to float32; dynamic: from each image, while the network runs.",
)
@click.option("--images", type=click.IntRange(min=1), default=256, show_default=True, help="Train images to look at.")
@click.option("--keep-fp32", multiple=True, metavar="LAYER", help="Repeatable: leave this layer, or block, in float32.")
@click.option(
    "--keep-worst", type=click.IntRange(min=0), default=0, metavar="N", help="Leave the N layers that lose most, too."
)
@click.option(
    "--bias-correct",
    is_flag=True,
    help="Take from each bias the mean of what rounding the weights adds, on the images.",
)
@click.option("--weights", metavar="WHICH", help="imagenet, random[:SEED] or a FILE, as for `featkit extract`.")
@layer_option
@data_options
@stack(*size_options)
@compute_options
@out_option
@json_option
def quantize(spec: str, out: Path, as_json: bool, **options: Any) -> None:
    """Put a network, or a run of `featkit fit` or `finetune`, into eight bits.

    Calibrates on train images. Prints a table of the layers, those that lose most first, and the directory of the
    network: network.int8.onnx, network.json and quantize.json. SPEC is what --backbone takes, or a run's directory:
    then the run's own images are used, the whole classifier is written too, as model.onnx, and judged beside the run
    on its test images.
    """
    from featkit.backbones.base import QuantizedNetwork
    from featkit.backbones.int8 import QuantizationConfig
    from featkit.backbones.saved import INT8_CARD, INT8_FILE
    from featkit.compression.quantize import QuantizationRequest
    from featkit.compression.quantize import quantize as make_int8
    from featkit.storage import publish, safe_name

    scheme = QuantizationConfig(options["method"], options["keep_fp32"], options["bias_correct"])
    request, run = _asked(spec, options)
    compute = make_compute(options)
    with tempfile.TemporaryDirectory() as scratch:
        file, whole = Path(scratch, INT8_FILE), Path(scratch, CLASSIFIER_FILE)
        made = make_int8(request, QuantizationRequest(scheme, options["keep_worst"], options["images"]), file, compute)
        directory = out / "quantize" / safe_name(made.card.name)
        facts = _facts(made, request.data, directory)
        files: dict[str, Any] = {INT8_FILE: file.read_bytes(), INT8_CARD: made.card.to_json()}
        if run:
            facts["classifier"] = _judge(run, QuantizedNetwork(file, made.card.sha256), whole, compute)
            files[CLASSIFIER_FILE] = whole.read_bytes()
        text = json.dumps(facts, indent=2)
        publish(directory, {**files, "quantize.json": text})
    _say(made, len(files[INT8_FILE]))
    click.echo(text if as_json else f"{_table(made)}\n{directory}")


def _asked(spec: str, options: Mapping[str, Any]) -> tuple[Request, SavedRun | None]:
    """Return which network is to be quantized, and the run that it is part of if its images are to be the run's own."""
    from featkit.embeddings.request import Request
    from featkit.runs.directory import is_run, load_run

    given = {name: value for name, value in given_request(options).items() if value is not None}
    folder = Path(spec).expanduser()
    if "data" in given or not is_run(folder):
        return Request(**{**given, "backbone": spec}), None
    if given:
        raise SpecError(
            f"{spec} is a run, with images and settings of its own: leave out --{min(given)}, or add --data"
        )
    run = load_run(folder)
    return replace(run.request, augment=None), run


def _judge(run: SavedRun, network: QuantizedNetwork, path: Path, compute: Compute) -> dict[str, Any]:
    """Write the whole classifier, and say how it does beside the run."""
    from featkit.studies.quantize import quantize_run

    found = quantize_run(run, network, path, compute)
    paired = found.paired
    low, high = (f"{100 * bound:+.2f}" for bound in paired.interval95)
    note(
        f"top-1 of the run {100 * found.before:.2f} %, in eight bits {100 * found.after:.2f} %: "
        f"{100 * paired.difference:+.2f} points ({low} to {high}), n = {paired.n}"
    )
    if paired.difference < -_MUCH:
        note("that is more than half a point: try --bias-correct, --keep-worst 2 or --method percentile")
    return {"file": CLASSIFIER_FILE, "top1": found.after, "top1_of_run": found.before, "difference": paired.to_dict()}


def _say(made: QuantizationResult, bytes_now: int) -> None:
    from featkit.compression.quantize import FEW

    if made.images < FEW and made.scheme.method != "dynamic":
        note(f"warning: calibrated on {made.images} images, which is few: give {FEW} train images or more")
    note(
        f"{made.scheme.method}, {made.images} train images{made.scheme.extras}: {size(bytes_now)}, "
        f"{100 * bytes_now / (4 * made.card.parameters):.0f} % of float32"
    )


def _facts(made: QuantizationResult, data: str, directory: Path) -> dict[str, Any]:
    layers = [{"layer": layer, "decibel": noise} for layer, noise in made.noise]
    scheme = {**asdict(made.scheme), "keep": list(made.scheme.keep)}
    how = {**scheme, "images": made.images, "data": data}
    return {"directory": str(directory), "name": made.card.name, **how, "layers": layers}


def _table(made: QuantizationResult) -> str:
    worst_first = sorted(made.noise, key=lambda each: each[1])
    rows = [[layer, f"{noise:.1f}", "float32" if made.scheme.keeps(layer) else ""] for layer, noise in worst_first]
    return table(["layer", "SNR alone in int8, dB", "kept"], rows, right=("SNR alone in int8, dB",))
