"""Networks in eight bits, run by OpenVINO, which is faster than ONNX Runtime on processors of Intel and AMD."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.onnx_files import need
from featkit.errors import SpecError
from featkit.storage import available_cores

if TYPE_CHECKING:
    from featkit.backbones.engines.torch import Engine

_CHUNK = 8
"""Images in one pass. With AVX-512, 2 to 32 are equally fast, one alone is 5 % slower."""

_FAR = 0.3
"""Distance of vectors from those of ONNX Runtime, relative to their length, that rounding does not explain."""


def open_openvino(data: bytes, crop: tuple[int, int], title: str, reference: Engine) -> Engine:
    """Return what runs an int8 network, on one core for each thread that calls it.

    Args:
        data: of the ONNX file; it takes nothing from other files.
        crop: height and width of its images in pixels.
        title: what it is, for the error.
        reference: the same network in ONNX Runtime; both are shown a few images first.

    Raises:
        SpecError: if OpenVINO cannot run the network, or gives other vectors.
        MissingExtraError: if OpenVINO is not installed.
    """
    runtime = need("openvino", extra="openvino")
    try:
        core = runtime.Core()
        some, one = (_compiled(core, data, (size, *crop, 3)) for size in (_CHUNK, 1))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise SpecError(f"OpenVINO cannot run {title} ({reason}): use --precision int8") from error

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        whole = len(pixels) - len(pixels) % _CHUNK
        chunks = [some(pixels[first : first + _CHUNK]) for first in range(0, whole, _CHUNK)]
        return np.concatenate([*chunks, *(one(pixels[row : row + 1]) for row in range(whole, len(pixels)))])

    pixels = np.random.default_rng(0).integers(0, 256, (_CHUNK + 1, *crop, 3), dtype=np.uint8)
    expected = reference(pixels)
    far = float(np.linalg.norm(run(pixels) - expected) / np.linalg.norm(expected))
    if not far < _FAR:
        raise SpecError(f"OpenVINO gives other vectors than ONNX Runtime for {title} ({far:.2f}): use --precision int8")
    return run


def _compiled(core: Any, data: bytes, shape: tuple[int, ...]) -> Engine:
    """Return a network for batches of one shape: with the number left open, OpenVINO 2026.4 gives wrong vectors."""
    model = core.read_model(data)
    model.reshape(shape)
    streams = {"NUM_STREAMS": available_cores(), "INFERENCE_NUM_THREADS": available_cores(), "ENABLE_CPU_PINNING": False}
    # What --keep-fp32 leaves in float32 would otherwise run in bf16.
    network = core.compile_model(model, "CPU", {**streams, "INFERENCE_PRECISION_HINT": "f32"})
    own = threading.local()

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not hasattr(own, "request"):
            own.request = network.create_infer_request()
        vectors: NDArray[np.float32] = own.request.infer([pixels])[0]
        return vectors

    return run
