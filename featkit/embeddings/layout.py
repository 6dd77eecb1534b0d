"""Storage of features in a cache file: number type and compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError, SpecError
from featkit.extras import require

TYPES = ("float32", "float16")
COMPRESSIONS = ("gzip", "zstd")
ZSTD_FILTER = 32015
"""Number of the zstd filter, as registered with the HDF Group."""


@dataclass(frozen=True)
class StorageLayout:
    """Number type and compression of stored features.

    Attributes:
        dtype: ``float32``, or ``float16``: half the size, each number rounded to eleven bits.
        compression: ``gzip``, which every HDF5 library can read, ``zstd``, which needs the package
            hdf5plugin, or None.
    """

    dtype: str = "float32"
    compression: str | None = None

    @classmethod
    def parse(cls, text: str) -> StorageLayout:
        """Parse ``float16``, ``gzip`` or ``float16,zstd``.

        Raises:
            SpecError: if a part is unknown or contradicts another.
        """
        dtype: str | None = None
        compression: str | None = None
        for part in text.split(","):
            if part in TYPES and dtype is None:
                dtype = part
            elif part in COMPRESSIONS and compression is None:
                compression = part
            else:
                raise SpecError(
                    f"store {text!r} is unknown; use one of: {', '.join(TYPES)}; "
                    f"{', '.join(COMPRESSIONS)}; or one of each, as in float16,zstd"
                )
        return cls(dtype or "float32", compression)

    def dataset_options(self) -> dict[str, Any]:
        """Return the compression arguments of h5py's ``create_dataset``.

        Raises:
            MissingExtraError: if zstd is requested and hdf5plugin is not installed.
        """
        if self.compression is None:
            return {}
        if self.compression == "gzip":
            return {"shuffle": True, "compression": "gzip"}
        return {"shuffle": True, **require("hdf5plugin", "zstd").Zstd()}


def convert_features(
    features: NDArray[np.float32], dtype: str | np.dtype[Any]
) -> NDArray[np.floating[Any]]:
    """Return features in the type in which they are stored.

    Raises:
        DataError: if a number is too large for it.
    """
    with np.errstate(over="ignore"):
        stored: NDArray[np.floating[Any]] = np.ascontiguousarray(features, dtype=dtype)
    if not np.isfinite(stored).all() and np.isfinite(features).all():
        largest = np.abs(features).max()
        raise DataError(
            f"features up to {largest:.3g} do not fit into float16: use --store float32"
        )
    return stored
