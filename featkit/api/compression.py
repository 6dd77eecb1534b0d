"""Make networks smaller: pruning and quantization."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.api.options import (
    FEATURE_OPTIONS,
    OUT,
    PathLike,
    Strings,
    as_strings,
    log,
    make_compute,
    make_request,
    request_options,
)
from featkit.api.progress import training_callbacks
from featkit.api.training import training_compute
from featkit.arguments import FLAG, NAME, checked, integer, number, several, text
from featkit.errors import OptionsError, SpecError

if TYPE_CHECKING:
    from featkit.compression.quantize import QuantizationResult
    from featkit.embeddings.request import Request
    from featkit.runs.directory import SavedRun
    from featkit.storage import Content
    from featkit.studies.prune import PruningStep
    from featkit.studies.quantize import QuantizedRun
    from featkit.studies.recover import Recovery


@checked(
    **FEATURE_OPTIONS,
    sparsity=several(number(0, 1, below_high=True)),
    macs=number(0, 1),
    by=text("magnitude"),
    reconstruct=integer(0),
    calibrate=integer(0),
    epochs=integer(0),
    lr=number(0),
    distill=FLAG,
    head=text("svm:C=9"),
    name=NAME,
)
def prune(
    backbone: PathLike,
    *,
    sparsity: float | Sequence[float] = (),
    macs: float | None = None,
    by: str = "magnitude",
    reconstruct: int = 0,
    calibrate: int = 0,
    epochs: int = 0,
    lr: float = 0.005,
    distill: bool = False,
    head: str | None = None,
    weights: str | None = None,
    data: PathLike | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    perturb: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    name: str | None = None,
    cache: PathLike = "cache",
    out: PathLike = OUT,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> list[PruningStep]:
    """Prune a network: remove channels (``macs``), or set weights to zero (``sparsity``).

    Each pruned network is written to ``out/prune`` and can be used as a backbone.

    Args:
        backbone: spec of the network.
        sparsity: fraction of the weights set to zero by magnitude; several: each step continues
            from the one before.
        macs: fraction of the MACs that remains after removing channels.
        by: channel importance: ``magnitude`` or ``activation``.
        reconstruct: with ``macs``: train images on which the weights after removed channels are
            refitted; 0: off.
        calibrate: train images for BatchNorm recalibration; 0: off.
        epochs: epochs of fine-tuning after each step.
        lr: peak learning rate of the fine-tuning.
        distill: fine-tune with the unpruned network as teacher.
        head: head with which the network is evaluated after each step; None for no evaluation.
        name: name of the pruned network for tables and figures, to which the sparsity is added if
            there are several steps; None for a composed one.
        data, split, limit, intensity_range, group, allow_group_leak, seed, augment, views, perturb,
            weights, resize, crop, cache, device, batch_size, workers, engine, compile, on_error,
            progress: as for ``fit``.
        out: folder for results.

    Returns:
        One step per pruned network, with its directory; with ``head``, the unpruned network comes
        first.

    Raises:
        SpecError: if an option is not valid, or needs images and ``data`` is not given.
    """
    options = locals()
    from featkit.compression.prune import PruningConfig
    from featkit.reports.figures import sparsity_figures
    from featkit.storage import csv_text, publish, safe_name
    from featkit.studies.prune import prune_network, step_rows

    _check_pruning_options(options)
    request = make_request(options)
    config = PruningConfig(
        sparsity=(sparsity,) if isinstance(sparsity, float | int) else tuple(sparsity),
        macs=macs,
        by=by,
        reconstruct=reconstruct,
        calibrate=calibrate,
        seed=request.seed,
    )
    steps = []
    with _recovery(request, options) as recovery:
        for step in prune_network(
            request,
            config,
            Path(out),
            cache=Path(cache),
            compute=make_compute(options),
            recovery=recovery,
            head=head,
            name=name or "",
            on_message=log.info,
        ):
            steps.append(step)
            _log_step(step, head)
    if head:
        rows = step_rows(steps)
        title = f"{head} on {Path(request.data).name}, n = {rows[0]['n']}"
        folder = Path(out) / "prune" / safe_name(f"{steps[-1].network}-steps")
        files: dict[str, Content] = {
            "steps.csv": csv_text(rows),
            **sparsity_figures({"pruned": rows}, title),
        }
        publish(folder, files)
        log.info("%s: %s", ", ".join(files), folder)
    return steps


def _check_pruning_options(options: Mapping[str, Any]) -> None:
    """Raise an OptionsError where an option needs another one."""
    by_activation = options["macs"] and options["by"] == "activation"
    uses_images = any(options[name] for name in ("reconstruct", "calibrate", "epochs", "head"))
    if options["data"] is None and (uses_images or by_activation):
        names = "--reconstruct, --calibrate, --epochs, --head and --by activation"
        raise OptionsError(f"{names} need images: give --data")
    if options["distill"] and not options["epochs"]:
        raise OptionsError("--distill needs fine-tuning: give --epochs")


@contextmanager
def _recovery(request: Request, options: Mapping[str, Any]) -> Iterator[Recovery | None]:
    """Prepare the fine-tuning after each pruning step; None without epochs."""
    if not options["epochs"]:
        yield None
        return
    from featkit.studies.recover import RecoveryConfig, make_recovery

    config = RecoveryConfig(options["epochs"], options["lr"], options["distill"])
    compute = training_compute(options)
    with training_callbacks(config.epochs, False, None) as callbacks:
        yield make_recovery(request, config, Path(options["cache"]), compute, callbacks)


def _log_step(step: PruningStep, head: str | None) -> None:
    """Log size and accuracy of a pruned network."""
    if step.facts:
        facts = step.facts
        log.info(
            "%s: %s parameters, %.1f%% of the weights zero, %.2f of %.2f GMACs",
            step.label,
            f"{facts['parameters']:,}",
            100 * facts["sparsity"],
            facts["macs"] / 1e9,
            facts["macs_before"] / 1e9,
        )
    if step.report:
        low, high = step.report.interval95
        accuracy = (
            f"top-1 {100 * step.report.top1:.1f}% (95% CI {100 * low:.1f} to {100 * high:.1f})"
        )
        log.info("%s: %s, n = %d", head, accuracy, step.report.n)
    if step.difference:
        low, high = step.difference.interval95
        points = 100 * step.difference.difference
        log.info(
            "difference to unpruned: %+.1f points (95%% CI %+.1f to %+.1f)",
            points,
            100 * low,
            100 * high,
        )


@dataclass(frozen=True)
class QuantizedModel:
    """An int8 network on disk.

    Attributes:
        path: its directory, which can be used as a backbone.
        result: calibration, and the quantization error of each layer.
        size: bytes of the network file.
        run: for a run: accuracy of the int8 classifier and of the run; None for a backbone.
        facts: content of ``quantize.json``.
    """

    path: Path
    result: QuantizationResult
    size: int
    run: QuantizedRun | None
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON can hold them."""
        return dict(self.facts)


CLASSIFIER_FILE = "model.onnx"


@checked(
    **FEATURE_OPTIONS,
    method=text("minmax"),
    images=integer(1),
    keep_fp32=several(text("layer4")),
    keep_worst=integer(0),
    weight_bits=integer(7, 8),
    bias_correct=FLAG,
    name=NAME,
)
def quantize(
    backbone: PathLike,
    *,
    method: str = "minmax",
    images: int = 256,
    keep_fp32: Strings = (),
    keep_worst: int = 0,
    weight_bits: int = 7,
    bias_correct: bool = False,
    weights: str | None = None,
    layer: str | None = None,
    data: PathLike | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    perturb: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    name: str | None = None,
    out: PathLike = OUT,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> QuantizedModel:
    """Quantize a network, or a run of ``fit`` or ``finetune``, to int8.

    The int8 network is written to ``out/quantize`` and can be used as a backbone. Of a run, the
    whole classifier is also written, as ``model.onnx``, and compared with the run; without
    ``data`` the run's own images are used.

    Args:
        backbone: spec of a network, or a run directory.
        method: calibration of activation ranges: ``minmax``, ``entropy``, ``percentile`` or
            ``dynamic``.
        images: train images for calibration.
        keep_fp32: layers or blocks that stay in float32.
        keep_worst: number of layers with the largest quantization error that stay in float32.
        weight_bits: 7, or 8 for processors whose int8 sums do not saturate: ARM, and x86 with VNNI.
        bias_correct: correct biases for the mean error of weight rounding.
        name: name of the int8 network for tables and figures; None for a composed one.
        data, split, limit, intensity_range, group, allow_group_leak, seed, augment, views, perturb,
            weights, layer, resize, crop, device, batch_size, workers, engine, compile, on_error,
            progress: as for ``fit``.
        out: folder for results.

    Returns:
        The directory of the int8 network, the quantization error of each layer, and for a run the
        accuracy of the int8 classifier and of the run.

    Raises:
        SpecError: if the network is quantized already, a layer or method is unknown, or its
            features differ too much from float32.
        DataError: if there are no train images.
    """
    options = locals()
    from featkit.backbones.base import QuantizedNetwork
    from featkit.backbones.quantization import QuantizationConfig
    from featkit.backbones.saved import INT8_CARD, INT8_FILE
    from featkit.compression.quantize import FEW, QuantizationRequest
    from featkit.compression.quantize import quantize as quantize_network
    from featkit.runs.names import NAME_FIELD, recorded_name
    from featkit.storage import publish, safe_name
    from featkit.studies.quantize import quantize_run, quantized_name

    config = QuantizationConfig(method, as_strings(keep_fp32), bias_correct, weight_bits)
    request, run = _network_or_run(options)
    compute = make_compute(options)
    with tempfile.TemporaryDirectory() as scratch:
        file, classifier = Path(scratch, INT8_FILE), Path(scratch, CLASSIFIER_FILE)
        quantization = QuantizationRequest(config, keep_worst, images)
        result = quantize_network(request, quantization, file, compute)
        directory = Path(out) / "quantize" / safe_name(result.description.name)
        facts = _quantization_facts(result, request.data, directory)
        # A repeated quantization keeps the name.
        shown = name or recorded_name(directory) or quantized_name(request, result.config, run)
        facts[NAME_FIELD] = shown
        content = file.read_bytes()
        files: dict[str, Any] = {INT8_FILE: content, INT8_CARD: result.description.to_json()}
        compared = None
        if run:
            network = QuantizedNetwork(file, result.description.sha256)
            compared = quantize_run(run, network, classifier, compute)
            facts["classifier"] = {"file": CLASSIFIER_FILE, **compared.to_dict()}
            files[CLASSIFIER_FILE] = classifier.read_bytes()
        files["quantize.json"] = json.dumps(facts, indent=2)
        publish(directory, files, own=[CLASSIFIER_FILE])
    if result.images < FEW and method != "dynamic":
        log.warning("calibrated on only %d images: use %d or more", result.images, FEW)
    return QuantizedModel(directory, result, len(content), compared, facts)


def _network_or_run(options: Mapping[str, Any]) -> tuple[Request, SavedRun | None]:
    """Return the network to quantize, and the run it belongs to if the run's own images are used.

    Raises:
        SpecError: if options change the images or the network of a run.
        DataError: if the images of a run are no longer where they were.
    """
    from featkit.runs.card import is_run
    from featkit.runs.directory import load_run as load
    from featkit.storage import user_path

    given = {name: value for name, value in request_options(options).items() if value is not None}
    spec = given.pop("backbone")
    folder = user_path(spec)
    if "data" in given or not is_run(folder):
        return make_request(options), None
    if given:
        raise SpecError(
            f"{spec} is a run with its own images and network: leave out --{min(given)}, "
            "or give --data"
        )
    run = load(folder, multilabel=True)
    run.check_images()
    return replace(run.request, augment=None), run


def _quantization_facts(result: QuantizationResult, data: str, directory: Path) -> dict[str, Any]:
    layers = [{"layer": layer, "decibel": noise} for layer, noise in result.snr]
    return {
        "directory": str(directory),
        "name": result.description.name,
        **asdict(result.config),
        "keep": list(result.config.keep),
        "images": result.images,
        "record": asdict(result.record),
        "data": data,
        "layers": layers,
    }
