"""Image sets from folders at URLs: those of a store, or of a server that lists its folders."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache
from html.parser import HTMLParser
from typing import NamedTuple
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from featkit.errors import DataError, FeatkitError, visible
from featkit.extras import require
from featkit.images.base import ImageSet
from featkit.images.files import ImageEntry
from featkit.images.folder import Folder, images_below
from featkit.images.intensity import IntensityRange
from featkit.images.names import printable
from featkit.images.remote import (
    EXTRA,
    TransferError,
    is_http,
    missing_store,
    read_url,
    remote_image,
)
from featkit.parallel import in_threads
from featkit.storage import OFFLINE_VARIABLE, is_offline, safe_name

_log = logging.getLogger("featkit")

_THREADS = 8
_DEEPEST = 20
"""Most levels of folders: a link on a server may lead back to a folder above it."""


class _Item(NamedTuple):
    """What a folder at a URL contains.

    Attributes:
        name: without the path of the folder.
        url: for a folder with a slash at the end.
        is_folder: whether it is a folder.
    """

    name: str
    url: str
    is_folder: bool


def folder_name(url: str) -> str:
    """Return the name of a folder at a URL, that of the host or bucket if it has no path."""
    parts = urlsplit(url)
    name = parts.path.rstrip("/").rpartition("/")[2] or parts.netloc
    return safe_name(unquote(name) if is_http(url) else name)


def images_from_url(
    url: str, intensity: IntensityRange | None = None, *, nested_groups: bool = False
) -> ImageSet:
    """Return the images of a folder at a URL, by the rules of ``images_from_folder``.

    The folder is listed once per process; images are downloaded when they are read for the first
    time, see ``featkit.images.remote``. Folders of ``s3://`` and other stores are listed by fsspec,
    those of ``https://`` and ``http://`` by the links on the page that the server shows for them.

    Args:
        url: the folder.
        intensity: see ``featkit.images.decode.decode``.
        nested_groups: as for ``images_from_folder``.

    Raises:
        DataError: if it cannot be listed, or as for ``images_from_folder``.
        MissingExtraError: if the package of a store is missing.
    """
    url = url.rstrip("/")
    remote_image(url, "--data")
    if url.lower().endswith(".csv"):
        raise DataError(
            f"{visible(url)} is a CSV file at a URL: download it and give its path; the paths in "
            "it may be URLs"
        )
    top = _tree(url)
    where = f"the folder {url}"

    def remote(entry: ImageEntry) -> ImageEntry:
        found = remote_image(entry.path, where)
        return entry._replace(path=str(found.local_path()), remote=found)

    return images_below(
        top, folder_name(url), intensity, nested_groups=nested_groups, change=remote
    )


@lru_cache(maxsize=16)
def _tree(url: str) -> Folder:
    """Return a folder with everything below it.

    Raises:
        DataError: if a folder cannot be listed, the first is empty, or folders are nested too deep.
    """
    if is_offline():
        raise DataError(
            f"{visible(url)} cannot be listed: {OFFLINE_VARIABLE} forbids it; list its images in a "
            "CSV file to use their copies"
        )
    _log.info("%s: listing its folders", visible(url))
    top = Folder(folder_name(url), url)
    level = [top]
    for _ in range(_DEEPEST):
        level = _read_level(level)
    if level:
        raise DataError(f"{visible(url)} has folders nested in more than {_DEEPEST} levels")
    if not (top.images or top.folders or top.passed_over):
        raise DataError(_empty(url))
    return top


def _read_level(folders: list[Folder]) -> list[Folder]:
    """Read what is directly in some folders; return the folders in them."""
    urls = [f"{folder.path}/" for folder in folders]
    below: list[Folder] = []
    for folder, items in zip(folders, in_threads(_list, urls, _THREADS), strict=True):
        for item in items:
            folder.add(printable(item.name), item.url.rstrip("/"), is_folder=item.is_folder)
        below += folder.folders
    return below


def _empty(url: str) -> str:
    if not is_http(url):
        return f"{visible(url)} contains nothing, or does not exist: correct it"
    return (
        f"{visible(url)} lists no files: the server shows no page with links to what is in the "
        "folder; list the URLs of the images in a CSV file with path,label"
    )


def _list(url: str) -> list[_Item]:
    """Return what is in a folder, sorted by name.

    Args:
        url: with a slash at the end.

    Raises:
        DataError: if it cannot be listed.
    """
    try:
        items = list(_links(url) if is_http(url) else _objects(url))
    except TransferError as error:
        raise DataError(_failed(url, error.reason)) from error
    except FeatkitError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{visible(url.rstrip('/'))} does not exist: correct it") from error
    except ImportError as error:
        raise missing_store(url) from error
    except Exception as error:  # packages of stores raise those of their own
        raise DataError(_failed(url, " ".join(str(error).split()))) from error
    return sorted(set(items))


def _failed(url: str, reason: str) -> str:
    if is_http(url):
        return (
            f"{visible(url.rstrip('/'))} cannot be listed: {visible(reason)}; check the URL; if "
            "the server shows no page with links to what is in the folder, list the URLs of the "
            "images in a CSV file with path,label"
        )
    return (
        f"{visible(url.rstrip('/'))} cannot be listed: {visible(reason)}; check the URL and the "
        "network connection"
    )


def _objects(url: str) -> Iterator[_Item]:
    """Yield what is in a folder of a store."""
    store, path = require("fsspec.core", EXTRA, "fsspec").url_to_fs(url)
    base = f"{str(path).rstrip('/')}/"
    for each in store.ls(path, detail=True):
        name = str(each["name"]).rstrip("/")
        # Some stores list an empty object that stands for the folder itself.
        own = name.removeprefix(base)
        if name.startswith(base) and own and "/" not in own:
            is_folder = each["type"] == "directory"
            yield _Item(own, f"{url}{own}{'/' if is_folder else ''}", is_folder)


def _links(url: str) -> Iterator[_Item]:
    """Yield what the page of a folder links to directly below it."""
    page = _Page()
    page.feed(read_url(url).decode("utf-8", "replace"))
    for link in page.links:
        try:
            target = urldefrag(urljoin(url, link)).url
        except ValueError:
            continue
        own = target.removeprefix(url)
        name = unquote(own.rstrip("/"))
        # Links that sort the page have a query; those to folders above it have another beginning.
        is_below = target.startswith(url) and own.rstrip("/") and "?" not in own
        if is_below and "/" not in name and "\0" not in name and name not in (".", ".."):
            yield _Item(name, target, own.endswith("/"))


class _Page(HTMLParser):
    """The targets of the links on a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect a link."""
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]
