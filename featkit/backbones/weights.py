"""Weights of torchvision's ResNets: which there are, where they lie, and their digest.

Nothing here imports torch, unless a file has to be downloaded.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

from featkit.errors import SpecError, StorageError, WeightsError
from featkit.registry import unknown

FILES = {
    "resnet18": {"IMAGENET1K_V1": "resnet18-f37072fd.pth"},
    "resnet34": {"IMAGENET1K_V1": "resnet34-b627a593.pth"},
    "resnet50": {"IMAGENET1K_V1": "resnet50-0676ba61.pth", "IMAGENET1K_V2": "resnet50-11ad3fa6.pth"},
    "resnet101": {"IMAGENET1K_V1": "resnet101-63fe2227.pth", "IMAGENET1K_V2": "resnet101-cd907fc2.pth"},
    "resnet152": {"IMAGENET1K_V1": "resnet152-394f9c45.pth", "IMAGENET1K_V2": "resnet152-f82ba261.pth"},
}
"""torchvision's file names, by network and name of the weights; eight digits of each file's SHA-256 are in its name."""

RESIZE = {"IMAGENET1K_V1": 256, "IMAGENET1K_V2": 232}
"""Shorter edge in pixels before the centre crop of 224 that the weights were published with."""

SUFFIXES = (".pth", ".pt", ".safetensors")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
_PATIENCE = 30.0


@dataclass(frozen=True)
class Weights:
    """Weights that were found, not yet read.

    Attributes:
        label: what they are, for people.
        digest: SHA-256 (hex) of the file, or ``random:<seed>``.
        path: the file, or None for untrained weights.
        seed: of the untrained weights.
        resize: shorter edge in pixels that they expect before a centre crop of 224.
    """

    label: str
    digest: str
    path: Path | None = None
    seed: int = 0
    resize: int = 256


def find_weights(network: str, text: str) -> Weights:
    """Return the weights of a torchvision ResNet that a text asks for, downloaded where need be.

    Args:
        network: ``resnet18``, ...
        text: ``imagenet``, a name of torchvision's, ``random[:seed]`` or a file.

    Raises:
        SpecError: if the text is none of these.
        WeightsError: if there is no such file, or it cannot be read or downloaded.
        StorageError: if downloaded weights cannot be written.
    """
    name = "IMAGENET1K_V1" if text == "imagenet" else text
    if name in FILES[network]:
        return _published(network, name)
    return random_weights(text) or file_weights(text, f"weights of {network}", ["imagenet", *FILES[network]])


def random_weights(text: str) -> Weights | None:
    """Return untrained weights for ``random`` or ``random:<seed>``, None for any other text.

    Raises:
        SpecError: if the seed is not a whole number.
    """
    name, colon, number = text.partition(":")
    if name != "random":
        return None
    if colon and not re.fullmatch("[0-9]{1,18}", number):
        raise SpecError(f"{text!r} has no seed that can be used: write random or random:N with N a whole number from 0")
    seed = int(number or 0)
    return Weights(f"random:{seed} (untrained)", f"random:{seed}", seed=seed)


def file_weights(text: str, kind: str, known: list[str]) -> Weights:
    """Return the weights in a file; ``kind`` and ``known`` are for the error if the text does not look like one.

    Raises:
        SpecError: if there is no such file, and its name does not end as one of weights does.
        WeightsError: if there is no such file, or it cannot be read.
    """
    path = Path(text).expanduser().absolute()
    if not path.exists() and path.suffix not in SUFFIXES:
        raise unknown(kind, text, [*known, "random", "random:SEED", "FILE.pth", "FILE.safetensors"])
    return Weights(path.name, digest_file(path), path)


def digest_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes.

    Raises:
        WeightsError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = error.strerror or str(error)
        raise WeightsError(f"weights {path} cannot be read ({reason}): name a .pth or .safetensors file") from error


def hub_folder() -> Path:
    """Return torch's own folder of downloaded weights, found by torch's rules and without importing it."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", f"{caches}/torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def download(url: str, path: Path) -> None:
    """Fetch a file of weights, with a progress bar on stderr; nothing is left at ``path`` if that fails.

    Args:
        url: where it is.
        path: where it goes; the digits after the ``-`` in its name begin the file's SHA-256.

    Raises:
        WeightsError: if it cannot be fetched, or is not what its name says.
        StorageError: if it cannot be written.
    """
    import torch

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _timeout(_PATIENCE):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_prefix(path))
    except (OSError, HTTPException, RuntimeError) as error:
        if isinstance(error, OSError) and not isinstance(error, URLError) and error.errno in _NO_SPACE:
            raise StorageError(
                f"{path} cannot be written ({error.strerror}): make room, or set TORCH_HOME to another folder"
            ) from error
        if isinstance(error, HTTPError):
            error.close()
        reason = error.reason if type(error) is URLError else error
        raise WeightsError(
            f"{path.name} cannot be downloaded ({reason}): put it into the folder that FEATKIT_WEIGHTS names, "
            "give a file with --weights FILE, or try without training with --weights random"
        ) from error


def _published(network: str, name: str) -> Weights:
    path = _search(network, name)
    if path is None:
        path = (hub_folder() / FILES[network][name]).absolute()
        download(_url(network, name), path)
    digest = digest_file(path)
    own = digest.startswith(_hash_prefix(Path(FILES[network][name])))
    label = f"{name} ({path.name})" if own else f"{name} ({path.name}, not torchvision's own file)"
    return Weights(label, digest, path, resize=RESIZE[name])


def _search(network: str, name: str) -> Path | None:
    """Look in $FEATKIT_WEIGHTS, then in torch's folder; a plain ``resnet50.pth`` is only ever taken for V1."""
    file = FILES[network][name]
    places = [hub_folder() / file]
    if os.environ.get("FEATKIT_WEIGHTS"):
        folder = Path(os.environ["FEATKIT_WEIGHTS"]).expanduser()
        if not folder.is_dir():
            raise WeightsError(f"FEATKIT_WEIGHTS is {folder}, which is not a folder: set it to one, or unset it")
        plain = [f"{network}.pth", f"{network}.safetensors"] if name == "IMAGENET1K_V1" else []
        places = [*(folder / each for each in [file, *plain]), *places]
    return next((place.absolute() for place in places if place.is_file()), None)


def _url(network: str, name: str) -> str:
    import torchvision

    return str(torchvision.models.get_model_weights(network)[name].url)


def _hash_prefix(path: Path) -> str:
    return path.stem.rpartition("-")[2]


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Bound each wait for the network: torch's own download would wait for a silent server for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
