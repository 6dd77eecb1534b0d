"""Read state dicts without running code from the file, and load them into networks."""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featkit.errors import WeightsError

_WRAPPERS = ("state_dict", "model")
_FORBIDDEN_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
"""Finds the class or function in the error of torch's restricted unpickler."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a ``.safetensors`` file or a torch file.

    ``{"state_dict": ...}``, ``{"model": ...}`` and the ``module.`` of parallel training are
    unwrapped.

    Raises:
        WeightsError: if the file is damaged, contains pickled code, or is not a state dict.
    """
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not _is_state_dict(state):
        raise WeightsError(
            f"{path} contains no state dict: save one with torch.save(network.state_dict(), FILE)"
        )
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _is_state_dict(state: object) -> TypeGuard[Mapping[str, Tensor]]:
    if not isinstance(state, Mapping) or not state:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())


def fill(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    network_name: str,
    path: Path,
    ignore: tuple[str, ...],
) -> None:
    """Load a state dict into a network, in place.

    Args:
        network: the network.
        state: tensors by name.
        network_name: for the error message.
        path: for the error message.
        ignore: prefixes of names that may be missing, extra or different.

    Raises:
        WeightsError: if a tensor is missing, unexpected, or has another shape.
    """
    expected = {
        key: value for key, value in network.state_dict().items() if not key.startswith(ignore)
    }
    given = {key: value for key, value in state.items() if not key.startswith(ignore)}
    difference = _first_difference(expected, given)
    if difference:
        raise WeightsError(
            f"{path} is not a state dict of {network_name} ({difference}): "
            "use the --backbone that it was saved from"
        )
    network.load_state_dict(given, strict=False)


def _first_difference(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Describe the first difference between two state dicts; an empty text if there is none."""
    for key, value in expected.items():
        # Files from before torch 0.4.1 lack num_batches_tracked, which matters only in training.
        if key not in given and not key.endswith("num_batches_tracked"):
            return f"{key} is missing"
        if key in given and given[key].shape != value.shape:
            return f"{key} has shape {_format_shape(given[key])} instead of {_format_shape(value)}"
    for key in given:
        if key not in expected:
            return f"unexpected {key}"
    return ""


def _format_shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "()"


def digest_state(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of the names, types, shapes and bytes of a state dict."""
    sha = hashlib.sha256()
    for key, value in sorted(state.items()):
        sha.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        sha.update(value.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's random numbers on the CPU inside the block; restore the state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> object:
    try:
        _verify_checksums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # for arbitrary bytes, torch raises almost any type of exception
        if type(error).__name__ != "UnpicklingError":
            raise _damaged(path, error) from error
        found = _FORBIDDEN_GLOBAL.search(str(error))
        content = (
            f"a pickle with code ({found[1]})"
            if found
            else "no weights, or a pickle that may contain code"
        )
        raise WeightsError(
            f"{path} contains {content} and is refused: "
            "save only its state dict, or use .safetensors"
        ) from error


def _verify_checksums(path: Path) -> None:
    """Verify the checksums in a zip archive, which torch.load does not do."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken:
        raise zipfile.BadZipFile(f"wrong checksum of {broken}")


def _damaged(path: Path, error: Exception) -> WeightsError:
    first_line = (str(error).splitlines() or [""])[0]
    reason = first_line.split(". ")[0] or type(error).__name__
    return WeightsError(
        f"{path} is damaged or contains no weights ({reason}): copy it again, or use another file"
    )
