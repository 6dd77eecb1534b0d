"""Run the forward pass of a network. A framework is imported when its engine is opened."""

from __future__ import annotations

from featkit.backbones.base import Backbone
from featkit.backbones.devices import INT8, device_for, resolve_precision, warn_of_slow_bf16
from featkit.backbones.engines.base import Engine, ForwardPass, Workload
from featkit.errors import SpecError
from featkit.registry import unknown

__all__ = ["ENGINES", "Engine", "ForwardPass", "Workload", "open_engine"]

ENGINES = ("auto", "torch", "onnxruntime")

_ONE_IMAGE = Workload()


def open_engine(
    backbone: Backbone,
    *,
    precision: str = "fp32",
    device: str = "cpu",
    compiled: bool = False,
    engine: str = "torch",
    workload: Workload = _ONE_IMAGE,
) -> Engine:
    """Open the engine that runs a backbone at a precision.

    Args:
        backbone: the network, its weights and its preprocessing.
        precision: ``fp32``: torch in float32, on every device; ``bf16``: torch with weights and
            activations in bfloat16 except for the first convolution; ``int8``, ``int8-openvino``:
            ``backbone.quantized`` in ONNX Runtime or in OpenVINO, on a CPU; ``auto``: bf16 where
            the device has it in hardware, else fp32. Networks of Keras run in float32 in Keras, and
            in int8 as all others.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        compiled: whether torch compiles the network first; ignored for int8.
        engine: of float32 networks of torch on a CPU: ``torch``, ``onnxruntime``, or ``auto`` for
            the faster one, see ``engines.choice``; ignored for int8.
        workload: what the engine is opened for, if ``engine`` is not ``torch``.

    Raises:
        SpecError: if the precision, the device, the engine or the layer is unknown or not
            available.
        WeightsError: if the weights are damaged or belong to another network.
        MissingExtraError: if the framework or the runtime of int8 is not installed.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, list(ENGINES))
    if backbone.framework == "keras" and precision not in INT8:
        from featkit.backbones.engines.tensorflow import KerasEngine

        precision = "fp32" if precision == "auto" else precision
        _refuse_onnxruntime(engine, "networks of Keras")
        return KerasEngine.open(backbone, precision=precision, device=device, compiled=compiled)
    precision = resolve_precision(precision, device)
    device = device_for([precision], device)
    if precision == "int8":
        from featkit.backbones.engines.onnx import OnnxEngine

        return OnnxEngine.open(backbone, precision=precision, device=device)
    if precision == "int8-openvino":
        from featkit.backbones.engines.openvino import OpenVinoEngine

        return OpenVinoEngine.open(backbone, precision=precision, device=device)
    if precision == "fp32" and device == "cpu" and not compiled and engine != "torch":
        from featkit.backbones.engines.choice import open_fastest, open_onnxruntime

        chosen = open_fastest if engine == "auto" else open_onnxruntime
        return chosen(backbone, workload)
    _refuse_onnxruntime(engine, "compiled networks" if compiled else f"{precision} on {device}")
    if precision == "bf16":
        warn_of_slow_bf16(device)
    from featkit.backbones.engines.torch import TorchEngine

    return TorchEngine.open(backbone, precision=precision, device=device, compiled=compiled)


def _refuse_onnxruntime(engine: str, what: str) -> None:
    """Raise SpecError if ONNX Runtime was asked for to run something that it does not run."""
    if engine == "onnxruntime":
        raise SpecError(
            f"--engine onnxruntime runs float32 networks on a CPU, not {what}: "
            "use --engine auto, or --precision fp32 --device cpu"
        )
