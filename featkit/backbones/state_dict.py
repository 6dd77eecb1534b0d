"""Read state dicts without running code from the file, and load them into networks."""

from __future__ import annotations

import argparse
import hashlib
import logging
import pathlib
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from featkit.backbones.weights import DESCRIPTION_KEY, DIGEST_KEY
from featkit.errors import WeightsError
from featkit.storage import open_file

_FORBIDDEN_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
"""Finds the class or function in the error of torch's restricted unpickler."""

_MAX_BYTES = 2**37
"""Largest file of weights that is read: 137 GB, more than any published image network."""

_DEPTH = 3
"""Levels of dicts in which state dicts are searched."""

_PREFERRED = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "backbone",
    "encoder",
    "module",
)
_AVERAGED = {"ema", "swa", "average", "averaged", "teacher", "momentum", "k", "target"}
"""Words in names of moving averages of weights. An average is taken if there is nothing else,
because ``--weights FILE`` meant the others in featkit 0.1."""

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Names that torch.compile, FSDP and activation checkpointing add at any depth."""

_FOREIGN_CONTENT = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"<!doctype html", "is a web page, not a file of weights: download the file itself"),
    (b"<html", "is a web page, not a file of weights: download the file itself"),
    (b"<?xml", "is an XML document, such as an error of a server: download the file again"),
    (b"\x89hdf\r\n", "is an HDF5 file, such as weights of Keras: give weights of PyTorch"),
)
"""How files begin that are often saved in place of weights, in lower case, and what to do."""

log = logging.getLogger("featkit")


@dataclass(frozen=True)
class StateDict:
    """One of the state dicts in a file of weights.

    Attributes:
        keys: of the dicts that it is inside of, such as ``("state_dict",)``.
        prefix: what the names of all its tensors begin with in the file, such as ``module.``.
        tensors: by name, without the prefix.
        beside: names of tensors in the same dict that do not begin with the prefix.
        wrapped: whether names of ``_WRAPPERS`` were removed.
    """

    keys: tuple[str, ...]
    prefix: str
    tensors: Mapping[str, Tensor]
    beside: tuple[str, ...] = ()
    wrapped: bool = False

    @property
    def name(self) -> str:
        """Return the text that selects it: ``state_dict``, ``state_dict/module.encoder_q``."""
        return "/".join([*self.keys, *([self.prefix.rstrip(".")] if self.prefix else [])])

    @property
    def rank(self) -> tuple[int, int, int, str]:
        """Return the order in which state dicts that fit equally well are taken."""
        name = self.name.lower()
        averaged = len(_AVERAGED.intersection(re.split("[/._]", name)))
        places = [_PREFERRED.index(key) for key in self.keys if key in _PREFERRED]
        return averaged, min(places, default=len(_PREFERRED)), len(name), name


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a file that contains one state dict and nothing else, as featkit writes it.

    Raises:
        WeightsError: if the file is damaged, contains pickled code, or is not a state dict.
    """
    found = list(_find_tensors(read_content(path), ()))
    if len(found) != 1 or found[0].keys:
        raise _no_state_dict(path)
    return dict(found[0].tensors)


def load_weights(
    network: nn.Module, path: Path, *, network_name: str, ignore: tuple[str, ...], key: str = ""
) -> Mapping[str, Tensor]:
    """Load a file of weights into a network, in place, and return the state dict that was used.

    State dicts inside of others (``{"state_dict": ...}``, ``{"model": ..., "ema": ...}``) are
    found, and one prefix that the names of all tensors of the network have in common is removed
    (``module.``, ``backbone.``, ``module.encoder_q.``). Tensors without the prefix are left out,
    and so are parts that the network does not have, such as a projection head.

    Args:
        network: the network.
        path: the file.
        network_name: for error messages.
        ignore: prefixes of names that may be missing, extra or different.
        key: which of several state dicts to take, see ``StateDict.name``; its last part is enough.

    Raises:
        WeightsError: if the file is damaged, contains pickled code, contains no state dict or no
            such key, or if a tensor is missing, unexpected, or has another shape.
    """
    expected = _without(network.state_dict(), ignore)
    candidates = _candidates(path, expected, key)
    parts = {name.partition(".")[0] for name in network.state_dict()}
    fitting = []
    for candidate in candidates:
        inside, extras = _split_extras(_without(candidate.tensors, ignore), parts)
        if not _first_difference(expected, inside):
            fitting.append((candidate, inside, extras))
    if not fitting:
        raise _does_not_fit(path, network_name, expected, candidates, ignore)
    fitting.sort(key=lambda each: each[0].rank)
    chosen, inside, extras = fitting[0]
    _report(path, chosen, [each[0] for each in fitting[1:]], extras)
    network.load_state_dict(inside, strict=False)
    return chosen.tensors


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
    given = _without(state, ignore)
    difference = _first_difference(_without(network.state_dict(), ignore), given)
    if difference:
        raise _wrong_network(path, network_name, difference)
    network.load_state_dict(given, strict=False)


def read_content(path: Path) -> object:
    """Read a ``.safetensors`` file or a torch file; nothing in it is executed.

    Raises:
        WeightsError: if the file is damaged or contains pickled code.
    """
    try:
        with open_file(path, _MAX_BYTES) as file:
            start = file.read(512)
    except OSError as error:
        raise WeightsError(
            f"weights {path} cannot be read ({error.strerror or error}): give another file"
        ) from error
    if not start:
        raise WeightsError(f"{path} is empty: copy it again")
    for beginning, message in _FOREIGN_CONTENT:
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(beginning):
            raise WeightsError(f"{path} {message}")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _candidates(path: Path, expected: Mapping[str, Tensor], key: str) -> list[StateDict]:
    """Return the state dicts of a file with each prefix that the network's first tensor has there.

    A state dict in which that tensor does not occur is returned with its own names.
    """
    anchor = next(iter(expected), "")
    found = []
    for whole in _find_tensors(read_content(path), ()):
        prefixes = _prefixes(whole.tensors, anchor) or [""]
        found += [_below(whole, prefix) for prefix in prefixes]
    if not found:
        raise _no_state_dict(path)
    if not key:
        return found
    wanted = f".{key.replace('/', '.')}."
    selected = [each for each in found if wanted in f".{each.name.replace('/', '.')}."]
    if not selected:
        names = ", ".join(sorted(each.name for each in found if each.name)) or "one without a name"
        raise WeightsError(f"{path} contains no state dict {key}; it contains {names}")
    return selected


def _find_tensors(value: object, keys: tuple[str, ...]) -> Iterator[StateDict]:
    """Yield every dict that contains tensors, down to a few levels."""
    if not isinstance(value, Mapping) or len(keys) > _DEPTH:
        return
    tensors = {}
    for name, part in value.items():
        if isinstance(name, str) and isinstance(part, Tensor):
            tensors[_WRAPPERS.sub("", name)] = part
    if tensors:
        yield StateDict(keys, "", tensors, wrapped=not tensors.keys() <= value.keys())
    for name, part in value.items():
        if isinstance(name, str):
            yield from _find_tensors(part, (*keys, name))


def _prefixes(tensors: Mapping[str, Tensor], anchor: str) -> list[str]:
    """Return what precedes ``anchor`` in names that end with it, shortest first."""
    found = []
    for name in tensors:
        prefix = name.removesuffix(anchor)
        if name.endswith(anchor) and (not prefix or prefix.endswith(".")):
            found.append(prefix)
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _below(whole: StateDict, prefix: str) -> StateDict:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    inside, beside = {}, []
    for name, tensor in whole.tensors.items():
        if name.startswith(prefix):
            inside[name.removeprefix(prefix)] = tensor
        else:
            beside.append(name)
    return StateDict(whole.keys, prefix, inside, tuple(beside), whole.wrapped)


def _without(state: Mapping[str, Tensor], ignore: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(ignore)}


def _split_extras(
    tensors: Mapping[str, Tensor], parts: Collection[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Separate the tensors of a network's parts from those of parts that it does not have."""
    inside, extras = {}, set()
    for name, tensor in tensors.items():
        part = name.partition(".")[0]
        if part in parts:
            inside[name] = tensor
        else:
            extras.add(part)
    return inside, sorted(extras)


def _report(path: Path, chosen: StateDict, others: Sequence[StateDict], extras: list[str]) -> None:
    """Log what was read from a file, unless it is a plain state dict of the network."""
    left_out = extras + [name for name in chosen.beside if not _belongs_to(name, others)]
    if chosen.name or chosen.wrapped or left_out:
        taken = f"{chosen.name} of {path.name}" if chosen.name else path.name
        prefix = f", without the prefix {chosen.prefix}" if chosen.prefix else ""
        wrapped = ", without the names of wrappers such as _orig_mod" if chosen.wrapped else ""
        shown = ", ".join([*left_out[:3], "..."] if len(left_out) > 3 else left_out)
        log.info(
            "weights: read %s%s%s%s", taken, prefix, wrapped, f"; left out {shown}" * bool(shown)
        )
    for each in others:
        if each.name:
            log.info("weights: %s fits too: --weights %s:%s takes it", each.name, path, each.name)


def _belongs_to(name: str, others: Sequence[StateDict]) -> bool:
    return any(each.prefix and name.startswith(each.prefix) for each in others)


def _does_not_fit(
    path: Path,
    network_name: str,
    expected: Mapping[str, Tensor],
    candidates: Sequence[StateDict],
    ignore: tuple[str, ...],
) -> WeightsError:
    """Return the error that names the first difference from the most similar state dict."""

    def shared(candidate: StateDict) -> int:
        return len(expected.keys() & candidate.tensors.keys())

    best = max(candidates, key=shared)
    difference = _first_difference(expected, _without(best.tensors, ignore))
    if best.name:
        difference += f" in {best.name}"
    if not shared(best):
        difference += f"; it has {', '.join(list(best.tensors)[:3])}, ..."
    return _wrong_network(path, network_name, difference)


def _wrong_network(path: Path, network_name: str, difference: str) -> WeightsError:
    return WeightsError(
        f"{path} is not a state dict of {network_name} ({difference}): "
        "use the --backbone that it was saved from"
    )


def _no_state_dict(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} contains no state dict: save one with torch.save(network.state_dict(), FILE)"
    )


def _first_difference(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Describe the first difference between two state dicts; an empty text if there is none."""
    for key, value in expected.items():
        # Files from before torch 0.4.1 lack num_batches_tracked, which matters only in training.
        if key not in given and not key.endswith("num_batches_tracked"):
            return f"{key} is missing"
        if key in given and given[key].shape != value.shape:
            return f"{key} has shape {_format_shape(given[key])} instead of {_format_shape(value)}"
        if key in given and not _has_same_kind(given[key], value):
            found = str(given[key].dtype).removeprefix("torch.")
            return f"{key} has type {found} instead of {str(value.dtype).removeprefix('torch.')}"
    for key in given:
        if key not in expected:
            return f"unexpected {key}"
    return ""


def _has_same_kind(given: Tensor, expected: Tensor) -> bool:
    """Return whether a tensor can be copied: quantized weights would be copied without scales."""
    is_float = given.is_floating_point() == expected.is_floating_point()
    return is_float and given.layout == torch.strided


def _format_shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "()"


def digest_state(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of the names, types, shapes and bytes of a state dict."""
    sha = hashlib.sha256()
    for key, value in sorted(state.items()):
        sha.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        sha.update(value.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def digest_network(state: Mapping[str, Tensor], description: str) -> str:
    """Return the SHA-256 (hex) of the weights and the description of a saved network."""
    return hashlib.sha256(f"{digest_state(state)} {description}".encode()).hexdigest()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's random numbers on the CPU inside the block; restore the state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _read_safetensors(path: Path) -> object:
    try:
        state = load_file(path)
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    expected = metadata.get(DIGEST_KEY)
    if expected and expected != digest_network(state, metadata.get(DESCRIPTION_KEY, "")):
        raise WeightsError(
            f"{path} is damaged: its content does not match its own digest; copy it again, "
            "or train the network again"
        )
    return state


def _read_torch(path: Path) -> object:
    try:
        _verify_checksums(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless_types()):
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


def _harmless_types() -> list[Any]:
    """Return types that training programs save beside weights, and whose creation runs no code.

    Arguments of the command line, paths, and numbers of NumPy such as the best accuracy.
    """
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    numbers = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)]
    paths = [pathlib.PurePosixPath, pathlib.PureWindowsPath]
    aliases = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    # As pure paths: a path of another system could not be created.
    path_aliases: list[Any] = [(pathlib.PurePosixPath, "pathlib.PosixPath")]
    path_aliases.append((pathlib.PurePosixPath, "pathlib._local.PosixPath"))
    path_aliases.append((pathlib.PureWindowsPath, "pathlib.WindowsPath"))
    path_aliases.append((pathlib.PureWindowsPath, "pathlib._local.WindowsPath"))
    return [argparse.Namespace, np.dtype, *numbers, *paths, *aliases, *path_aliases]


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
