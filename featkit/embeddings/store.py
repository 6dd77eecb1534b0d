"""HDF5 files of embeddings: writing, reading and finding them. The only module that uses h5py.

Datasets, one row for each image: ``embeddings`` float32 or float16 ``(n, d)``, ``labels`` int64,
``ids``, ``keys`` (SHA-256 of the image's bytes), ``splits``, ``valid`` (false where the image could
not be read; its features are then NaN) and ``checksums`` (CRC-32 of each row of ``embeddings``).
Attributes: ``recipe``, ``classes`` and ``provenance`` (JSON), ``complete``.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.base import Embeddings
from featkit.embeddings.layout import ZSTD_FILTER, StorageLayout, convert_features
from featkit.embeddings.recipe import Recipe, describe_differences
from featkit.errors import CacheError, StaleCacheError
from featkit.extras import is_installed
from featkit.storage import replace_file, storage_errors

Block = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Increasing rows ``(b,)`` and their features ``(b, d)``; rows in no block are unreadable."""

StoredRow = tuple[Path, int]
"""A cache file and a row in it."""

_TEXT = h5py.string_dtype("utf-8")
_CHUNK_BYTES = 2**18


@dataclass(frozen=True)
class Header:
    """Everything in a file but the features.

    Attributes:
        recipe: what decided the features.
        ids, keys: names and content digests of the n images.
        labels: ``(n,)`` int64, positions in ``classes``.
        splits: ``(n,)`` text.
        classes: class names.
        provenance: recorded, not hashed: request, versions, device, times.
    """

    recipe: Recipe
    ids: tuple[str, ...]
    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    classes: tuple[str, ...]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class CacheEntry:
    """Description of one cache file.

    Attributes:
        path: the file.
        rows, width: shape of the features.
        invalid: number of images that could not be read.
        size: bytes on the disk.
        rounding: largest rounding error of a stored number, as a fraction of the largest number.
        modified: time of the last change, in seconds since 1970.
        recipe: what decided the features.
        provenance: recorded, not hashed.
    """

    path: Path
    rows: int
    width: int
    invalid: int
    size: int
    rounding: float
    modified: float
    recipe: Recipe
    provenance: Mapping[str, Any]


class _ErrorKeepingFile(io.FileIO):
    """A file that records its first failed write for ``check`` and reports every write as done.

    HDF5 cannot close a file that it cannot write: on a full disk it aborts the process (h5py issue
    914). So failed writes are remembered here and raised by ``check``, after HDF5 believes that
    everything was written.
    """

    failure: OSError | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")

    def write(self, data: Any) -> int:
        """Write all of ``data``, or record the error."""
        remaining = memoryview(data).cast("B")
        size = len(remaining)
        while remaining and self.failure is None:
            try:
                written = super().write(remaining)
            except OSError as error:
                self.failure = error
            else:
                remaining = remaining[written:]
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the length of the file, or record the error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self.failure is not None:
            raise self.failure


def write(
    path: Path, header: Header, blocks: Iterator[Block], layout: StorageLayout | None = None
) -> None:
    """Write blocks of rows to a partial file, then rename it to ``path``.

    The partial file is removed if the blocks end early, by an error or Ctrl-C. The caller holds a
    lock, so that no other process writes the same file.

    Raises:
        DataError: if a number is too large for float16.
        MissingExtraError: if the layout asks for a compression that is not installed.
        StorageError: if the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    layout = layout or StorageLayout()
    options = layout.dataset_options()
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        disk = _ErrorKeepingFile(partial)
    try:
        with disk, h5py.File(disk, "w") as file:
            _write_header(file, header)
            for rows, features in blocks:
                if "embeddings" not in file:
                    _create(file, features.shape[1], layout.dtype, options)
                _write_block(file, rows, features)
                with storage_errors(path):
                    disk.check()
            file.attrs["complete"] = True
        with storage_errors(path):
            disk.check()
            replace_file(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_header(file: Any, header: Header) -> None:
    file.create_dataset("labels", data=header.labels)
    file.create_dataset("ids", data=list(header.ids), dtype=_TEXT)
    file.create_dataset("keys", data=np.array(header.keys, dtype="S64"))
    file.create_dataset("splits", data=np.array(header.splits, dtype="S5"))
    file.create_dataset("valid", data=np.zeros(len(header.ids), bool))
    file.create_dataset("checksums", data=np.zeros(len(header.ids), np.uint32))
    file.attrs["recipe"] = header.recipe.to_json()
    file.attrs["classes"] = json.dumps(list(header.classes))
    file.attrs["provenance"] = json.dumps(header.provenance)
    file.attrs["complete"] = False


def _write_block(file: Any, rows: NDArray[np.int64], features: NDArray[np.float32]) -> None:
    stored = convert_features(features, file["embeddings"].dtype)
    # HDF5 writes a slice much faster than a list of rows.
    contiguous = len(rows) == rows[-1] - rows[0] + 1
    where = slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows
    file["embeddings"][where] = stored
    file["checksums"][where] = row_checksums(stored)
    file.attrs["rounding"] = max(file.attrs["rounding"], _rounding(stored))
    file["valid"][where] = True
    file.flush()


def _create(file: Any, width: int, dtype: str, options: Mapping[str, Any]) -> None:
    shape = (len(file["ids"]), width)
    chunk = max(1, min(shape[0], _CHUNK_BYTES // (4 * width)))
    file.create_dataset(
        "embeddings", shape, dtype, chunks=(chunk, width), fillvalue=np.nan, **options
    )
    file.attrs["rounding"] = 0.0


def _rounding(stored: NDArray[np.floating[Any]]) -> float:
    """Return the largest error of float16 as a fraction of the largest number; 0 for float32."""
    largest = np.abs(stored).max(initial=0)
    if stored.dtype != np.float16 or not largest:
        return 0.0
    return float(np.spacing(largest) / 2 / largest)


def row_checksums(features: NDArray[np.floating[Any]]) -> NDArray[np.uint32]:
    """Return the CRC-32 ``(n,)`` of each row's bytes, as little-endian float32."""
    rows = features.astype("<f4", copy=False)
    return np.array([zlib.crc32(row.tobytes()) for row in rows], dtype=np.uint32)


def read(path: Path, recipe: Recipe | None = None) -> Embeddings:
    """Read the valid rows of a file.

    Args:
        path: the file.
        recipe: the recipe that the file must have been made with; None for any.

    Raises:
        CacheError: if the file is missing, truncated, incomplete or not HDF5.
        StaleCacheError: if the recipe differs; the message names the fields.
    """
    with open_file(path) as file:
        found = _check_recipe(path, file, recipe)
        valid = file["valid"][:]
        stored = file["embeddings"][:]
        return Embeddings(
            x=_as_float32(stored if valid.all() else stored[valid]),
            y=file["labels"][:][valid],
            ids=tuple(np.asarray(file["ids"].asstr()[:])[valid].tolist()),
            classes=tuple(json.loads(file.attrs["classes"])),
            splits=file["splits"].asstr()[:].astype(np.str_)[valid],
            recipe=found,
        )


def _as_float32(stored: Any) -> NDArray[np.float32]:
    return np.asarray(stored, dtype=np.float32)


def _check_recipe(path: Path, file: Any, recipe: Recipe | None) -> Recipe:
    """Return the recipe of an open file, refusing one that differs from ``recipe``."""
    found = Recipe.from_json(file.attrs["recipe"])
    fields = found.differences(recipe) if recipe else {}
    if fields:
        reason = describe_differences(fields)
        raise StaleCacheError(f"{path} is stale ({reason}): extract again", fields)
    return found


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """Open a complete file for reading.

    Raises:
        CacheError: if the file is missing, truncated, incomplete or not HDF5.
    """
    if not path.is_file():
        raise CacheError(
            f"{path} not found: see `featkit cache ls`, or create it with `featkit extract`"
        )
    fix = f"remove it with `featkit cache rm {path}` and extract again"
    try:
        with h5py.File(path, "r") as file:
            if not file.attrs.get("complete", False):
                raise CacheError(f"{path} is not a complete embeddings file: {fix}")
            _check_filters(path, file)
            yield file
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CacheError(
            f"{path} is damaged or not an embeddings file ({reason}): {fix}"
        ) from error


def _check_filters(path: Path, file: Any) -> None:
    """Make sure that the compression of the features is installed.

    Raises:
        CacheError: if it is not.
    """
    properties = file["embeddings"].id.get_create_plist()
    filters = {properties.get_filter(index)[0] for index in range(properties.get_nfilters())}
    # Importing hdf5plugin registers its filters with HDF5.
    if ZSTD_FILTER in filters and not is_installed("hdf5plugin"):
        raise CacheError(f"{path} is compressed with zstd; install it: pip install 'featkit[zstd]'")


def describe(path: Path) -> CacheEntry:
    """Return the description of one file.

    Raises:
        CacheError: as ``open_file`` does.
    """
    with open_file(path) as file:
        status = path.stat()
        rows, width = file["embeddings"].shape
        return CacheEntry(
            path=path,
            rows=rows,
            width=width,
            invalid=int(rows - file["valid"][:].sum()),
            size=status.st_size,
            rounding=float(file.attrs.get("rounding", 0.0)),
            modified=status.st_mtime,
            recipe=Recipe.from_json(file.attrs["recipe"]),
            provenance=json.loads(file.attrs["provenance"]),
        )


def entries(cache: Path) -> tuple[list[CacheEntry], list[CacheError]]:
    """Return every readable file of a folder, newest first, and the errors of the others."""
    good, bad = [], []
    paths = sorted(cache.glob("*.h5"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in paths:
        try:
            good.append(describe(path))
        except CacheError as error:
            bad.append(error)
    return good, bad


def check(path: Path, recipe: Recipe) -> list[str]:
    """Check that a file is complete and has this recipe; return the names of unreadable images.

    Raises:
        CacheError: as ``read`` does, and StaleCacheError.
    """
    with open_file(path) as file:
        _check_recipe(path, file, recipe)
        names: list[str] = file["ids"].asstr()[:][~file["valid"][:]].tolist()
        return names


def read_header(path: Path) -> Header:
    """Return everything in a file but the features.

    Raises:
        CacheError: as ``open_file`` does.
    """
    with open_file(path) as file:
        return Header(
            recipe=Recipe.from_json(file.attrs["recipe"]),
            ids=tuple(file["ids"].asstr()[:].tolist()),
            keys=tuple(key.decode() for key in file["keys"][:]),
            labels=file["labels"][:],
            splits=file["splits"].asstr()[:].astype(np.str_),
            classes=tuple(json.loads(file.attrs["classes"])),
            provenance=json.loads(file.attrs["provenance"]),
        )


def find(cache: Path, recipe: Recipe) -> Path | None:
    """Return the file that was made by this recipe, under whatever data set name, or None."""
    matches = sorted(cache.glob(f"*-{recipe.fingerprint[:12]}.h5"))
    return matches[0] if matches else None


def locate(cache: Path, recipe: Recipe, keys: Iterable[str]) -> dict[str, StoredRow]:
    """Find images in all files that were made by the same network and preprocessing.

    Args:
        cache: folder of the cache files.
        recipe: names the network and the preprocessing.
        keys: content digests of the images.

    Returns:
        The file and row of each image that was found, by its key.
    """
    requested = set(keys)
    found: dict[str, StoredRow] = {}
    for entry in entries(cache)[0]:
        if not recipe.same_network(entry.recipe) or requested <= found.keys():
            continue
        with open_file(entry.path) as file:
            valid = file["valid"][:]
            stored_keys = [key.decode() for key in file["keys"][:]]
        for row in np.flatnonzero(valid).tolist():
            if stored_keys[row] in requested:
                found.setdefault(stored_keys[row], (entry.path, row))
    return found


def read_rows(places: Sequence[StoredRow]) -> NDArray[np.float32]:
    """Return the features ``(len(places), d)`` of rows of any files."""
    features: dict[StoredRow, NDArray[np.float32]] = {}
    for path in {path for path, _ in places}:
        rows = sorted({row for other, row in places if other == path})
        with open_file(path) as file:
            stored = _as_float32(file["embeddings"][rows])
        for row, values in zip(rows, stored, strict=True):
            features[path, row] = values
    return np.stack([features[place] for place in places])


@contextmanager
def open_rows(path: Path) -> Iterator[Callable[[NDArray[np.int64]], NDArray[np.floating[Any]]]]:
    """Open a file that may be larger than memory, to read some of its rows at a time.

    Yields a function from rows ``(b,)``, in any order, to features ``(b, d)`` in the type in which
    they are stored. It must be called from one thread at a time.

    Raises:
        CacheError: as ``open_file`` does.
    """
    with open_file(path) as file:
        stored = file["embeddings"]

        def read(rows: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
            # HDF5 takes increasing, distinct rows only.
            distinct, positions = np.unique(rows, return_inverse=True)
            features: NDArray[np.floating[Any]] = stored[distinct]
            return features[positions]

        yield read
