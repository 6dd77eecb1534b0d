"""Images at URLs: downloaded once, when they are read, into a folder of the user's cache."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from http.client import BadStatusLine, IncompleteRead
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
"""Seconds after which a download is given up, however slowly bytes arrive, with all its tries."""
_TRIES = 3
_FIRST_WAIT = 1.0
"""Seconds before a download is tried again; twice as many before the next time."""
_LONGEST_WAIT = 30.0
"""Most seconds that a server may ask to wait before the next try."""
_BLOCK = 2**20
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


class TransferError(Exception):
    """A transfer that failed.

    Attributes:
        reason: why, in words.
        is_transient: whether another try may succeed.
        wait: seconds that the server asks to wait before it; 0 if it does not.
    """

    def __init__(self, reason: str, *, is_transient: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.is_transient, self.wait = reason, is_transient, wait


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
            return read_url(self.url)
        except TransferError as error:
            raise self._error(error.reason) from error

    def _error(self, reason: str) -> DecodeError:
        return DecodeError(
            f"{self.where}: {visible(self.url)} cannot be downloaded: {visible(reason)}; check the "
            "URL and the network connection, or skip such images with --on-error skip"
        )


def is_url(text: str) -> bool:
    """Return whether a path is a URL."""
    return _URL.match(text) is not None


def is_http(url: str) -> bool:
    """Return whether a URL is read without a package of a store."""
    return urlsplit(url).scheme.lower() in _HTTP


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
    if is_http(url):
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


def read_url(url: str) -> bytes:
    """Return the content at a URL.

    After an error that may pass, such as an answer of 500 or more, a broken connection or no answer
    in time, it is tried again, three times in all.

    Raises:
        TransferError: if it cannot be read.
        FeatkitError: if an extra is missing.
    """
    end = time.monotonic() + _LONGEST
    tried, wait = 1, _FIRST_WAIT
    while True:
        try:
            return _read_once(url, end)
        except TransferError as error:
            pause = max(wait, error.wait)
            if tried == _TRIES or not error.is_transient or time.monotonic() + pause >= end:
                tries = f" (tried {tried} times)" if tried > 1 else ""
                raise TransferError(f"{error.reason}{tries}") from error
        time.sleep(pause)
        tried, wait = tried + 1, 2 * wait


def _read_once(url: str, end: float) -> bytes:
    """Return the content at a URL; raises TransferError, also if it takes until ``end``."""
    try:
        with closing(_open(url)) as file:
            data = b"".join(_blocks(file, end))
            expected = file.headers.get("Content-Length") if hasattr(file, "headers") else None
    except HTTPError as error:
        error.close()
        raise _refused(error) from error
    except URLError as error:
        is_transient = isinstance(error.reason, _TRANSIENT)
        raise TransferError(_reason(error.reason), is_transient=is_transient) from error
    except ImportError as error:
        raise missing_store(url) from error
    except FeatkitError:
        raise
    except Exception as error:  # of the network; packages of stores raise those of their own
        raise TransferError(_reason(error), is_transient=isinstance(error, _TRANSIENT)) from error
    if expected is not None and expected.isdigit() and int(expected) != len(data):
        raise TransferError(f"{len(data)} of {expected} bytes arrived", is_transient=True)
    return data


def missing_store(url: str) -> MissingExtraError:
    """Return the error that names the package of a store that is not installed."""
    return MissingExtraError(_STORES[urlsplit(url).scheme.lower()], EXTRA)


_TRANSIENT = (
    TimeoutError,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    BadStatusLine,
    IncompleteRead,
)
"""Errors that may pass; a connection that is refused, or a host that is not known, does not."""
_TRANSIENT_ANSWERS = (408, 425, 429)
"""Answers below 500 after which another try may succeed: timeout, too early, too many requests."""


def _refused(error: HTTPError) -> TransferError:
    """Return an answer other than the content as an error."""
    asked = str(error.headers.get("Retry-After", "")) if error.headers else ""
    return TransferError(
        f"the server answers {error.code} {error.reason}",
        is_transient=error.code in _TRANSIENT_ANSWERS or error.code >= 500,
        wait=min(float(asked), _LONGEST_WAIT) if asked.isdigit() else 0.0,
    )


def _open(url: str) -> Any:
    """Open a URL for reading in binary mode."""
    if is_http(url):
        # The protocol is checked, and urllib follows redirections to HTTP and FTP only.
        return urlopen(Request(url, headers={"User-Agent": "featkit"}), timeout=TIMEOUT)
    return require("fsspec", EXTRA).open(url, "rb").open()


def _blocks(file: IO[bytes], end: float) -> Iterator[bytes]:
    """Yield the content of a file.

    Raises:
        OSError: if it is larger than ``MAX_BYTES``, or takes until ``end``.
    """
    size = 0
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
