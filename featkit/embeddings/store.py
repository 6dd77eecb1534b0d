"""The HDF5 file of embeddings: the only module that knows h5py.

Datasets, one row for each image: ``embeddings`` float32 ``(n, d)``, ``labels`` int64, ``ids``, ``keys`` (SHA-256 of
the image's bytes), ``splits``, ``valid`` (false where the image could not be read; its vector is then NaN) and
``checksums`` (CRC-32 of each vector's bytes).
Attributes: ``recipe``, ``classes`` and ``provenance`` (JSON), ``complete``.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.base import Embeddings
from featkit.embeddings.disk import Disk
from featkit.embeddings.layout import ZSTD, StorageLayout, register_filters, rounded
from featkit.embeddings.recipe import Recipe, listed
from featkit.errors import CacheError, StaleCacheError
from featkit.storage import storage_errors

Block = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows ``(b,)``, increasing, and their vectors ``(b, d)``; a row that no block names is an unreadable image."""

_TEXT = h5py.string_dtype("utf-8")
_CHUNK_BYTES = 2**18


@dataclass(frozen=True)
class Header:
    """All that a file says beside the vectors.

    Attributes:
        recipe: what decided the vectors.
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
    """One file in a listing; ``rounding`` bounds the error of a stored number, as a share of the largest number."""

    path: Path
    rows: int
    width: int
    invalid: int
    size: int
    rounding: float
    modified: float
    recipe: Recipe
    provenance: Mapping[str, Any]


def write(path: Path, header: Header, blocks: Iterator[Block], layout: StorageLayout | None = None) -> None:
    """Write blocks of rows to a partial file, and publish it under ``path`` when there are no more.

    Whatever ends the blocks early (an error, Ctrl-C) leaves nothing behind. The caller sees to it that nobody else
    writes the same file.

    Raises:
        DataError: if a number is too large for float16.
        MissingExtraError: if the layout asks for a compression that is not installed.
        StorageError: if the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    layout = layout or StorageLayout()
    filters = layout.filters()
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        disk = Disk(partial)
    try:
        with disk, h5py.File(disk, "w") as file:
            _write_header(file, header)
            for rows, vectors in blocks:
                if "embeddings" not in file:
                    _create(file, vectors.shape[1], layout.dtype, filters)
                _write_block(file, rows, vectors)
                with storage_errors(path):
                    disk.check()
            file.attrs["complete"] = True
        with storage_errors(path):
            disk.check()
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the operating system put a file, or a folder's list of files, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _write_block(file: Any, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
    stored = rounded(vectors, file["embeddings"].dtype)
    whole = len(rows) == rows[-1] - rows[0] + 1
    where = slice(int(rows[0]), int(rows[-1]) + 1) if whole else rows
    file["embeddings"][where] = stored
    file["checksums"][where] = row_checksums(stored)
    file.attrs["rounding"] = max(file.attrs["rounding"], _rounding(stored))
    file["valid"][where] = True
    file.flush()


def _create(file: Any, width: int, dtype: str, filters: Mapping[str, Any]) -> None:
    shape = (len(file["ids"]), width)
    chunk = max(1, min(shape[0], _CHUNK_BYTES // (4 * width)))
    file.create_dataset("embeddings", shape, dtype, chunks=(chunk, width), fillvalue=np.nan, **filters)
    file.attrs["rounding"] = 0.0


def _rounding(stored: NDArray[np.floating[Any]]) -> float:
    """Return the largest error that float16 may have made, as a share of the largest number; 0 for float32."""
    largest = np.abs(stored).max(initial=0)
    return float(np.spacing(largest) / 2 / largest) if stored.dtype == np.float16 and largest else 0.0


def row_checksums(vectors: NDArray[np.floating[Any]]) -> NDArray[np.uint32]:
    """Return the CRC-32 of each vector's bytes, as little-endian float32."""
    return np.array([zlib.crc32(row.tobytes()) for row in vectors.astype("<f4", copy=False)], dtype=np.uint32)


def read(path: Path, recipe: Recipe | None = None) -> Embeddings:
    """Read the valid rows of a file; with ``recipe``, only if it is the one that made the file.

    Raises:
        CacheError: if the file is missing, truncated, incomplete or not HDF5.
        StaleCacheError: if the recipe is another one; the message names the fields that differ.
    """
    with open_file(path) as file:
        made_by = _check_recipe(path, file, recipe)
        rows = file["valid"][:]
        return Embeddings(
            x=float32(file["embeddings"][:] if rows.all() else file["embeddings"][:][rows]),
            y=file["labels"][:][rows],
            ids=tuple(np.asarray(file["ids"].asstr()[:])[rows].tolist()),
            classes=tuple(json.loads(file.attrs["classes"])),
            splits=file["splits"].asstr()[:].astype(np.str_)[rows],
            recipe=made_by,
        )


def float32(stored: Any) -> NDArray[np.float32]:
    """Return stored numbers as float32."""
    return np.asarray(stored, dtype=np.float32)


def _check_recipe(path: Path, file: Any, recipe: Recipe | None) -> Recipe:
    """Return the recipe in an open file, refusing it if it differs from the one asked for."""
    made_by = Recipe.from_json(file.attrs["recipe"])
    fields = made_by.differences(recipe) if recipe else {}
    if fields:
        raise StaleCacheError(f"{path} was made by another recipe ({listed(fields)}): extract again", fields)
    return made_by


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """Open a whole file for reading.

    Raises:
        CacheError: if the file is missing, truncated, incomplete or not HDF5.
    """
    if not path.is_file():
        raise CacheError(f"{path} is not there: see `featkit cache ls`, or make it with `featkit extract`")
    again = f"remove it with `featkit cache rm {path}` and extract again"
    try:
        with h5py.File(path, "r") as file:
            if not file.attrs.get("complete", False):
                raise CacheError(f"{path} is not a complete embeddings file: {again}")
            _need_filters(path, file)
            yield file
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CacheError(f"{path} is damaged or not an embeddings file ({reason}): {again}") from error


def _need_filters(path: Path, file: Any) -> None:
    """Make sure that what compressed the vectors is installed.

    Raises:
        CacheError: if it is not.
    """
    properties = file["embeddings"].id.get_create_plist()
    filters = {properties.get_filter(place)[0] for place in range(properties.get_nfilters())}
    if ZSTD in filters and not register_filters():
        raise CacheError(f"{path} is compressed with zstd, to be read with pip install 'featkit[zstd]'")


def describe(path: Path) -> CacheEntry:
    """Return what a listing shows of one file.

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
    """Return every readable file of a folder, newest first, and what is wrong with the others."""
    good, bad = [], []
    for path in sorted(cache.glob("*.h5"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            good.append(describe(path))
        except CacheError as error:
            bad.append(error)
    return good, bad


def check(path: Path, recipe: Recipe) -> list[str]:
    """Check that a file is whole and was made by this recipe; return the names of the images it has no vector for.

    Raises:
        CacheError: as ``read`` does, and StaleCacheError.
    """
    with open_file(path) as file:
        _check_recipe(path, file, recipe)
        names: list[str] = file["ids"].asstr()[:][~file["valid"][:]].tolist()
        return names


def read_header(path: Path) -> Header:
    """Return all that a file says beside the vectors.

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
