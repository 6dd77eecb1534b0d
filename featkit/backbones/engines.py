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
from featkit.backbones.layers import Cut
from featkit.backbones.precision import resolve_precision
from featkit.errors import SpecError
from featkit.registry import unknown

Engine = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEVICES = ("auto", "cpu", "cuda", "mps")


def open_engine(backbone: Backbone, *, precision: str = "fp32", device: str = "cpu") -> Engine:
    """Build a backbone's network and return what runs it.

    Args:
        backbone: the network, its weights and its preprocessing.
        precision: ``fp32``, exact on every device, or ``bf16``: weights and activations in bfloat16.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Returns:
        A function from uint8 ``(b, h, w, 3)``, as ``backbone.preprocess`` gives them, to float32 ``(b, d)``.

    Raises:
        SpecError: if the precision, the device or the layer is unknown or not to be had.
        WeightsError: if the weights are damaged or of another network.
    """
    place, dtype = torch.device(pick_device(device)), DTYPES[resolve_precision(precision, device)]
    module = folded(backbone.build()).to(place, dtype).to(memory_format=torch.channels_last)

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        # cuDNN would otherwise round the inputs of convolutions to TF32's ten bits.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            # Bytes (b, h, w, 3) seen as (b, 3, h, w) are channels_last already.
            batch = torch.tensor(pixels, device=place).permute(0, 3, 1, 2).to(torch.float32)
            vectors: NDArray[np.float32] = module(backbone.preprocess.normalise(batch).to(dtype)).float().cpu().numpy()
        return vectors

    return run


def folded(module: nn.Module) -> nn.Module:
    """Return the module with each BatchNorm folded into the convolution before it, where it can be traced.

    The same function of its input, up to rounding; a network that torch.fx cannot trace runs as it is.
    """
    if isinstance(module, Cut):
        return Cut(folded(module.features), module.layer, module.pool)
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
