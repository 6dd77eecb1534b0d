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
    command,
    compute_options,
    data_options,
    given_request,
    json_option,
    layer_option,
    make_compute,
    option,
    out_option,
    size_options,
    weights_option,
)
from featkit.cli.output import note, size, table
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
  featkit quantize experiments/runs/prune/resnet18-pruned-1a2b3c4d --data photos
  featkit quantize experiments/runs/photos/0123456789ab

\b
Use the int8 network as a backbone (on CPUs):
  featkit fit --data photos --backbone experiments/runs/quantize/resnet18-int8-1a2b3c4d
  featkit fit --data photos --backbone experiments/runs/quantize/resnet18-int8-1a2b3c4d --precision int8-openvino
  featkit predict experiments/runs/quantize/resnet18-int8-1a2b3c4d/model.onnx new.jpg
"""

CLASSIFIER_FILE = "model.onnx"
_MUCH = 0.005


@command(epilog=EPILOG)
@click.argument("spec", metavar="BACKBONE|RUN")
@option(
    "--method",
    group="Quantization",
    type=click.Choice(["minmax", "entropy", "percentile", "dynamic"]),
    default="minmax",
    help="Calibration of activation ranges; dynamic: computed per image at run time.",
)
@option(
    "--images",
    group="Quantization",
    type=click.IntRange(min=1),
    default=256,
    help="Train images for calibration.",
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
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Keep the N layers with the largest quantization error in float32.",
)
@option(
    "--bias-correct",
    group="Quantization",
    is_flag=True,
    help="Correct biases for the mean error of weight rounding.",
)
@weights_option
@layer_option
@data_options
@size_options
@compute_options
@out_option
@json_option
def quantize(spec: str, out: Path, as_json: bool, **options: Any) -> None:
    """Quantize a network, or a run of `featkit fit` or `finetune`, to int8.

    Calibrates on train images. Prints the layers by quantization error, and the directory of the int8
    network, which is a backbone again: network.int8.onnx, network.json and quantize.json. Of a run,
    the whole classifier is written as model.onnx as well, and compared with the run on its test images.
    """
    from featkit.backbones.base import QuantizedNetwork
    from featkit.backbones.quantization import QuantizationConfig
    from featkit.backbones.saved import INT8_CARD, INT8_FILE
    from featkit.compression.quantize import QuantizationRequest
    from featkit.compression.quantize import quantize as make_int8
    from featkit.storage import publish, safe_name

    config = QuantizationConfig(options["method"], options["keep_fp32"], options["bias_correct"])
    request, run = _asked(spec, options)
    compute = make_compute(options)
    with tempfile.TemporaryDirectory() as scratch:
        file, whole = Path(scratch, INT8_FILE), Path(scratch, CLASSIFIER_FILE)
        made = make_int8(request, QuantizationRequest(config, options["keep_worst"], options["images"]), file, compute)
        directory = out / "quantize" / safe_name(made.description.name)
        facts = _facts(made, request.data, directory)
        files: dict[str, Any] = {INT8_FILE: file.read_bytes(), INT8_CARD: made.description.to_json()}
        if run:
            facts["classifier"] = _judge(run, QuantizedNetwork(file, made.description.sha256), whole, compute)
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

    if made.images < FEW and made.config.method != "dynamic":
        note(f"warning: calibrated on {made.images} images, which is few: give {FEW} train images or more")
    note(
        f"{made.config.method}, {made.images} train images{made.config.extras}: {size(bytes_now)}, "
        f"{100 * bytes_now / (4 * made.description.parameters):.0f} % of float32"
    )


def _facts(made: QuantizationResult, data: str, directory: Path) -> dict[str, Any]:
    layers = [{"layer": layer, "decibel": noise} for layer, noise in made.snr]
    scheme = {**asdict(made.config), "keep": list(made.config.keep)}
    how = {**scheme, "images": made.images, "data": data}
    return {"directory": str(directory), "name": made.description.name, **how, "layers": layers}


def _table(made: QuantizationResult) -> str:
    worst_first = sorted(made.snr, key=lambda each: each[1])
    rows = [[layer, f"{noise:.1f}", "float32" if made.config.keeps(layer) else ""] for layer, noise in worst_first]
    return table(["layer", "SNR alone in int8, dB", "kept"], rows, right=("SNR alone in int8, dB",))
