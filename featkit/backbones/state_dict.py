"""State dicts: read from a file without running any code in it, and put into a network."""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featkit.errors import WeightsError

_WRAPPERS = ("state_dict", "model")
# How torch's restricted unpickler names the class or function that it refuses.
_CODE = re.compile(r"GLOBAL ([\w.]+)")


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` file or of a torch file, by name.

    ``{"state_dict": ...}``, ``{"model": ...}`` and the ``module.`` of parallel training are unwrapped.

    Raises:
        WeightsError: if the file is damaged, holds a pickle with code, or is no state dict.
    """
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(map(_is_named_tensor, state.items())):
        raise WeightsError(f"{path} holds no state dict: save one with torch.save(network.state_dict(), FILE)")
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def fill(
    network: nn.Module, state: Mapping[str, Tensor], *, network_name: str, path: Path, ignore: tuple[str, ...]
) -> None:
    """Copy a state dict into a network.

    Args:
        network: filled in place.
        state: tensors by name.
        network_name: for the error.
        path: for the error.
        ignore: beginnings of names that neither side needs to have.

    Raises:
        WeightsError: if a tensor is missing, is one too many, or has another shape.
    """
    wanted = {key: value for key, value in network.state_dict().items() if not key.startswith(ignore)}
    given = {key: value for key, value in state.items() if not key.startswith(ignore)}
    wrong = _first_difference(wanted, given)
    if wrong:
        raise WeightsError(f"{path} is not of {network_name} ({wrong}): name the backbone that it was made with")
    network.load_state_dict(given, strict=False)


def _first_difference(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    for key, value in wanted.items():
        # Files from before torch 0.4.1 lack num_batches_tracked, which matters in training alone.
        if key not in given and not key.endswith("num_batches_tracked"):
            return f"{key} is missing"
        if key in given and given[key].shape != value.shape:
            return f"{key} is {_shape(given[key])} where {_shape(value)} is needed"
    return next((f"{key} is not in that network" for key in given if key not in wanted), "")


def _is_named_tensor(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def digest_state(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of a state dict's names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for key, value in sorted(state.items()):
        sha.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        sha.update(value.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw what is drawn inside from this seed on the CPU, and leave the global random state as it was."""
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
        _check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no weights make torch raise almost anything
        if type(error).__name__ != "UnpicklingError":
            raise _damaged(path, error) from error
        code = _CODE.search(str(error))
        what = f"a pickle with code ({code[1]})" if code else "no weights, or a pickle that may hold code"
        raise WeightsError(
            f"{path} holds {what} and is refused: have its maker save the state dict alone, or as .safetensors"
        ) from error


def _check_sums(path: Path) -> None:
    """Compare the checksums of a zip archive, which torch does not."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken:
        raise zipfile.BadZipFile(f"wrong checksum of {broken}")


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = (str(error).splitlines() or [""])[0].split(". ")[0] or type(error).__name__
    return WeightsError(f"{path} is damaged or holds no weights ({reason}): copy it again, or name another file")
