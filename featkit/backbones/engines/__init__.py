"""Run the forward pass of a network. A framework is imported when its engine is opened."""

from __future__ import annotations

from featkit.backbones.base import Backbone
from featkit.backbones.devices import INT8, device_for, resolve_precision, warn_of_slow_bf16
from featkit.backbones.engines.base import Engine, ForwardPass

__all__ = ["Engine", "ForwardPass", "open_engine"]


def open_engine(
    backbone: Backbone, *, precision: str = "fp32", device: str = "cpu", compiled: bool = False
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

    Raises:
        SpecError: if the precision, the device or the layer is unknown or not available.
        WeightsError: if the weights are damaged or belong to another network.
        MissingExtraError: if the framework or the runtime of int8 is not installed.
    """
    if backbone.framework == "keras" and precision not in INT8:
        from featkit.backbones.engines.tensorflow import KerasEngine

        precision = "fp32" if precision == "auto" else precision
        return KerasEngine.open(backbone, precision=precision, device=device, compiled=compiled)
    precision = resolve_precision(precision, device)
    device = device_for([precision], device)
    if precision == "int8":
        from featkit.backbones.engines.onnx import OnnxEngine

        return OnnxEngine.open(backbone, precision=precision, device=device)
    if precision == "int8-openvino":
        from featkit.backbones.engines.openvino import OpenVinoEngine

        return OpenVinoEngine.open(backbone, precision=precision, device=device)
    if precision == "bf16":
        warn_of_slow_bf16(device)
    from featkit.backbones.engines.torch import TorchEngine

    return TorchEngine.open(backbone, precision=precision, device=device, compiled=compiled)
