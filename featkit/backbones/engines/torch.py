"""Run networks in torch: float32 or bfloat16, compiled or not, on CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featkit.backbones.base import Backbone, Preprocess
from featkit.backbones.batchnorm import fold_batchnorm
from featkit.backbones.engines.base import Engine
from featkit.errors import SpecError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchEngine(Engine):
    """Run a torch module.

    Args:
        module: from normalised float32 ``(b, 3, h, w)`` to ``(b, d)``, on ``device``.
        preprocess: its normalisation.
        device: where it runs.
    """

    name = "torch"

    def __init__(
        self,
        module: Callable[[torch.Tensor], torch.Tensor],
        preprocess: Preprocess,
        device: torch.device,
    ) -> None:
        self._module = module
        self._preprocess = preprocess
        self._device = device

    @classmethod
    def open(
        cls, backbone: Backbone, *, precision: str, device: str, compiled: bool = False
    ) -> Self:
        """Build the network, fold its BatchNorms and convert it: see ``Engine.open``."""
        module = _convert(fold_batchnorm(backbone.build()), DTYPES[precision])
        module = module.to(device).to(memory_format=torch.channels_last)
        return cls(
            _compile(module) if compiled else module, backbone.preprocess, torch.device(device)
        )

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 ``(b, d)`` for uint8 ``(b, h, w, 3)``."""
        # Pixels travel to the device as bytes, and (b, h, w, 3) permuted to (b, 3, h, w) has the
        # channels_last memory format without another copy.
        host = torch.tensor(pixels, pin_memory=self._device.type == "cuda")
        batch = host.to(self._device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32)
        # cuDNN would otherwise round the inputs of convolutions to the ten bits of TF32.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            output = self._module(self._preprocess.normalise(batch))
        features: NDArray[np.float32] = output.float().cpu().numpy()
        return features


class _Float32Convolution(nn.Module):
    """A first convolution that stays in float32 while the rest of the network has another type.

    Every later layer inherits its rounding errors, and it is cheap: an image has only three
        channels.
    """

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.convolution = convolution
        self.dtype = dtype

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.convolution(batch).to(self.dtype)
        return features


class _CastInput(nn.Module):
    """A network in another type that takes float32 input."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network(batch.to(self.dtype))
        return features


def _convert(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a module to a type; the result takes float32 input ``(b, 3, h, w)``."""
    if dtype == torch.float32:
        return module
    convolutions = [
        (name, part) for name, part in module.named_modules() if isinstance(part, nn.Conv2d)
    ]
    name, first = convolutions[0] if convolutions else ("", None)
    if first is None or not name or first.in_channels != 3:
        return _CastInput(module.to(dtype), dtype)
    # The first convolution is taken out while the other modules are converted.
    module.set_submodule(name, nn.Identity())
    module.to(dtype).set_submodule(name, _Float32Convolution(first, dtype))
    return module


def _compile(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the module compiled by torch.

    It is compiled for one batch size: smaller batches are padded, because each new size would be
    compiled again.

    Raises:
        SpecError: at the first batch, if there is no compiler.
    """
    forward = torch.compile(module, options={"freezing": True})
    size = 0

    def run(batch: torch.Tensor) -> torch.Tensor:
        nonlocal size
        size = max(size, len(batch))
        padded = torch.cat([batch, batch[:1].expand(size - len(batch), -1, -1, -1)])
        try:
            features: torch.Tensor = forward(padded)[: len(batch)]
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise SpecError(
                f"torch cannot compile this network here ({reason}): remove --compile"
            ) from error
        return features

    return run
