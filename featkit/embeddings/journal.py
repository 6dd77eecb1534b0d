"""Journal of an extraction: the features computed so far, safe from a kill or a power loss.

A journal is a file next to the cache file to be written. It is only appended to: each record is
one batch of features with the content digests ("keys") of their images, its length and its
checksum. After SIGKILL or a power loss everything up to the last complete record is valid, whatever
the batch size, the order or the images of the next run. A journal is used under a lock, which the
operating system releases when a process dies.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.layout import convert_features
from featkit.errors import CacheError
from featkit.storage import locked

_HEAD = struct.Struct("<4sIIII")
"""Mark, checksum of the remaining bytes, number and width of features, length of keys in bytes."""

_MARKS = {"<f4": b"fkj1", "<f2": b"fkj2"}
"""Marks of records, by the type of their numbers."""


class Journal:
    """Features by image key, on disk; only their positions in the file are in memory."""

    def __init__(self, file: FileIO, dtype: str = "float32") -> None:
        self.discarded = False
        self._file = file
        self._dtype = np.dtype(dtype).newbyteorder("<").str
        # Start, length in bytes and CRC-32 of the features of each image.
        self._positions: dict[str, tuple[int, int, int]] = {}
        valid_end = 0
        for record in _read_records(file, self._dtype):
            self._add_positions(record.keys, record.features, record.start)
            valid_end = record.end
        # A record that was cut off by a kill or a full disk is removed, so that the next one can be
        # read.
        file.truncate(valid_end)
        file.seek(valid_end)

    def __contains__(self, key: str) -> bool:
        return key in self._positions

    def __len__(self) -> int:
        return len(self._positions)

    def append(self, keys: Sequence[str], features: NDArray[np.float32]) -> None:
        """Append features ``(b, d)``; they are on the disk when this returns.

        Raises:
            DataError: if a number is too large for float16.
            OSError: if the disk is full; earlier records are still valid.
        """
        names = "\n".join(keys).encode()
        numbers = convert_features(features, self._dtype).tobytes()
        body = struct.pack("<III", len(keys), features.shape[1], len(names)) + names + numbers
        remaining = memoryview(_MARKS[self._dtype] + struct.pack("<I", zlib.crc32(body)) + body)
        self._file.seek(0, os.SEEK_END)
        while remaining:
            written = self._file.write(remaining)
            remaining = remaining[written:]
        os.fsync(self._file.fileno())
        self._add_positions(keys, numbers, self._file.tell() - len(numbers))

    def read(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """Return the features ``(len(keys), d)`` of keys that are in the journal.

        Raises:
            CacheError: if they were damaged since they were written or the journal was opened.
        """
        rows = []
        for key in keys:
            start, size, checksum = self._positions[key]
            self._file.seek(start)
            numbers = self._file.read(size)
            if zlib.crc32(numbers) != checksum:
                raise CacheError(
                    f"{self._file.name} was damaged while it was in use: extract again"
                )
            rows.append(np.frombuffer(numbers, dtype=self._dtype))
        return np.stack(rows).astype(np.float32, copy=False)

    def discard(self) -> None:
        """Mark the journal for removal when it is closed, because its features are published."""
        self.discarded = True

    def _add_positions(self, keys: Sequence[str], features: bytes, start: int) -> None:
        size = len(features) // len(keys)
        for position, key in enumerate(keys):
            row = features[size * position : size * (position + 1)]
            self._positions[key] = (start + size * position, size, zlib.crc32(row))


class _Record(NamedTuple):
    """A record of a journal: keys, bytes of their features, where these start and end."""

    keys: list[str]
    features: bytes
    start: int
    end: int


def _read_records(file: FileIO, dtype: str) -> Iterator[_Record]:
    """Yield each record before an incomplete one."""
    file.seek(0)
    item_size = np.dtype(dtype).itemsize
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        mark, checksum, count, width, length = _HEAD.unpack(head)
        size = length + item_size * count * width
        body = file.read(size) if mark == _MARKS[dtype] else b""
        if len(body) < size or zlib.crc32(head[8:] + body) != checksum:
            return
        end = file.tell()
        keys = body[:length].decode().split("\n")
        yield _Record(keys, body[length:], end - size + length, end)
        file.seek(end)


@contextmanager
def open_journal(
    path: Path, on_wait: Callable[[str], None], dtype: str = "float32"
) -> Iterator[Journal]:
    """Open or create the journal at ``path`` and hold its lock until the block ends.

    An empty or discarded journal is removed at the end.

    Args:
        path: the journal.
        on_wait: called with the owner of the lock, if another process holds it, before waiting for
            it.
        dtype: type in which numbers are stored, ``float32`` or ``float16``.
    """
    # Unbuffered: a buffer would retry a write that a full disk refused when the file is closed.
    with locked(lock_of(path), on_wait), path.open("a+b", buffering=0) as file:
        journal = Journal(file, dtype)
        try:
            yield journal
        finally:
            remove = journal.discarded or not len(journal)
            file.close()  # Windows does not remove open files.
            if remove:
                path.unlink(missing_ok=True)


def lock_of(partial: Path) -> Path:
    """Return the lock file of a journal or of another ``.partial`` file."""
    return partial.with_suffix(".lock")
