"""Read arrays that are too large for copies in blocks of rows.

An array may be memory-mapped. Its pages count as memory of the process once they have been read,
until the system needs them for something else: after each block they are given back.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGE_VALUES = 2**27
"""Numbers from which an array is read in blocks and not copied: 512 MiB of float32, which are
262,144 rows of 512 numbers."""

BLOCK_VALUES = 2**23
"""Numbers per block: 32 MiB of float32."""


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
