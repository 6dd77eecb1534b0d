"""Features that stay in their cache file and are read in blocks, see ``blocks.RowView``.

Files are opened for each block: an open or mapped file could not be replaced or removed on Windows,
and an error while a mapped page is read ends the process instead of raising an exception.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.validation import open_hdf5, read_errors
from featkit.errors import CacheError

SPAN_BYTES = 2**22
"""Bytes that are read at once, at most."""

GAP_ROWS = 8
"""Rows between two wanted ones that are read too: it takes less time than reading twice."""

Version = tuple[int, int, int]


def version_of(status: os.stat_result) -> Version:
    """Return what tells a file from another one, or from the same one after a change."""
    return status.st_ino, status.st_size, status.st_mtime_ns


class _FileRows:
    """Rows of features in a cache file whose content has been checked.

    Args:
        path: the file.
        shape: ``(n, d)`` of all features.
        version: of the file when it was checked, see ``version_of``.
    """

    def __init__(self, path: Path, shape: tuple[int, int], version: Version) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(np.float32)
        self._version = version

    def _refuse_changed(self, status: os.stat_result) -> None:
        """Raise CacheError if the file is not the one that was checked."""
        if version_of(status) != self._version:
            raise CacheError(f"{self.path} was changed while it was in use: run the command again")


class PlainRows(_FileRows):
    """Rows that are neither compressed nor scattered, at known places of a file.

    Args:
        path, shape, version: as for ``_FileRows``.
        stored: type of the stored numbers.
        chunk_rows: rows per chunk.
        places: ``(m,)`` position in the file of each chunk, in bytes.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        version: Version,
        *,
        stored: np.dtype[Any],
        chunk_rows: int,
        places: NDArray[np.int64],
    ) -> None:
        super().__init__(path, shape, version)
        self._stored, self._chunk_rows, self._places = stored, chunk_rows, places

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows ``(b, d)`` at row numbers ``(b,)``, in any order.

        Raises:
            CacheError: if the file was changed, or cannot be read any more.
        """
        width = self.shape[1]
        row_bytes = width * self._stored.itemsize
        chunks, inside = np.divmod(rows, self._chunk_rows)
        order, places = _increasing(self._places[chunks] + inside * row_bytes)
        found = np.empty((len(rows), width), np.float32)
        with read_errors(self.path), self.path.open("rb", buffering=0) as file:
            self._refuse_changed(os.fstat(file.fileno()))
            for run in _runs(places, row_bytes, SPAN_BYTES):
                own = places[run]
                file.seek(int(own[0]))
                content = _read_all(file, int(own[-1] - own[0]) + row_bytes)
                stored = np.frombuffer(content, self._stored).reshape(-1, width)
                needed = (own - own[0]) // row_bytes
                # Rows may be wanted more than once: [0, 0, 2] are as many as 0 to 2.
                whole = np.array_equal(needed, np.arange(len(stored)))
                found[run if order is None else order[run]] = stored if whole else stored[needed]
        return found


class DecodedRows(_FileRows):
    """Rows that the HDF5 library reads, such as compressed ones."""

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows ``(b, d)`` at row numbers ``(b,)``, in any order.

        Raises:
            CacheError: if the file was changed, or cannot be read any more.
        """
        width = self.shape[1]
        order, places = _increasing(rows)
        found = np.empty((len(rows), width), np.float32)
        with read_errors(self.path), open_hdf5(self.path) as file:
            self._refuse_changed(self.path.stat())
            features = file["embeddings"]
            for run in _runs(places, 1, max(1, SPAN_BYTES // (4 * width))):
                own = places[run]
                stored = features[own[0] : own[-1] + 1]
                found[run if order is None else order[run]] = stored[own - own[0]]
        return found


def _increasing(places: NDArray[np.int64]) -> tuple[NDArray[np.intp] | None, NDArray[np.int64]]:
    """Return the order in which places ``(b,)`` increase, None if they do, and sorted places."""
    if (np.diff(places) >= 0).all():
        return None, places
    order = np.argsort(places, kind="stable")
    return order, places[order]


def _runs(places: NDArray[np.int64], step: int, span: int) -> Iterator[slice]:
    """Yield parts of increasing places ``(b,)`` that are read at once.

    Places of a part are multiples of ``step`` apart, at most ``GAP_ROWS`` from one to the next, and
    the part is at most ``span`` long.
    """
    distances, parts = np.diff(places), places // span
    ends = (distances > GAP_ROWS * step) | (distances % step != 0) | (np.diff(parts) != 0)
    starts = [0, *(np.flatnonzero(ends) + 1).tolist(), len(places)]
    for first, last in pairwise(starts):
        if last > first:
            yield slice(first, last)


def _read_all(file: Any, size: int) -> bytearray:
    """Return the next ``size`` bytes of an unbuffered file.

    Raises:
        ValueError: if it ends before.
    """
    content = bytearray(size)
    remaining = memoryview(content)
    while remaining:
        count = file.readinto(remaining)
        if not count:
            raise ValueError("it is shorter than it was")
        remaining = remaining[count:]
    return content
