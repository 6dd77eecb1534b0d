"""Run networks quantized to int8 in OpenVINO, which is faster than ONNX Runtime on x86."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.base import Backbone, QuantizedNetwork
from featkit.backbones.devices import refuse_int8
from featkit.backbones.engines.base import Engine, ForwardPass
from featkit.backbones.engines.machine import engine_folder, machine_key
from featkit.backbones.engines.noise import smooth_noise
from featkit.backbones.engines.onnx import OnnxEngine, check_cpu, check_model
from featkit.errors import FeatkitError, SpecError, StorageError
from featkit.extras import require
from featkit.storage import available_cores, write_file

log = logging.getLogger("featkit")

_CHUNK = 8
"""Images in one forward pass. With AVX-512, 2 to 32 are equally fast, and 1 is 5 % slower."""

_MAX_DISTANCE = 0.15
"""Largest relative distance of features from those of ONNX Runtime that rounding can explain: 0.04
was measured for ResNets, and 0.36 and more where sums of products saturate."""


class OpenVinoEngine(Engine):
    """Run ``backbone.quantized`` in OpenVINO, on one core for each thread that calls it.

    Args:
        data: bytes of an ONNX file that refers to no other files.
        crop: height and width of its images in pixels.
        title: name of the network, for error messages.

    Raises:
        SpecError: if OpenVINO cannot run the network.
        MissingExtraError: if OpenVINO is not installed.
    """

    name = "openvino"

    def __init__(self, data: bytes, crop: tuple[int, int], title: str) -> None:
        runtime = require("openvino", "openvino")
        self._crop = crop
        self._title = title
        try:
            core = runtime.Core()
            # With the batch size left open, OpenVINO 2026.4 gives wrong features: compile for two
            # fixed sizes.
            self._run_chunk = _compile(core, data, (_CHUNK, *crop, 3))
            self._run_one = _compile(core, data, (1, *crop, 3))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise SpecError(
                f"OpenVINO cannot run {title} ({reason}): use --precision int8"
            ) from error

    @classmethod
    def open(
        cls, backbone: Backbone, *, precision: str, device: str, compiled: bool = False
    ) -> Self:
        """Open the quantized network: see ``Engine.open``.

        The first time on a machine, it is compared with ONNX Runtime.
        """
        check_cpu(device)
        data, title = backbone.read_quantized(), f"the int8 network of {backbone.name}"
        try:
            properties = check_model(data, title)
        except FeatkitError:
            raise
        except Exception as error:  # ONNX raises types of its own
            raise SpecError(f"{title} is no ONNX file: quantize it again") from error
        engine = cls(data, backbone.preprocess.crop, title)
        engine.properties = properties
        agreed = _agreement_file(backbone.quantized)
        if agreed is not None and agreed.is_file():
            return engine
        # Not remembered if the user chose to continue in spite of a difference.
        if engine.check_against(OnnxEngine(data, title, trusted=True)):
            _remember(agreed)
        return engine

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 ``(b, d)`` for uint8 ``(b, h, w, 3)``."""
        whole_chunks = len(pixels) - len(pixels) % _CHUNK
        features = [
            self._run_chunk(pixels[first : first + _CHUNK])
            for first in range(0, whole_chunks, _CHUNK)
        ]
        features += [
            self._run_one(pixels[row : row + 1]) for row in range(whole_chunks, len(pixels))
        ]
        return np.concatenate(features)

    def check_against(self, reference: ForwardPass) -> bool:
        """Return whether features of a few synthetic images agree with those of another engine.

        Raises:
            SpecError: if they differ by more than rounding can explain, as on x86 processors
                without VNNI where weights have 8 bits (``featkit.backbones.int8``).
        """
        pixels = smooth_noise(_CHUNK + 1, self._crop)
        expected = reference(pixels)
        distance = float(np.linalg.norm(self(pixels) - expected) / np.linalg.norm(expected))
        # Not "distance >= ...", which would accept NaN.
        agree = distance < _MAX_DISTANCE
        if not agree:
            refuse_int8(
                f"features of OpenVINO and ONNX Runtime differ for {self._title} "
                f"(relative distance {distance:.2f}): use --precision int8"
            )
        return agree


def _agreement_file(network: QuantizedNetwork | None) -> Path | None:
    """Return the file that exists if a network agreed with ONNX Runtime on this machine."""
    folder = engine_folder()
    if folder is None or network is None:
        return None
    return folder / "openvino" / machine_key([network.digest], ["openvino", "onnxruntime"])


def _remember(agreed: Path | None) -> None:
    """Create the file of an agreement; without it, the next comparison takes a second again."""
    if agreed is None:
        return
    try:
        write_file(agreed, "")
    except StorageError as error:
        log.info("the comparison with ONNX Runtime is not remembered: %s", error)


def _compile(
    core: Any, data: bytes, shape: tuple[int, ...]
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Return a function that runs a network on batches of one shape, from any thread."""
    model = core.read_model(data)
    model.reshape(shape)
    settings = {
        "NUM_STREAMS": available_cores(),
        "INFERENCE_NUM_THREADS": available_cores(),
        "ENABLE_CPU_PINNING": False,
        # Layers that stay in float32 (--keep-fp32) would otherwise run in bf16.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    network = core.compile_model(model, "CPU", settings)
    # A request must not be used by two threads at once.
    local = threading.local()

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not hasattr(local, "request"):
            local.request = network.create_infer_request()
        features: NDArray[np.float32] = local.request.infer([pixels])[0]
        return features

    return run
