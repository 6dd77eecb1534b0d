"""How vectors lie in a cache file: their type, which decides them, and their compression, which does not."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError, MissingExtraError, SpecError

TYPES = ("float32", "float16")
COMPRESSIONS = ("gzip", "zstd")
ZSTD = 32015
"""The number under which HDF5 knows zstd."""


@dataclass(frozen=True)
class StorageLayout:
    """How vectors are stored.

    Attributes:
        dtype: ``float32``, or ``float16``: half the size, each number rounded to eleven bits.
        compression: ``gzip``, which every HDF5 has, ``zstd``, which needs the package hdf5plugin to read, or None.
    """

    dtype: str = "float32"
    compression: str | None = None

    @classmethod
    def parse(cls, text: str) -> StorageLayout:
        """Read ``float16``, ``gzip`` or ``float16,zstd``.

        Raises:
            SpecError: if a part is unknown or contradicts another.
        """
        parts = text.split(",")
        types, compressions = [p for p in parts if p in TYPES], [p for p in parts if p in COMPRESSIONS]
        if len(types) > 1 or len(compressions) > 1 or len(types) + len(compressions) < len(parts):
            known = f"one of {', '.join(TYPES)}, one of {', '.join(COMPRESSIONS)}, or both with a comma between"
            raise SpecError(f"store {text!r} is not known: give {known}")
        return cls(types[0] if types else "float32", compressions[0] if compressions else None)

    def filters(self) -> dict[str, Any]:
        """Return what h5py's ``create_dataset`` wants to know of the compression.

        Raises:
            MissingExtraError: if zstd is asked for without hdf5plugin.
        """
        if self.compression is None:
            return {}
        return {"shuffle": True, **({"compression": "gzip"} if self.compression == "gzip" else dict(_zstd()))}


def rounded(vectors: NDArray[np.float32], dtype: str | np.dtype[Any]) -> NDArray[np.floating[Any]]:
    """Return vectors in the type in which they are stored.

    Raises:
        DataError: if a number is too large for it.
    """
    with np.errstate(over="ignore"):
        stored: NDArray[np.floating[Any]] = np.ascontiguousarray(vectors, dtype=dtype)
    if not np.isfinite(stored).all() and np.isfinite(vectors).all():
        raise DataError(f"numbers up to {np.abs(vectors).max():.3g} do not fit into float16: use --store float32")
    return stored


def register_filters() -> bool:
    """Have HDF5 know zstd, where hdf5plugin is installed; return whether it is."""
    try:
        import_module("hdf5plugin")
    except ImportError:
        return False
    return True


def _zstd() -> Any:
    if not register_filters():
        raise MissingExtraError("hdf5plugin", "zstd")
    return import_module("hdf5plugin").Zstd()
