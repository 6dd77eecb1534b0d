"""How a forward pass runs: the seam at which other arithmetic comes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx.experimental.optimization import fuse

from featkit.backbones.base import Backbone
from featkit.backbones.layers import FeatureExtractor
from featkit.backbones.precision import INT8, resolve_precision
from featkit.errors import SpecError
from featkit.registry import unknown

Engine = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEVICES = ("auto", "cpu", "cuda", "mps")


def open_engine(backbone: Backbone, *, precision: str = "fp32", device: str = "cpu", compiled: bool = False) -> Engine:
    """Build a backbone's network and return what runs it.

    Args:
        backbone: the network, its weights and its preprocessing.
        precision: ``fp32``, exact on every device; ``bf16``: weights and activations in bfloat16, but for the first
            convolution; ``int8``, ``int8-openvino``: what ``backbone.quantized`` holds, on a CPU.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        compiled: whether torch compiles the network first; not for int8.

    Returns:
        A function from uint8 ``(b, h, w, 3)``, as ``backbone.preprocess`` gives them, to float32 ``(b, d)``.

    Raises:
        SpecError: if the precision, the device or the layer is unknown or not to be had.
        WeightsError: if the weights are damaged or of another network.
        MissingExtraError: if int8 is asked for without what runs it.
    """
    precision = resolve_precision(precision, device)
    if precision in INT8:
        from featkit.backbones.int8 import open_quantized

        return open_quantized(backbone, precision, pick_device(device))
    place = torch.device(pick_device(device))
    module = _at(fold_batchnorm(backbone.build()), DTYPES[precision]).to(place).to(memory_format=torch.channels_last)
    forward = _compiled(module) if compiled else module

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        # cuDNN would otherwise round the inputs of convolutions to TF32's ten bits.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            batch = backbone.preprocess.normalise(_images(pixels, place))
            vectors: NDArray[np.float32] = forward(batch).float().cpu().numpy()
        return vectors

    return run


def _images(pixels: NDArray[np.uint8], place: torch.device) -> torch.Tensor:
    """Bring bytes ``(b, h, w, 3)`` to the device as float32 ``(b, 3, h, w)``; they are channels_last already."""
    host = torch.tensor(pixels, pin_memory=place.type == "cuda")
    return host.to(place, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32)


class _FullFirst(nn.Module):
    """A first convolution that stays in float32, before a network in another type.

    What it rounds, every later layer inherits. It costs little: an image has only three channels.
    """

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.convolution = convolution
        self.dtype = dtype

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.convolution(batch).to(self.dtype)
        return features


class _Cast(nn.Module):
    """A network in another type, on float32 input."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.network(batch.to(self.dtype))
        return vectors


def _at(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the module in a type, on float32 input ``(b, 3, h, w)``."""
    if dtype == torch.float32:
        return module
    convolutions = ((name, part) for name, part in module.named_modules() if isinstance(part, nn.Conv2d))
    name, first = next(convolutions, ("", None))
    if first is None or not name or first.in_channels != 3:
        return _Cast(module.to(dtype), dtype)
    module.set_submodule(name, nn.Identity())
    module.to(dtype).set_submodule(name, _FullFirst(first, dtype))
    return module


def _compiled(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the module compiled by torch, for batches of one size: smaller ones are filled up.

    Raises:
        SpecError: at the first batch, if there is no compiler.
    """
    forward = torch.compile(module, options={"freezing": True})
    size = 0

    def run(batch: torch.Tensor) -> torch.Tensor:
        nonlocal size
        size = max(size, len(batch))
        filled = torch.cat([batch, batch[:1].expand(size - len(batch), -1, -1, -1)])
        try:
            vectors: torch.Tensor = forward(filled)[: len(batch)]
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise SpecError(f"torch cannot compile this network here ({reason}): go on without --compile") from error
        return vectors

    return run


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """Return the module with each BatchNorm folded into the convolution before it, where it can be traced.

    The same function of its input, up to rounding; a network that torch.fx cannot trace runs as it is.
    """
    if isinstance(module, FeatureExtractor):
        return FeatureExtractor(fold_batchnorm(module.features), module.layer, module.pool)
    try:
        folded_module: nn.Module = fuse(module).eval().requires_grad_(False)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, torch.fx.proxy.TraceError):
        return module
    return folded_module


@contextmanager
def one_thread_each() -> Iterator[Callable[[], None]]:
    """Give a function that has networks in the calling thread use one core, since other threads use the others.

    It is called at the start of each thread; after the block torch uses as many cores as before.
    """
    before = torch.get_num_threads()
    try:
        yield lambda: torch.set_num_threads(1)
    finally:
        torch.set_num_threads(before)


def pick_device(device: str = "auto") -> str:
    """Return the device to use: ``cuda``, ``mps`` or ``cpu``; ``auto`` takes the first that is there.

    Raises:
        SpecError: if the name is unknown, or the device is not there.
    """
    if device not in DEVICES:
        raise unknown("device", device, list(DEVICES))
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name in there if there[name])
    if not there[device]:
        raise SpecError(f"device {device} is not there: use --device {pick_device('auto')}, or auto")
    return device
