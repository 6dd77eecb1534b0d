"""Images at URLs: downloaded once, when they are read, into a folder of the user's cache."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from featkit.errors import DataError, DecodeError, FeatkitError, MissingExtraError, visible
from featkit.extras import require
from featkit.images.containers import describe_content, image_format
from featkit.images.decode import MAX_BYTES
from featkit.storage import OFFLINE_VARIABLE, data_folder, is_offline, write_file

_HTTP = ("http", "https")
_STORES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "memory": "fsspec"}
"""Packages by protocol of the stores that fsspec opens."""

EXTRA = "remote"
TIMEOUT = 30.0
"""Seconds to wait for a connection, or for the next bytes."""
_LONGEST = 600.0
"""Seconds after which a download is given up, however slowly bytes arrive."""
_BLOCK = 2**20
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


class RemoteImage(NamedTuple):
    """An image at a URL.

    Attributes:
        url: the URL.
        where: what names it, for messages, such as ``line 3 of labels.csv``.
    """

    url: str
    where: str

    def local_path(self) -> Path:
        """Return the file of the local copy, which need not exist.

        Raises:
            DataError: if no folder for copies is known.
        """
        name = sha256(self.url.encode()).hexdigest()[:40]
        return data_folder() / "downloads" / name[:2] / name

    def download(self) -> None:
        """Write the local copy, unless it exists.

        Raises:
            DecodeError: naming the URL, if it cannot be downloaded or is no image.
            FeatkitError: if the copy cannot be written, or an extra is missing.
        """
        path = self.local_path()
        if path.exists():
            return
        if is_offline():
            raise self._error(f"{OFFLINE_VARIABLE} forbids downloads")
        data = self._read()
        kind = describe_content(data)
        if image_format(data) is None and (kind or not data):
            raise self._error(f"it is {kind or 'empty'}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)

    def _read(self) -> bytes:
        try:
            with closing(_open(self.url)) as file:
                data = b"".join(_blocks(file))
                expected = file.headers.get("Content-Length") if hasattr(file, "headers") else None
        except HTTPError as error:
            error.close()
            raise self._error(f"the server answers {error.code} {error.reason}") from error
        except URLError as error:
            raise self._error(_reason(error.reason)) from error
        except ImportError as error:
            package = _STORES[urlsplit(self.url).scheme.lower()]
            raise MissingExtraError(package, EXTRA) from error
        except FeatkitError:
            raise
        except Exception as error:  # of the network; packages of stores raise those of their own
            raise self._error(_reason(error)) from error
        if expected is not None and expected.isdigit() and int(expected) != len(data):
            raise self._error(f"{len(data)} of {expected} bytes arrived")
        return data

    def _error(self, reason: str) -> DecodeError:
        return DecodeError(
            f"{self.where}: {visible(self.url)} cannot be downloaded: {visible(reason)}; check the "
            "URL and the network connection, or skip such images with --on-error skip"
        )


def is_url(text: str) -> bool:
    """Return whether a path is a URL."""
    return _URL.match(text) is not None


def remote_image(url: str, where: str) -> RemoteImage:
    """Return the image at a URL; nothing is downloaded yet.

    Args:
        url: ``https://``, ``http://``, or ``s3://``, ``gs://``, ``az://`` with the extra
            ``remote``.
        where: what names it, for messages.

    Raises:
        DataError: if the protocol is not known, or the URL has a password.
        MissingExtraError: if the extra is needed and missing.
    """
    try:
        parts = urlsplit(url)
        has_password = "@" in parts.netloc
    except ValueError as error:
        raise DataError(f"{where}: {visible(url)} is not a URL ({error}): correct it") from error
    scheme = parts.scheme.lower()
    if scheme in _HTTP:
        if has_password or not parts.hostname:
            raise DataError(
                f"{where}: a URL must have a host, and no user name or password, which would be "
                "written into every result"
            )
    elif scheme in _STORES:
        require("fsspec", EXTRA)
    else:
        known = ", ".join([*_HTTP, *_STORES][:-1])
        raise DataError(f"{where}: {scheme}:// is not supported: use {known}, or a file")
    return RemoteImage(url, where)


def _open(url: str) -> Any:
    """Open a URL for reading in binary mode."""
    if urlsplit(url).scheme.lower() in _HTTP:
        # The protocol is checked, and urllib follows redirections to HTTP and FTP only.
        return urlopen(Request(url, headers={"User-Agent": "featkit"}), timeout=TIMEOUT)
    return require("fsspec", EXTRA).open(url, "rb").open()


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of a file.

    Raises:
        OSError: if it is larger than ``MAX_BYTES``, or takes too long.
    """
    size, end = 0, time.monotonic() + _LONGEST
    while block := file.read(_BLOCK):
        size += len(block)
        if size > MAX_BYTES:
            raise OSError(f"it is larger than the limit of {MAX_BYTES / 1e6:,.0f} MB")
        if time.monotonic() > end:
            raise TimeoutError(f"it takes more than {_LONGEST:.0f} seconds")
        yield block


def _reason(error: object) -> str:
    """Return an error of the network in words."""
    if isinstance(error, TimeoutError) and not str(error).startswith("it takes"):
        return f"no answer within {TIMEOUT:.0f} seconds"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
