"""Index of image files: their digests, so that files that did not change are not read again.

See ``embeddings.remembered`` for when a file is read again. A file that is changed and gets its old
time back is not noticed on systems without inode change times (Windows), nor is one on a disk that
was changed by another computer with a wrong clock: ``--rehash`` and ``featkit cache verify`` read
every file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import PIL

from featkit.embeddings.remembered import Remembered
from featkit.images.base import FileContent, FileKey, ImageSet
from featkit.storage import digest, file_status, safe_name

log = logging.getLogger("featkit")

VERSION = 2
"""Version of the index and of what is in it (``images.base.FileContent``)."""

_FORMAT = "featkit index of image files"

_MOST_OTHERS = 10_000
"""Entries of files that are not in the image set, such as those outside ``--limit``, are kept up to
this number, or that of its files."""


class FileIndex:
    """Digests of the files of image sets of one name, in a file beside the cache files.

    Args:
        path: the file; it need not exist.
        rehash: whether to read every file and only check the entries.
    """

    def __init__(self, path: Path, *, rehash: bool = False) -> None:
        self._rehash = rehash
        # The digests of a few files depend on what Pillow reads.
        header = {"format": _FORMAT, "version": VERSION, "pillow": PIL.__version__}
        self._remembered = Remembered(
            path, header, "all images are read again", most_others=_MOST_OTHERS
        )
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
        return replace(images, key=replace(key, read=indexed_read))

    def _content_of_row(self, key: FileKey, row: int) -> FileContent:
        member = key.members[row] if key.members else ""
        return self.content(key.files[row], partial(key.read, row), member)

    def content(self, path: str, read: Callable[[], FileContent], member: str = "") -> FileContent:
        """Return the digest of a file and the size of a JPEG file; thread-safe.

        Args:
            path: the file; an empty text for an image without one.
            read: reads the file and returns its content.
            member: name of the image in the file; empty if it is the file.
        """
        if not path:
            return read()
        try:
            status = file_status(path)
        except (OSError, ValueError):  # reading it raises an error that says what to do
            return read()
        # ``Path.absolute`` takes three times as long as the status of the file.
        name = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH117, PTH118
        if member:
            name = f"{name}//{member}"  # no path: absolute ones have single slashes
        known = self._remembered.get(name, status)
        if known is not None and not self._rehash:
            return FileContent(*known)
        content = read()
        if known is not None and known[0] != content.key:
            self._unnoticed.append(path)
        self._remembered.put(name, status, content)
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
        problem = self._remembered.save()
        if problem:
            log.warning(
                "the index of the images cannot be written, so that all of them are read again "
                "next time (%s)",
                problem,
            )


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
