"""Find the weights of a network and compute their digest.

Imports torch only to download a file.
"""

from __future__ import annotations

import errno
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
from featkit.storage import (
    OFFLINE_VARIABLE,
    default_folder,
    digest,
    file_sha256,
    is_offline,
    user_path,
)

FILES = {
    "resnet18": {"IMAGENET1K_V1": "resnet18-f37072fd.pth"},
    "resnet34": {"IMAGENET1K_V1": "resnet34-b627a593.pth"},
    "resnet50": {
        "IMAGENET1K_V1": "resnet50-0676ba61.pth",
        "IMAGENET1K_V2": "resnet50-11ad3fa6.pth",
    },
    "resnet101": {
        "IMAGENET1K_V1": "resnet101-63fe2227.pth",
        "IMAGENET1K_V2": "resnet101-cd907fc2.pth",
    },
    "resnet152": {
        "IMAGENET1K_V1": "resnet152-394f9c45.pth",
        "IMAGENET1K_V2": "resnet152-f82ba261.pth",
    },
}
"""torchvision's file names, by network and weights, with the first digits of the SHA-256."""

RESIZE = {"IMAGENET1K_V1": 256, "IMAGENET1K_V2": 232}
"""Shorter edge in pixels before the centre crop of 224, as published with the weights."""

SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".tar")

DESCRIPTION_KEY = "featkit"
DIGEST_KEY = "featkit.sha256"
"""Names in the header of a network saved by featkit. The digest covers weights and description;
files of featkit 0.1 have none."""

_TIMEOUT_SECONDS = 30.0
_NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class Weights:
    """Weights that were found and not read yet.

    Attributes:
        label: which weights these are, for display.
        digest: SHA-256 (hex) of the file, or ``random:<seed>``.
        path: the file; None for random weights.
        seed: seed of random weights.
        resize: shorter edge in pixels that the weights expect before a centre crop of 224.
        key: which of several state dicts in the file to take; empty for the default.
    """

    label: str
    digest: str
    path: Path | None = None
    seed: int = 0
    resize: int = 256
    key: str = ""


def find_weights(network: str, text: str) -> Weights:
    """Find weights of a torchvision ResNet; download them if necessary.

    Args:
        network: ``resnet18``, ...
        text: ``imagenet``, torchvision's name of some weights, ``random[:seed]`` or a file.

    Raises:
        SpecError: if the text is none of these.
        WeightsError: if the file does not exist, or cannot be read or downloaded.
        StorageError: if downloaded weights cannot be written.
    """
    name = "IMAGENET1K_V1" if text == "imagenet" else text
    if name in FILES[network]:
        return _published_weights(network, name)
    known = ["imagenet", *FILES[network]]
    return random_weights(text) or file_weights(text, f"weights of {network}", known)


def random_weights(text: str) -> Weights | None:
    """Return random weights for ``random`` or ``random:<seed>``, None for any other text.

    Raises:
        SpecError: if the seed is not an integer from 0.
    """
    name, colon, number = text.partition(":")
    if name != "random":
        return None
    if colon and not re.fullmatch("[0-9]{1,18}", number):
        raise SpecError(
            f"weights {text!r} have no seed: write random or random:N, with an integer N from 0"
        )
    seed = int(number or 0)
    return Weights(f"random:{seed} (untrained)", f"random:{seed}", seed=seed)


def file_weights(text: str, kind: str, known: list[str]) -> Weights:
    """Return the weights in a file.

    Args:
        text: path of the file, or ``FILE:KEY`` to take one of several state dicts in it.
        kind: for the error message, if the text does not look like a file of weights.
        known: names to list in that message.

    Raises:
        SpecError: if there is no such file and its name does not end as that of a file of weights.
        WeightsError: if the file does not exist or cannot be read.
    """
    file, key = split_key(text)
    path = user_path(file).absolute()
    if not path.exists() and path.suffix not in SUFFIXES:
        raise unknown(kind, text, [*known, "random", "random:SEED", "FILE.pth", "FILE.safetensors"])
    sha256 = digest_file(path)
    if not key:
        return Weights(path.name, sha256, path)
    return Weights(f"{path.name}:{key}", digest([sha256, key]), path, key=key)


def split_key(text: str) -> tuple[str, str]:
    """Split ``FILE:KEY`` into the file and the key of a state dict in it; the key may be empty."""
    file, _, key = text.rpartition(":")
    is_file = Path(file).suffix in SUFFIXES or user_path(file).is_file()
    if not file or not is_file or user_path(text).exists():
        return text, ""
    return file, key


def digest_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file of weights.

    Raises:
        WeightsError: if it cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WeightsError(
            f"weights {path} cannot be read ({reason}): give a .pth or .safetensors file"
        ) from error


def hub_folder() -> Path | None:
    """Return the folder of torch's downloaded weights, by the rules of ``torch.hub``.

    None if it is in the home folder and that is not known, as for a user id without an entry.
    """
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", f"{caches}/torch")
    folder = default_folder(home)
    return None if folder is None else folder / "hub" / "checkpoints"


def download(url: str, path: Path) -> None:
    """Download a file of weights with a progress bar on stderr; leave no file if that fails.

    Args:
        url: where to download it from.
        path: the new file; the digits after the ``-`` in its name are the first of its SHA-256.

    Raises:
        WeightsError: if it cannot be downloaded, its digest is another one, or the environment
            variable ``FEATKIT_OFFLINE`` is set.
        StorageError: if it cannot be written.
    """
    if is_offline():
        raise WeightsError(
            f"{path.name} is not on this machine, and {OFFLINE_VARIABLE} forbids to download it",
            fixes=_WITHOUT_DOWNLOAD,
        )
    import torch

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(_TIMEOUT_SECONDS):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_prefix(path.name))
    except (OSError, HTTPException, RuntimeError) as error:
        # URLError is an OSError too, and its errno has nothing to do with the disk.
        if (
            isinstance(error, OSError)
            and not isinstance(error, URLError)
            and error.errno in _NOT_WRITABLE
        ):
            raise StorageError(
                f"cannot write {path} ({error.strerror}): free disk space, "
                "or set TORCH_HOME to another folder"
            ) from error
        if isinstance(error, HTTPError):
            # It holds the open response, whose unclosed socket would be reported as a
            # ResourceWarning.
            error.close()
        reason = error.reason if type(error) is URLError else error
        raise WeightsError(
            f"cannot download {path.name} ({reason})", fixes=_WITHOUT_DOWNLOAD
        ) from error


_WITHOUT_DOWNLOAD = (
    "copy it into the folder in FEATKIT_WEIGHTS",
    "give a file with --weights FILE",
    "use untrained weights with --weights random",
)


def _published_weights(network: str, name: str) -> Weights:
    file = FILES[network][name]
    path = search_weights(network, name)
    if path is None:
        folder = hub_folder()
        if folder is None:
            raise WeightsError(
                f"{file} is not found, and cannot be downloaded since the home folder is not known",
                fixes=[
                    "copy it into the folder in FEATKIT_WEIGHTS",
                    "set TORCH_HOME to a folder",
                    "give a file with --weights FILE",
                ],
            )
        path = (folder / file).absolute()
        download(_url(network, name), path)
    sha256 = digest_file(path)
    is_torchvisions = sha256.startswith(_hash_prefix(file))
    label = (
        f"{name} ({path.name})"
        if is_torchvisions
        else f"{name} ({path.name}, not torchvision's own file)"
    )
    return Weights(label, sha256, path, resize=RESIZE[name])


def search_weights(network: str, name: str) -> Path | None:
    """Search a file of weights in $FEATKIT_WEIGHTS and torch's folder; None if there is none."""
    file = FILES[network][name]
    candidates = []
    if os.environ.get("FEATKIT_WEIGHTS"):
        folder = user_path(os.environ["FEATKIT_WEIGHTS"])
        if not folder.is_dir():
            raise WeightsError(
                f"FEATKIT_WEIGHTS is {folder}, which is not a folder: set it to one, or unset it"
            )
        candidates.append(folder / file)
        if name == "IMAGENET1K_V1":
            # A name without a digest may be any weights; featkit takes it for the default ones.
            candidates += [folder / f"{network}.pth", folder / f"{network}.safetensors"]
    hub = hub_folder()
    if hub is not None:  # else $FEATKIT_WEIGHTS may have it all the same
        candidates.append(hub / file)
    for path in candidates:
        if path.is_file():
            return path.absolute()
    return None


def _url(network: str, name: str) -> str:
    import torchvision

    return str(torchvision.models.get_model_weights(network)[name].url)


def _hash_prefix(file_name: str) -> str:
    return Path(file_name).stem.rpartition("-")[2]


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Limit the time of each wait for the server: torch's download has no timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
