"""Export torch modules to ONNX files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import nn

from featkit.backbones.base import Backbone
from featkit.backbones.batchnorm import fold_batchnorm
from featkit.errors import SpecError
from featkit.extras import require


class NetworkOnPixels(nn.Module):
    """Normalisation and a network with folded BatchNorms: uint8 ``(b, h, w, 3)`` to ``(b, d)``."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.network = fold_batchnorm(backbone.build())
        self.preprocess = backbone.preprocess

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the input of the network, ``(b, 3, h, w)``."""
        batch: torch.Tensor = self.preprocess.normalise(
            pixels.permute(0, 3, 1, 2).to(torch.float32)
        )
        return batch

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return features ``(b, d)`` of uint8 ``(b, h, w, 3)``."""
        features: torch.Tensor = self.network(self.prepare(pixels))
        return features


def write_onnx(
    module: nn.Module, example: torch.Tensor, path: Path, *, names: tuple[str, str], title: str
) -> None:
    """Export a module to one ONNX file, for batches of any size.

    Args:
        module: in eval mode, from one tensor to one tensor.
        example: an input with at least two rows.
        path: the new file.
        names: names of the input and the output in the file.
        title: name of the network, for the error message.

    Raises:
        SpecError: if the module cannot be expressed in ONNX.
        MissingExtraError: if ONNX or ONNX Script is not installed.
    """
    require("onnx", "int8")
    require("onnxscript", "int8")
    try:
        with silence():
            torch.onnx.export(
                module,
                (example,),
                path,
                input_names=[names[0]],
                output_names=[names[1]],
                dynamic_shapes=({0: torch.export.Dim("images")},),
                # Weights inside the file: featkit refuses files that refer to others.
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        raise SpecError(
            f"{title} cannot be exported to ONNX ({reason}): use another backbone or --precision"
        ) from error


@contextmanager
def silence() -> Iterator[None]:
    """Suppress warnings, log messages and output of the exporter and the quantizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with redirect_stdout(StringIO()):
                yield
        finally:
            logging.disable(before)
