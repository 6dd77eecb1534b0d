"""Networks in eight bits: exported to ONNX, quantized on a few images, run by ONNX Runtime."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featkit.backbones.base import Backbone
from featkit.errors import MissingExtraError, SpecError, WeightsError

if TYPE_CHECKING:
    from featkit.backbones.engines import Engine

_BATCH = 16


def open_quantized(backbone: Backbone, device: str) -> Engine:
    """Return what runs ``backbone.quantized``: see ``open_engine``.

    The file is read into memory and checked against its digest; it cannot name other files.

    Raises:
        SpecError: if the network was not quantized, or the device is not a CPU.
        WeightsError: if the file is gone or another one.
        MissingExtraError: if ONNX Runtime is not installed.
    """
    if device != "cpu":
        raise SpecError(f"int8 runs on a CPU, not on {device}: use --device cpu or another --precision")
    if backbone.quantized is None:
        raise SpecError(f"{backbone.name} has not been quantized: int8 needs train images to be calibrated on")
    session = _session(_checked(backbone.quantized.path, backbone.quantized.digest))

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = session.run(None, {"pixels": pixels})[0]
        return vectors

    return run


def quantize(backbone: Backbone, pixels: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """Write a backbone in eight bits: weights per output channel, activations by the least and greatest value seen.

    Static quantization (Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-
    only inference", CVPR 2018), by ONNX Runtime, of the network with its BatchNorm folded in.

    Args:
        backbone: the network, its weights and its preprocessing.
        pixels: images to calibrate on, uint8 ``(h, w, 3)`` as ``backbone.preprocess`` gives them.
        path: the ONNX file, from uint8 ``(b, h, w, 3)`` to float32 ``(b, d)``.

    Raises:
        SpecError: if the network cannot be exported to ONNX.
        MissingExtraError: if ONNX, ONNX Script or ONNX Runtime is not installed.
    """
    tools = _need("onnxruntime.quantization")
    _need("onnxscript")
    batches = [np.stack(pixels[first : first + _BATCH]) for first in range(0, len(pixels), _BATCH)]
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        exported = Path(scratch, "float.onnx")
        _export(backbone, exported)
        tools.quantize_static(
            exported,
            path,
            _reader(tools, batches),
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
        )


class _FromBytes(nn.Module):
    """A network with its normalisation before it, on uint8 ``(b, h, w, 3)``."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        from featkit.backbones.engines import folded

        self.network = folded(backbone.build())
        self.normalise = backbone.preprocess.normalise

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.network(self.normalise(pixels.permute(0, 3, 1, 2).to(torch.float32)))
        return vectors


def _export(backbone: Backbone, path: Path) -> None:
    size = (2, *backbone.preprocess.crop, 3)
    try:
        torch.onnx.export(
            _FromBytes(backbone).eval(),
            (torch.zeros(size, dtype=torch.uint8),),
            path,
            input_names=["pixels"],
            output_names=["vectors"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        raise SpecError(f"{backbone.name} cannot be exported to ONNX ({reason}): use another --precision") from error


def _reader(tools: ModuleType, batches: Sequence[NDArray[np.uint8]]) -> Any:
    """Return batches in the form that ONNX Runtime's calibration asks for."""

    class Reader(tools.CalibrationDataReader):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            self.remaining: Iterator[NDArray[np.uint8]] = iter(batches)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self.remaining, None)
            return None if batch is None else {"pixels": batch}

    return Reader()


def _session(data: bytes) -> Any:
    """Open a network that runs on the thread that calls it: featkit gives every core a batch of its own."""
    runtime = _need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _checked(path: Path, digest: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): extract with --precision int8 again") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise WeightsError(f"{path} is not the int8 network {digest[:12]} that made the vectors: extract again")
    return data


def _need(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(name.partition(".")[0], "int8") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter and the quantizer say about themselves from the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
