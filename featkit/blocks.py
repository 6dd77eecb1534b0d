"""Read arrays that are too large for copies in blocks of rows.

An array may be memory-mapped. Its pages count as memory of the process once they have been read,
until the system needs them for something else: after each block they are given back. Features in a
cache file are a ``RowView``, which holds no rows at all.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

LARGE_VALUES = 2**27
"""Numbers from which an array is read in blocks and not copied: 512 MiB of float32, which are
262,144 rows of 512 numbers."""

BLOCK_VALUES = 2**23
"""Numbers per block: 32 MiB of float32."""

VIEW_VALUES = 2**26
"""Numbers from which features stay in their file: 256 MiB of float32, which are 131,072 rows of 512
numbers."""


class RowSource(Protocol):
    """Rows of numbers that can be read; ``shape (n, d)`` and ``dtype`` are those of all rows."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the rows ``(b, d)`` at row numbers ``(b,)``, in any order."""
        ...


class RowView(NDArrayOperatorsMixin):
    """Features ``(n, d)`` that are read when they are asked for, such as those of a large file.

    Indexing by a slice, by row numbers or by booleans reads these rows into an array. Everything
    else that an array can do (its methods, arithmetic, ``np.asarray``) reads all rows into memory.
    The numbers are finite: whoever makes a view has checked them.

    Args:
        source: of the rows.
        rows: ``(n,)`` numbers of the rows of the source, in any order; None for all.
    """

    ndim, device = 2, "cpu"

    def __init__(self, source: RowSource, rows: NDArray[np.int64] | None = None) -> None:
        self._source, self._rows = source, rows
        self.dtype = source.dtype
        self.shape = source.shape if rows is None else (len(rows), source.shape[1])

    @property
    def size(self) -> int:
        """Number of values."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that all rows take in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<RowView of shape {self.shape}, {self.dtype.name}, not in memory>"

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for _, block in row_blocks(self):
            yield from block

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, tuple):
            if index and isinstance(index[0], slice):
                return self[index[0]][(slice(None), *index[1:])]
            return self[:][index]
        if isinstance(index, int | np.integer):
            return self._source.read(self._numbers(np.array([index])))[0]
        return self._source.read(self._numbers(index))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the rows are not in memory: they cannot be used without a copy")
        return np.asarray(self[:], dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = [np.asarray(each) if isinstance(each, RowView) else each for each in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def __getattr__(self, name: str) -> Any:
        # Not for other names: libraries ask for those of data frames and sparse matrices.
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        if not callable(getattr(np.ndarray, name)):
            return getattr(np.asarray(self), name)
        # Nothing is read to learn that there is such a method.
        return lambda *values, **options: getattr(np.asarray(self), name)(*values, **options)

    def select(self, rows: Any) -> RowView:
        """Return a view of some of the rows; nothing is read."""
        return RowView(self._source, self._numbers(rows))

    def _numbers(self, index: Any) -> NDArray[np.int64]:
        """Return the numbers of rows of the source.

        Raises:
            IndexError: if there is no such row.
        """
        n = len(self)
        if isinstance(index, slice):
            chosen = range(n)[index]
            rows = np.arange(chosen.start, chosen.stop, chosen.step)
        else:
            rows = np.asarray(index)
            if rows.dtype == bool:
                if rows.shape != (n,):
                    raise IndexError(f"{rows.shape} booleans for {n} rows")
                rows = np.flatnonzero(rows)
            elif not rows.size:
                rows = rows.astype(np.int64)
            if rows.ndim != 1 or rows.dtype.kind not in "iu":
                raise IndexError("rows are chosen by a slice, or by integers or booleans")
            outside = rows[(rows < -n) | (rows >= n)]
            if len(outside):
                raise IndexError(f"row {outside[0]} of {n}")
            rows = np.where(rows < 0, rows + n, rows)
        return rows if self._rows is None else self._rows[rows]


def is_view(x: Any) -> bool:
    """Return whether the rows of ``x`` are not in memory."""
    return isinstance(x, RowView)


def select_rows(x: Any, rows: Any) -> Any:
    """Return some rows of ``x (n, d)``: a view of a ``RowView``, if they are many; else an array.

    Args:
        x: an array or a ``RowView``.
        rows: their numbers, a slice or booleans.
    """
    if not isinstance(x, RowView):
        return x[rows]
    chosen = x.select(rows)
    return chosen if chosen.size > VIEW_VALUES else chosen[:]


def is_large(x: Any) -> bool:
    """Return whether an array ``(n, d)`` is read in blocks instead of being copied."""
    return int(np.prod(x.shape)) > LARGE_VALUES


def row_blocks(x: Any, values: int | None = None) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield blocks of the rows of ``x (n, d)`` with their positions.

    Args:
        x: an array, or an object with ``shape`` whose slices are arrays.
        values: numbers per block; None for ``BLOCK_VALUES``.
    """
    size = max(1, (values or BLOCK_VALUES) // max(1, x.shape[1]))
    for first in range(0, x.shape[0], size):
        part = slice(first, min(x.shape[0], first + size))
        yield part, x[part]
        release_pages(x)


def release_pages(x: Any) -> None:
    """Give the pages of a memory-mapped array back to the system, which reads them again if needed.

    Does nothing for other arrays, for mappings that may be written to, and on Windows.
    """
    while isinstance(x, np.ndarray) and not isinstance(x, np.memmap):
        x = x.base
    mapping = getattr(x, "_mmap", None)
    if mapping is not None and x.mode == "r" and hasattr(mapping, "madvise"):
        mapping.madvise(mmap.MADV_DONTNEED)


def all_finite(x: NDArray[Any]) -> bool:
    """Return whether all numbers of ``x (n, d)`` are finite."""
    return all(bool(np.isfinite(block).all()) for _, block in row_blocks(x))
