"""ONNX files: written by torch, run by ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from featkit.errors import MissingExtraError, SpecError, WeightsError


def write_onnx(module: nn.Module, example: torch.Tensor, path: Path, *, names: tuple[str, str], title: str) -> None:
    """Write what a module computes, for batches of any size, into one file.

    Args:
        module: in eval mode, a tensor to a tensor.
        example: an input of two rows or more.
        path: the file.
        names: those of the input and the output.
        title: of the network, for the error.

    Raises:
        SpecError: if the module cannot be expressed in ONNX.
        MissingExtraError: if ONNX or ONNX Script is not installed.
    """
    need("onnx")
    need("onnxscript")
    try:
        with quiet():
            torch.onnx.export(
                module,
                (example,),
                path,
                input_names=[names[0]],
                output_names=[names[1]],
                dynamic_shapes=({0: torch.export.Dim("images")},),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        raise SpecError(f"{title} cannot be exported to ONNX ({reason}): leave it to torch") from error


def open_session(data: bytes, title: str) -> Any:
    """Open a file's bytes as a network that runs on the thread that calls it: featkit gives every core its own batch.

    Args:
        data: of the file, whoever wrote it.
        title: what it is, for the error.

    Raises:
        WeightsError: if weights are to be read from other files.
        MissingExtraError: if ONNX Runtime is not installed.
    """
    runtime = need("onnxruntime")
    elsewhere = next(_locations(need("onnx").load_model_from_string(data)), None)
    if elsewhere is not None:
        raise WeightsError(f"{title} takes weights from another file ({elsewhere!r}) and is refused: make it again")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _locations(message: Any) -> Iterator[str]:
    """Yield what every tensor inside a protobuf message says of where it lies."""
    for field, value in message.ListFields():
        if field.name == "external_data":
            yield from ([entry.value for entry in value if entry.key == "location"] or ["unnamed"])
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _locations(part)


def need(name: str, extra: str = "int8") -> ModuleType:
    """Import a package of an extra.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(name.partition(".")[0], extra) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporter and the quantizer say about themselves from the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with redirect_stdout(StringIO()):
                yield
        finally:
            logging.disable(before)
