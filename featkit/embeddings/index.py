"""Index of image files: their digests, so that files that did not change are not read again.

An entry is used if size, inode and the times of the last changes of content and status are those
of the file. As in git, files that are younger than two seconds when they are read have no entry:
on some file systems, a later change could have the same time.

A file that is changed and gets its old time back is not noticed on systems without inode change
times (Windows), nor is one on a disk that was changed by another computer with a wrong clock:
``--rehash`` and ``featkit cache verify`` read every file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import PIL

from featkit.errors import StorageError
from featkit.images.base import FileContent, FileKey, ImageSet
from featkit.storage import digest, parse_json, read_file, safe_name, write_file

log = logging.getLogger("featkit")

VERSION = 2
"""Version of the index and of what is in it (``images.decode.file_content``)."""

_FORMAT = "featkit index of image files"
_YOUNG = 2_000_000_000
"""Nanoseconds: the resolution of time stamps on FAT, the coarsest."""

_MAX_BYTES = 2**31
_MOST_OTHERS = 10_000
"""Entries of files that are not in the image set, such as those outside ``--limit``, are kept up to
this number, or that of its files."""

_Status = list[int]


class FileIndex:
    """Digests of the files of image sets of one name, in a file beside the cache files.

    Args:
        path: the file; it need not exist.
        rehash: whether to read every file and only check the entries.
    """

    def __init__(self, path: Path, *, rehash: bool = False) -> None:
        self.path = path
        self._rehash = rehash
        self._started = time.time_ns()
        self._known = _read(path)
        self._new: dict[str, list[Any]] = {}
        self._asked: set[str] = set()
        self._unnoticed: list[str] = []

    @classmethod
    def of(cls, images: ImageSet, cache: Path, *, rehash: bool = False) -> FileIndex | None:
        """Return the index of an image set, None if its images are not files.

        Args:
            images: the images.
            cache: folder of the cache files.
            rehash: whether to read every file.
        """
        if not isinstance(images.key, FileKey):
            return None
        stem = safe_name(images.name)
        if images.intensity != "none":  # part of the digests
            stem += f"-{digest([images.intensity])[:8]}"
        return cls(cache / f".{stem}.index.json", rehash=rehash)

    def apply(self, images: ImageSet) -> ImageSet:
        """Return the images with keys from the index."""
        key = images.key
        if not isinstance(key, FileKey):
            return images
        indexed_read = partial(self._content_of_row, key)
        return replace(images, key=FileKey(key.files, indexed_read))

    def _content_of_row(self, key: FileKey, row: int) -> FileContent:
        return self.content(key.files[row], partial(key.read, row))

    def content(self, path: str, read: Callable[[], FileContent]) -> FileContent:
        """Return the digest of a file and the size of a JPEG file; thread-safe.

        Args:
            path: the file; an empty text for an image without one.
            read: reads the file and returns its content.
        """
        if not path:
            return read()
        try:
            # Before the file is read: a change in between gives it another status.
            status = _status(path)
        except (OSError, ValueError):  # reading it raises an error that says what to do
            return read()
        name = path if path.startswith("/") else str(Path(path).absolute())
        self._asked.add(name)
        known = self._known.get(name)
        if known is not None and known[:4] != status:
            known = None
        if known is not None and not self._rehash:
            return FileContent(known[4], known[5])
        content = read()
        if known is not None and known[4] != content.key:
            self._unnoticed.append(path)
        if max(status[1], status[2]) < self._started - _YOUNG:
            self._new[name] = [*status, *content]
        return content

    def save(self) -> None:
        """Write new entries; the folder must exist.

        An index that cannot be written is only a loss of time: it is reported as a warning.
        """
        if self._unnoticed:
            log.warning(
                "%d images were changed without their time stamps, such as %s; the index is "
                "corrected, and features of their old contents are not used",
                len(self._unnoticed),
                self._unnoticed[0],
            )
            self._unnoticed.clear()
        if not self._new or not self.path.parent.is_dir():
            return
        self._known = self._kept() | self._new
        self._new = {}
        try:
            write_file(self.path, _content(self._known))
        except (OSError, StorageError) as error:
            log.warning(
                "the index of the images cannot be written, so that all of them are read again "
                "next time (%s)",
                error,
            )

    def _kept(self) -> dict[str, list[Any]]:
        """Return the known entries without most of those of other files, if these are many."""
        others = self._known.keys() - self._asked
        if len(others) <= max(_MOST_OTHERS, len(self._asked)):
            return self._known
        return {name: self._known[name] for name in self._known.keys() & self._asked}


@contextmanager
def indexed(images: ImageSet, cache: Path, *, rehash: bool = False) -> Iterator[ImageSet]:
    """Yield the images with keys from the index of a cache, which is written at the end.

    Args:
        images: the images.
        cache: folder of the cache files.
        rehash: whether to read every file.
    """
    index = FileIndex.of(images, cache, rehash=rehash)
    if index is None:
        yield images
        return
    yield index.apply(images)
    index.save()


def _status(path: str) -> _Status:
    found = os.stat(path)  # noqa: PTH116, pathlib takes three times as long
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _content(known: Mapping[str, list[Any]]) -> bytes:
    """Return the file: a line with version and checksum, and a line with the entries."""
    entries = json.dumps(known, separators=(",", ":")).encode()
    return json.dumps({**_header(), "sha256": _sha256(entries)}).encode() + b"\n" + entries


def _header() -> dict[str, Any]:
    # The digests of a few files depend on what Pillow reads.
    return {"format": _FORMAT, "version": VERSION, "pillow": PIL.__version__}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path) -> dict[str, list[Any]]:
    """Return the entries of a file; none if it does not exist, is damaged or of another version."""
    try:
        data = read_file(path, _MAX_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        log.warning("%s cannot be read (%s): all images are read again", path, error.strerror)
        return {}
    first, _, entries = data.partition(b"\n")
    try:
        header = parse_json(first)
        checksum = header.pop("sha256")
        if header != _header():
            log.warning("%s is of another version: all images are read again", path)
            return {}
        if checksum != _sha256(entries):
            raise ValueError("the checksum differs")
        known: dict[str, list[Any]] = json.loads(entries)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        log.warning("%s is damaged: all images are read again", path)
        return {}
    return known
