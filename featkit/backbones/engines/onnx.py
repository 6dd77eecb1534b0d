"""Run networks in ONNX Runtime: those quantized to int8, and converted ones in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.base import Backbone
from featkit.backbones.engines.base import Engine
from featkit.errors import FeatkitError, SpecError, WeightsError
from featkit.extras import require


class OnnxEngine(Engine):
    """Run an ONNX file in ONNX Runtime.

    Args:
        data: bytes of an ONNX file from uint8 ``pixels`` to float32 features.
        title: name of the network, for the error message.
        optimized, threads, trusted: see ``open_session``.

    Raises:
        SpecError: if ONNX Runtime cannot run the file.
        WeightsError, MissingExtraError: as ``open_session``.
    """

    name = "onnxruntime"

    def __init__(
        self,
        data: bytes,
        title: str,
        *,
        optimized: bool = True,
        threads: int = 1,
        trusted: bool = False,
    ) -> None:
        try:
            self._session = open_session(
                data, title, optimized=optimized, threads=threads, trusted=trusted
            )
        except FeatkitError:
            raise
        except Exception as error:  # ONNX and ONNX Runtime raise types of their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SpecError(
                f"ONNX Runtime cannot run {title} ({reason}): use another version of onnxruntime, "
                "or --precision fp32 --engine torch"
            ) from error
        self.properties = self._session.get_modelmeta().custom_metadata_map

    @classmethod
    def open(
        cls, backbone: Backbone, *, precision: str, device: str, compiled: bool = False
    ) -> Self:
        """Open the quantized network: see ``Engine.open``."""
        check_cpu(device)
        return cls(backbone.read_quantized(), f"the int8 network of {backbone.name}")

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 ``(b, d)`` for uint8 ``(b, h, w, 3)``."""
        features: NDArray[np.float32] = self._session.run(None, {"pixels": pixels})[0]
        return features


def check_cpu(device: str) -> None:
    """Raise SpecError if the device of an int8 network is not a CPU."""
    if device != "cpu":
        raise SpecError(
            f"int8 runs on a CPU, not on {device}: use --device cpu or another --precision"
        )


def open_session(
    data: bytes, title: str, *, optimized: bool = True, threads: int = 1, trusted: bool = False
) -> Any:
    """Open an ONNX file in ONNX Runtime, by default on one thread: featkit uses one for each core.

    Sums of int8 products are exact on every processor, also where ONNX Runtime by default lets
    them saturate (x86 without VNNI, weights of 8 bits): ``featkit.backbones.int8``.

    Args:
        data: bytes of the file, from any source.
        title: name of the network, for the error message.
        optimized: whether ONNX Runtime optimises the graph; without, quantized layers are computed
            in float32 on rounded values.
        threads: threads of one forward pass.
        trusted: whether the file was made here: it is not checked, and ONNX not imported.

    Raises:
        WeightsError: if the file refers to weights in other files, or contains loops.
        MissingExtraError: if ONNX or ONNX Runtime is not installed.
    """
    runtime = require("onnxruntime", "int8")
    if not trusted:
        check_model(data, title)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimized:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def check_model(data: bytes, title: str) -> dict[str, str]:
    """Check an ONNX file from any source without running it; return its metadata.

    Raises:
        WeightsError: if the file refers to weights in other files, or contains loops.
        MissingExtraError: if ONNX is not installed.
    """
    model = require("onnx", "int8").load_model_from_string(data)
    # A file from elsewhere could read any file of this machine through its external tensors.
    for location in _external_locations(model):
        raise WeightsError(
            f"{title} refers to another file ({location!r}) and is refused: create it again"
        )
    # It could also run for ever: featkit's own networks need neither loops nor functions.
    for name in _control_flow(model):
        raise WeightsError(
            f"{title} contains {name}, which could run for ever, and is refused: create it again"
        )
    return {entry.key: entry.value for entry in model.metadata_props}


def _external_locations(message: Any) -> Iterator[str]:
    """Yield the file name of every external tensor at any depth of a protobuf message."""
    for field, value in message.ListFields():
        if field.name == "external_data":
            locations = [entry.value for entry in value if entry.key == "location"]
            yield from locations or ["unnamed"]
        elif field.message_type is not None:
            is_single = hasattr(value, "ListFields")
            for part in [value] if is_single else value:
                yield from _external_locations(part)


def _control_flow(model: Any) -> Iterator[str]:
    """Yield the names of functions, and of operators that run other graphs."""
    yield from (f"the function {function.name!r}" for function in model.functions)
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            yield f"the operator {node.op_type!r}"
