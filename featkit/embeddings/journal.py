"""What an extraction has done so far, kept where a killed process cannot harm it.

A journal is a file beside the one that is being made. It is only ever appended to: each record is one batch of vectors
with the keys of their images, its length and its checksum. After SIGKILL or power loss everything up to the last whole
record is good, whatever the batch size, the order or the images of the next run. While it is open the file is locked;
the kernel drops the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
import platform
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.layout import rounded

_HEAD = struct.Struct("<4sIIII")
"""Mark, checksum of the rest, number of vectors, their width, length of the keys in bytes."""

_MARKS = {"<f4": b"fkj1", "<f2": b"fkj2"}
"""Marks of records, by the type of their numbers."""


class Journal:
    """Vectors by key, on disk; only their places are held in memory."""

    def __init__(self, file: FileIO, dtype: str = "float32") -> None:
        self._file = file
        self._dtype = np.dtype(dtype).newbyteorder("<").str
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        for end, keys, width, start in _records(file, self._dtype):  # noqa: B007
            self._index(keys, width, start)
        file.truncate(end)
        file.seek(end)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def append(self, keys: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add ``(b, d)`` vectors; they are on the disk when this returns.

        Raises:
            DataError: if a number is too large for float16.
            OSError: if the disk is full; what was there before is still good.
        """
        names, numbers = "\n".join(keys).encode(), rounded(vectors, self._dtype).tobytes()
        body = struct.pack("<III", len(keys), vectors.shape[1], len(names)) + names + numbers
        left = memoryview(_MARKS[self._dtype] + struct.pack("<I", zlib.crc32(body)) + body)
        self._file.seek(0, os.SEEK_END)
        while left:
            left = left[self._file.write(left) :]
        os.fsync(self._file.fileno())
        self._index(list(keys), vectors.shape[1], self._file.tell() - len(numbers))

    def read(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors ``(len(keys), d)`` of keys that are here."""
        vectors = []
        for key in keys:
            start, size = self._places[key]
            self._file.seek(start)
            vectors.append(np.frombuffer(self._file.read(size), dtype=self._dtype))
        return np.stack(vectors).astype(np.float32, copy=False)

    def _index(self, keys: list[str], width: int, start: int) -> None:
        size = np.dtype(self._dtype).itemsize * width
        self._places.update({key: (start + size * place, size) for place, key in enumerate(keys)})


def _records(file: FileIO, dtype: str) -> Iterator[tuple[int, list[str], int, int]]:
    """Yield ``(end of the record, keys, width, start of the vectors)`` up to the first record that is not whole."""
    file.seek(0)
    item = np.dtype(dtype).itemsize
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        mark, checksum, count, width, length = _HEAD.unpack(head)
        size = length + item * count * width
        body = file.read(size) if mark == _MARKS[dtype] else b""
        if len(body) < size or zlib.crc32(head[8:] + body) != checksum:
            return
        end = file.tell()
        yield end, body[:length].decode().split("\n"), width, end - item * count * width
        file.seek(end)


@contextmanager
def open_journal(path: Path, waiting: Callable[[str], None], dtype: str = "float32") -> Iterator[Journal]:
    """Open or begin the journal at ``path`` and hold its lock until the block ends.

    Where another process holds it, ``waiting`` is told who, and this waits until it is free. A journal without a
    record is not left behind. ``dtype`` is the type in which the numbers are kept: float32 or float16.
    """
    with _locked(path, waiting) as file:
        journal = Journal(file, dtype)
        try:
            yield journal
        finally:
            if not len(journal):
                remove(path)


def remove(path: Path) -> None:
    """Remove a journal whose lock is held, when its vectors are published or nobody wants them."""
    _owner(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, waiting: Callable[[str], None]) -> Iterator[FileIO]:
    while True:
        # Unbuffered: what a full disk refused would otherwise be written again when the file is closed.
        with path.open("a+b", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting(_read_owner(path))
                fcntl.flock(file, fcntl.LOCK_EX)
            # Who held the lock before may have published its work and removed the file.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                _owner(path).write_text(_own_name(), encoding="utf-8")
                yield file
                return


def in_use(path: Path) -> str:
    """Return who is working on a journal, empty if nobody is."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_owner(path)
    return ""


def _owner(path: Path) -> Path:
    return path.with_suffix(".owner")


def _own_name() -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {platform.node()} since {since}"


def _read_owner(path: Path) -> str:
    try:
        return _owner(path).read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"
