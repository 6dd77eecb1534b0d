"""HDF5 files of embeddings: writing, reading and finding them.

Datasets, one row for each image: ``embeddings`` float32 or float16 ``(n, d)``, ``labels`` int64,
``ids``, ``keys`` (SHA-256 of the image's bytes), ``splits``, ``valid`` (false where the image could
not be read; its features are then NaN) and ``checksums`` (CRC-32 of each row of ``embeddings``).
Attributes: ``recipe``, ``classes`` and ``provenance`` (JSON), ``complete``, ``columns`` (JSON:
digests of the columns that the recipe does not cover) and ``seal`` (digest of the attributes).
"""

from __future__ import annotations

import io
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featkit import blocks
from featkit.blocks import RowView, row_blocks
from featkit.embeddings.base import Embeddings
from featkit.embeddings.layout import StorageLayout, convert_features
from featkit.embeddings.recipe import Part, Recipe, describe_differences
from featkit.embeddings.remembered import Remembered
from featkit.embeddings.stored import DecodedRows, PlainRows, version_of
from featkit.embeddings.validation import (
    COLUMNS,
    check_columns,
    column_digests,
    damaged,
    open_datasets,
    open_hdf5,
    read_attributes,
    read_errors,
    read_recipe,
    seal,
)
from featkit.errors import CacheError, StaleCacheError
from featkit.storage import file_status, replace_file, storage_errors

Block = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Increasing rows ``(b,)`` and their features ``(b, d)``; rows in no block are unreadable."""

StoredRow = tuple[Path, int]
"""A cache file and a row in it."""

MULTILABEL = "multilabel"
"""Key of the provenance of a file whose classes are sets of labels, see ``images.multilabel``."""

_TEXT = h5py.string_dtype("utf-8")
_CHUNK_BYTES = 2**18
_CHECK_ROWS = 4096
_KEYS_AT_ONCE = 2**16

log = logging.getLogger(__name__)


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
        positions: of a shard, the row of each image in the whole image set; None otherwise.
    """

    recipe: Recipe
    ids: tuple[str, ...]
    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    classes: tuple[str, ...]
    provenance: Mapping[str, Any]
    positions: NDArray[np.int64] | None = None


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
    layout = layout or StorageLayout()
    options = layout.dataset_options()
    with new_file(path) as new:
        file = new.hdf5
        valid = np.zeros(len(header.ids), bool)
        checksums = np.zeros(len(header.ids), np.uint32)
        _write_header(file, header)
        for rows, features in blocks:
            if "embeddings" not in file:
                _create(file, features.shape[1], layout.dtype, options)
            checksums[rows] = _write_block(file, rows, features)
            valid[rows] = True
            new.check()
        _complete(file, header, valid, checksums)


class NewFile:
    """A cache file that is written under a temporary name.

    Attributes:
        path: its final name; may be set until the file is complete.
        hdf5: the open file.
    """

    def __init__(self, path: Path, hdf5: Any, disk: _ErrorKeepingFile) -> None:
        self.path = path
        self.hdf5 = hdf5
        self.discarded = False
        self._disk = disk

    def create(self, rows: int, width: int, layout: StorageLayout) -> None:
        """Create all datasets of a file that is written with ``write_block``, still empty."""
        for name, kind in _TYPES.items():
            self.hdf5.create_dataset(name, (rows,), kind)
        _create(self.hdf5, width, layout.dtype, layout.dataset_options())

    def create_virtual(self, sources: Sequence[tuple[str, int]], width: int, dtype: Any) -> None:
        """Create all datasets; the features are those of other files, one after the other.

        Args:
            sources: path of each file, relative to the folder of this one, and its number of rows.
            width: of the features.
            dtype: type of the features.
        """
        rows = sum(count for _, count in sources)
        for name, kind in {**_TYPES, "order": np.int64}.items():
            self.hdf5.create_dataset(name, (rows,), kind)
        layout = h5py.VirtualLayout((rows, width), dtype)
        first = 0
        for path, count in sources:
            layout[first : first + count] = h5py.VirtualSource(path, "embeddings", (count, width))
            first += count
        self.hdf5.create_virtual_dataset("embeddings", layout, fillvalue=np.nan)

    def write_block(self, first: int, block: Mapping[str, NDArray[Any]]) -> None:
        """Write values of the datasets from row ``first`` on.

        Raises:
            StorageError: if the disk is full.
        """
        for name, values in block.items():
            kind = _TYPES.get(name)
            stored = values.astype(kind, copy=False) if kind in ("S64", "S5") else values
            self.hdf5[name][first : first + len(values)] = stored
        self.hdf5.flush()
        self.check()

    def complete(self, attributes: Mapping[str, Any]) -> None:
        """Write the attributes and mark the file as complete.

        Args:
            attributes: ``recipe``, ``classes``, ``provenance``, ``columns`` and ``rounding``.
        """
        self.hdf5.attrs.update(attributes)
        self.hdf5.attrs["seal"] = seal(dict(self.hdf5.attrs.items()), self.hdf5["embeddings"])
        self.hdf5.attrs["complete"] = True

    def discard(self) -> None:
        """Remove the file when the block ends."""
        self.discarded = True

    def check(self) -> None:
        """Raise StorageError if something could not be written."""
        with storage_errors(self.path):
            self._disk.check()


@contextmanager
def new_file(path: Path) -> Iterator[NewFile]:
    """Open a new file under a temporary name; rename it when the block ends, unless by an error.

    Raises:
        StorageError: if the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        disk = _ErrorKeepingFile(partial)
    try:
        with disk, h5py.File(disk, "w") as file:
            new = NewFile(path, file, disk)
            yield new
        new.check()
        if not new.discarded:
            with storage_errors(new.path):
                replace_file(partial, new.path)
    finally:
        partial.unlink(missing_ok=True)


_TYPES: dict[str, Any] = {
    "labels": np.int64,
    "ids": _TEXT,
    "keys": "S64",
    "splits": "S5",
    "valid": bool,
    "checksums": np.uint32,
}
"""Types of the columns in a file."""


def _write_header(file: Any, header: Header) -> None:
    file.create_dataset("labels", data=header.labels)
    file.create_dataset("ids", data=list(header.ids), dtype=_TEXT)
    file.create_dataset("keys", data=np.array(header.keys, dtype=_TYPES["keys"]))
    file.create_dataset("splits", data=np.array(header.splits, dtype=_TYPES["splits"]))
    if header.positions is not None:
        file.create_dataset("positions", data=header.positions)
    file.attrs["recipe"] = header.recipe.to_json()
    file.attrs["classes"] = json.dumps(list(header.classes))
    file.attrs["provenance"] = json.dumps(header.provenance)
    file.attrs["complete"] = False


def _write_block(
    file: Any, rows: NDArray[np.int64], features: NDArray[np.float32]
) -> NDArray[np.uint32]:
    """Write features of some rows; return the checksums of these rows."""
    stored = convert_features(features, file["embeddings"].dtype)
    # HDF5 writes a slice much faster than a list of rows.
    contiguous = len(rows) == rows[-1] - rows[0] + 1
    where = slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows
    file["embeddings"][where] = stored
    file.attrs["rounding"] = max(file.attrs["rounding"], _rounding(stored))
    file.flush()
    return row_checksums(stored)


def _complete(
    file: Any, header: Header, valid: NDArray[np.bool_], checksums: NDArray[np.uint32]
) -> None:
    """Write what is known only after the last block, and mark the file as complete."""
    file.create_dataset("valid", data=valid)
    file.create_dataset("checksums", data=checksums)
    file.attrs["columns"] = column_digests(np.asarray(header.splits), valid)
    file.attrs["seal"] = seal(dict(file.attrs.items()), file["embeddings"])
    file.attrs["complete"] = True


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
    """Return the CRC-32 ``(n,)`` of each row's bytes, as little-endian float32.

    It takes 11 ms for 8,677 rows of 512 numbers on one core.
    """
    rows = np.ascontiguousarray(features, dtype="<f4")
    return np.fromiter(map(zlib.crc32, rows), np.uint32, len(rows))


class CacheFile:
    """An open cache file; whatever it returns has been checked.

    Opening it checks its structure and its attributes.

    Attributes:
        path: the file.
        recipe: what decided the features.
        classes: class names.
        provenance: recorded, not hashed.
        rows, width: shape of the features.
        dtype: type of the stored numbers.
    """

    def __init__(self, path: Path, file: Any, recipe: Recipe | None = None) -> None:
        self.path = path
        self._columns: dict[str, Any] | None = None
        self._datasets = open_datasets(file)
        features = self._datasets["embeddings"]
        self.rows, self.width = features.shape
        self.dtype = features.dtype
        self._places = _places_of(self._datasets.get("order"))
        if recipe is not None:
            _refuse_other_recipe(path, read_recipe(file), recipe)
        attributes = read_attributes(path, file, features)
        self.recipe, self.classes = attributes.recipe, attributes.classes
        self.provenance, self.rounding = attributes.provenance, attributes.rounding
        self._digests = attributes.columns

    @property
    def columns(self) -> dict[str, Any]:
        """Return the data of all columns by name, checked against the recipe's digests.

        ``ids`` and ``keys`` are lists of str, ``splits`` an array of str, ``labels`` int64.

        Raises:
            CacheError: if one of them is damaged.
        """
        if self._columns is None:
            with read_errors(self.path):
                columns = self._read_columns()
                check_columns(self.recipe, self.classes, columns, self._digests)
                self._columns = columns
        return self._columns

    def _read_columns(self) -> dict[str, Any]:
        columns = self._read_slices(slice(None), [name for name in COLUMNS if name != "keys"])
        # In blocks, as an array of texts takes four bytes for each letter.
        keys: list[str] = []
        for first in range(0, self.rows, _KEYS_AT_ONCE):
            part = slice(first, first + _KEYS_AT_ONCE)
            keys += _READERS["keys"](self._datasets["keys"], part).tolist()
        columns["keys"] = np.array(keys, object)
        if self._places is not None:
            columns = {name: values[self._places] for name, values in columns.items()}
        return {**columns, "ids": columns["ids"].tolist(), "keys": columns["keys"].tolist()}

    def _read_slices(self, rows: slice, names: Iterable[str] = COLUMNS) -> dict[str, NDArray[Any]]:
        """Return a slice of some columns as arrays, in the order of the file."""
        return {name: _READERS[name](self._datasets[name], rows) for name in names}

    @property
    def part(self) -> Part | None:
        """Return what a shard holds; None for a file of all images.

        Raises:
            CacheError: if its description is damaged.
        """
        if "shard" not in self.provenance:
            return None
        with read_errors(self.path):
            return Part.from_dict(self.provenance["shard"], self._datasets["positions"][:])

    def read_positions(self, rows: slice) -> NDArray[np.int64]:
        """Return the positions ``(b,)`` of rows of a shard in the whole image set."""
        with read_errors(self.path):
            found: NDArray[np.int64] = self._datasets["positions"][rows]
            return found

    def read_block(self, rows: slice, names: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Return a slice of some columns of a file without ``order``, as arrays.

        Unlike ``columns`` it reads no others and does not check them. With ``embeddings``,
        ``valid`` and ``checksums``, the features are checked.

        Raises:
            CacheError: if features are damaged.
        """
        with read_errors(self.path):
            block = self._read_slices(rows, [name for name in names if name != "embeddings"])
            if "embeddings" in names:
                features = block["embeddings"] = self._datasets["embeddings"][rows]
                if not _are_intact(features, block["valid"], block["checksums"]).all():
                    raise ValueError("features are damaged")
        return block

    def count_invalid(self) -> int:
        """Return the number of images that could not be read."""
        with read_errors(self.path):
            return int(self.rows - np.count_nonzero(self._datasets["valid"][:]))

    def read_rows(self, rows: NDArray[np.int64] | slice) -> NDArray[np.floating[Any]]:
        """Return stored features ``(b, d)`` of increasing, distinct rows, in the stored type.

        Raises:
            CacheError: if one of them is damaged.
        """
        features, intact = self.read_intact(rows)
        if not intact.all():
            names = np.array(self.columns["ids"], object)[rows][~intact].tolist()
            raise self._damaged_features(names)
        return features

    def _damaged_features(self, names: Sequence[str]) -> CacheError:
        return damaged(
            self.path, f"the features of {len(names)} images, {names[0]} the first, are damaged"
        )

    def view_rows(self) -> RowView | None:
        """Return the features of all readable images, which stay in the file.

        All of them are read and checked once, block by block. They are read again without the file
        being open. None for a virtual dataset, whose rows are in other files.

        Raises:
            CacheError: if one of them is damaged.
        """
        features = self._datasets["embeddings"]
        if features.is_virtual or self._places is not None:
            return None
        with read_errors(self.path):
            version = version_of(self.path.stat())
            places = _chunk_places(features)
        source: DecodedRows | PlainRows = DecodedRows(self.path, features.shape, version)
        if places is not None:
            source = PlainRows(
                self.path,
                features.shape,
                version,
                stored=features.dtype,
                chunk_rows=features.chunks[0] if features.chunks else self.rows,
                places=places,
            )
        columns = self.columns
        wrong: list[int] = []
        # Through the source, which checks that it finds the rows where they are.
        for part, block in row_blocks(RowView(source)):
            intact = _are_intact(block, columns["valid"][part], columns["checksums"][part])
            wrong += (np.flatnonzero(~intact) + part.start).tolist()
        if wrong:
            raise self._damaged_features([columns["ids"][row] for row in wrong])
        valid = columns["valid"]
        return RowView(source, None if valid.all() else np.flatnonzero(valid))

    def read_intact(
        self, rows: NDArray[np.int64] | slice
    ) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]:
        """Return stored features ``(b, d)`` and which of them ``(b,)`` are intact.

        Features of a readable image are intact if they are finite and have the recorded checksum.
        Those of an unreadable image were never written: all are NaN.
        """
        valid, checksums = self.columns["valid"][rows], self.columns["checksums"][rows]
        with read_errors(self.path):
            features = self._read_features(rows)
        return features, _are_intact(features, valid, checksums)

    def _read_features(self, rows: NDArray[np.int64] | slice) -> NDArray[np.floating[Any]]:
        features = self._datasets["embeddings"]
        if self._places is None:
            return np.asarray(features[rows])
        places = self._places[rows]
        if len(places) == self.rows:
            return np.asarray(features[:][places])
        # HDF5 takes increasing rows only.
        increasing = np.argsort(places)
        found = np.empty((len(places), self.width), features.dtype)
        found[increasing] = features[places[increasing]]
        return found


def _chunk_places(features: Any) -> NDArray[np.int64] | None:
    """Return the position in the file of each chunk of whole rows, in bytes.

    None if rows cannot be read there: they are compressed, or some were never written.
    """
    properties = features.id.get_create_plist()
    if properties.get_nfilters() or features.file.userblock_size:
        return None
    rows, width = features.shape
    if features.chunks is None:
        place = features.id.get_offset()
        return None if place is None else np.array([place], np.int64)
    chunk_rows, chunk_width = features.chunks
    chunk_iter = getattr(features.id, "chunk_iter", None)  # h5py may be built without it
    if chunk_width != width or chunk_iter is None:
        return None
    places = np.full(-(-rows // chunk_rows), -1, np.int64)

    def note(chunk: Any) -> None:
        if chunk.byte_offset is not None and not chunk.filter_mask:
            places[chunk.chunk_offset[0] // chunk_rows] = chunk.byte_offset

    chunk_iter(note)
    return None if (places < 0).any() else places


def _are_intact(
    features: NDArray[np.floating[Any]], valid: NDArray[np.bool_], checksums: NDArray[np.uint32]
) -> NDArray[np.bool_]:
    """Return which rows ``(b,)`` are intact, see ``CacheFile.read_intact``."""
    intact: NDArray[np.bool_] = row_checksums(features) == checksums
    intact &= np.isfinite(features).all(axis=1)
    unreadable = ~valid
    unwritten = np.isnan(features[unreadable]).all(axis=1) & (checksums[unreadable] == 0)
    intact[unreadable] = unwritten
    return intact


_READERS: dict[str, Callable[[Any, slice], NDArray[Any]]] = {
    "labels": lambda data, rows: data[rows].astype(np.int64),
    "ids": lambda data, rows: data.asstr()[rows],
    "keys": lambda data, rows: data[rows].astype(np.str_),
    "splits": lambda data, rows: data[rows].astype(np.str_),
    "valid": lambda data, rows: data[rows],
    "checksums": lambda data, rows: data[rows],
}


def _places_of(order: Any) -> NDArray[np.int64] | None:
    """Return the row in a virtual file of each image; None for files in the order of the images.

    Raises:
        ValueError: if the order is damaged.
    """
    if order is None:
        return None
    rows = order[:]
    places = np.full(len(rows), -1, np.int64)
    if rows.min() < 0 or rows.max() >= len(rows):
        raise ValueError("order is not a permutation of its rows")
    places[rows] = np.arange(len(rows))
    if places.min() < 0:
        raise ValueError("order is not a permutation of its rows")
    return places


@contextmanager
def open_file(path: Path, recipe: Recipe | None = None) -> Iterator[CacheFile]:
    """Open a complete file for reading.

    Args:
        path: the file.
        recipe: the recipe that the file must have been made with; None for any.

    Raises:
        CacheError: if the file is missing, locked, damaged, incomplete or not an embeddings file.
        StaleCacheError: if the recipe differs; the message names the fields.
    """
    file = open_hdf5(path)
    try:
        with read_errors(path):
            opened = CacheFile(path, file, recipe)
        yield opened
    finally:
        file.close()


def read(path: Path, recipe: Recipe | None = None) -> Embeddings:
    """Read the valid rows of a file.

    Args:
        path: the file.
        recipe: the recipe that the file must have been made with; None for any.

    Raises:
        CacheError: if the file is missing, locked, damaged, incomplete or not an embeddings file.
        StaleCacheError: if the recipe differs; the message names the fields.
    """
    return read_with_validity(path, recipe)[0]


def read_with_validity(
    path: Path, recipe: Recipe | None = None
) -> tuple[Embeddings, NDArray[np.bool_]]:
    """Read the valid rows of a file, and which of all its rows ``(n,)`` are valid.

    Args:
        path: the file.
        recipe: the recipe that the file must have been made with; None for any.

    Raises:
        CacheError: as ``read`` does, and StaleCacheError.
    """
    with open_file(path, recipe) as file:
        columns = file.columns
        valid = columns["valid"]
        embeddings = Embeddings(
            x=_valid_features(file, valid),
            y=columns["labels"][valid],
            ids=tuple(compress(columns["ids"], valid)),
            classes=file.classes,
            splits=columns["splits"][valid],
            recipe=file.recipe,
            multilabel=bool(file.provenance.get(MULTILABEL)),
        )
    return embeddings, valid


def _valid_features(file: CacheFile, valid: NDArray[np.bool_]) -> Any:
    """Return the features of readable images, as a ``RowView`` if they are many."""
    if file.rows * file.width > blocks.VIEW_VALUES:
        view = file.view_rows()
        if view is not None:
            return view
    stored = file.read_rows(slice(None))
    return _as_float32(stored if valid.all() else stored[valid])


def _as_float32(stored: Any) -> NDArray[np.float32]:
    return np.asarray(stored, dtype=np.float32)


def _refuse_other_recipe(path: Path, found: Recipe, recipe: Recipe) -> None:
    """Refuse a file that was made by another recipe."""
    fields = found.differences(recipe)
    if not fields:
        return
    reason = describe_differences(fields)
    if path.stem.endswith(recipe.fingerprint[:12]):
        # Extracting again would find the same file by its name.
        raise damaged(path, f"its name does not match its recipe: {reason}")
    raise StaleCacheError(f"{path} is stale ({reason}): extract again", fields)


def describe(path: Path) -> CacheEntry:
    """Return the description of one file.

    Raises:
        CacheError: as ``open_file`` does.
    """
    with open_file(path) as file, read_errors(path):
        status = path.stat()
        return CacheEntry(
            path=path,
            rows=file.rows,
            width=file.width,
            invalid=file.count_invalid(),
            size=status.st_size,
            rounding=file.rounding,
            modified=status.st_mtime,
            recipe=file.recipe,
            provenance=file.provenance,
        )


def entries(cache: Path) -> tuple[list[CacheEntry], list[CacheError]]:
    """Return every readable file of a folder, newest first, and the errors of the others."""
    return _describe_all(files_in(cache))


def files_in(cache: Path) -> list[Path]:
    """Return the cache files of a folder by name; none if it does not exist."""
    # Comparing paths takes longer than reading their names.
    return sorted(cache.glob("*.h5"), key=lambda path: path.name)


def _describe_all(paths: Iterable[Path]) -> tuple[list[CacheEntry], list[CacheError]]:
    good, bad = [], []
    catalogues: dict[str, Catalogue] = {}
    for path in paths:
        folder = str(path.parent)
        if folder not in catalogues:
            catalogues[folder] = Catalogue(path.parent)
        try:
            good.append(catalogues[folder].describe(path))
        except CacheError as error:
            bad.append(error)
    for catalogue in catalogues.values():
        catalogue.save()
    good.sort(key=lambda entry: entry.modified, reverse=True)
    return good, bad


CATALOGUE_VERSION = 1
"""Version of the entries of a catalogue, and of the checks that their files passed."""

_WORTH_A_CATALOGUE = 8
"""A folder with fewer files has no catalogue: opening them takes 2 ms each."""

_NUMBERS = ("rows", "width", "invalid", "size", "rounding", "modified")
"""Fields of ``CacheEntry`` that are numbers."""

_MOST_OTHERS = 100
"""Descriptions of files that are not asked for, most of which were removed."""


class Catalogue:
    """Descriptions of the files of a cache folder, in one file, so that they need not be opened.

    A description is used as long as the file did not change, see ``embeddings.remembered``. What is
    read from a cache file afterwards is checked as ever, its recipe against the description too.

    Args:
        folder: the cache folder.
    """

    def __init__(self, folder: Path) -> None:
        header = {"format": "featkit catalogue of cache files", "version": CATALOGUE_VERSION}
        self._remembered = Remembered(
            folder / ".catalogue.json",
            header,
            "all cache files are opened again",
            most_others=_MOST_OTHERS,
        )

    def describe(self, path: Path) -> CacheEntry:
        """Return the description of a file of the folder; raises CacheError as ``describe``."""
        try:
            status = file_status(str(path))
        except OSError:  # opening it raises an error that says what to do
            return describe(path)
        known = self._remembered.get(path.name, status)
        if known is not None:
            with suppress(TypeError, ValueError):  # not written by featkit
                values, recipe, provenance = known
                if not _may_be_virtual(provenance):
                    return CacheEntry(
                        path=path, recipe=Recipe(**recipe), provenance=provenance, **values
                    )
        entry = describe(path)
        if _may_be_virtual(entry.provenance):
            return entry
        values = {name: getattr(entry, name) for name in _NUMBERS}
        remembered = [values, entry.recipe.to_dict(), dict(entry.provenance)]
        self._remembered.put(path.name, status, remembered)
        return entry

    def save(self) -> None:
        """Write new descriptions, unless there are few files; do nothing in a read-only folder."""
        if len(self._remembered) or self._remembered.new >= _WORTH_A_CATALOGUE:
            problem = self._remembered.save()
            if problem:
                log.debug("no catalogue of the cache files can be written: %s", problem)


def _may_be_virtual(provenance: Mapping[str, Any]) -> bool:
    """Return whether a file was merged from shards.

    If it is virtual, its own size and times do not change when one of its shards does.
    """
    return "shards" in provenance


def check(path: Path, recipe: Recipe) -> list[str]:
    """Check that a file is complete and has this recipe; return the names of unreadable images.

    Raises:
        CacheError: as ``read`` does, and StaleCacheError.
    """
    with open_file(path, recipe) as file:
        return list(compress(file.columns["ids"], ~file.columns["valid"]))


def read_header(path: Path) -> Header:
    """Return everything in a file but the features.

    Raises:
        CacheError: as ``open_file`` does.
    """
    with open_file(path) as file:
        columns = file.columns
        return Header(
            recipe=file.recipe,
            ids=tuple(columns["ids"]),
            keys=tuple(columns["keys"]),
            labels=columns["labels"],
            splits=columns["splits"],
            classes=file.classes,
            provenance=file.provenance,
            positions=None if file.part is None else file.part.positions,
        )


def find(cache: Path, recipe: Recipe) -> Path | None:
    """Return the file that was made by this recipe, under whatever data set name, or None."""
    matches = sorted(cache.glob(f"*-{recipe.fingerprint[:12]}.h5"))
    return matches[0] if matches else None


def locate(
    cache: Path, recipe: Recipe, keys: Iterable[str], large: Set[str] = frozenset()
) -> dict[str, StoredRow]:
    """Find intact features of images in all files of a folder that the same network made.

    Args:
        cache: folder of the cache files.
        recipe: as for ``locate_in``.
        keys: as for ``locate_in``.
        large: as for ``locate_in``.
    """
    return locate_in(files_in(cache), recipe, keys, large)


def locate_in(
    files: Iterable[Path], recipe: Recipe, keys: Iterable[str], large: Set[str] = frozenset()
) -> dict[str, StoredRow]:
    """Find intact features of images in those files that were made by the same network.

    Damaged files are passed over, and damaged rows of other files: their features are computed
    again. A warning in the log of this module names them.

    Args:
        files: the cache files; those that do not exist any more are passed over.
        recipe: names the network and the preprocessing.
        keys: content digests of the images.
        large: digests of the images whose pixels depend on ``recipe.decode``.

    Returns:
        The file and row of each image that was found, by its key.
    """
    requested = set(keys)
    found: dict[str, StoredRow] = {}
    for entry in _describe_all(files)[0]:
        missing = requested - found.keys()
        if entry.recipe.decode != recipe.decode:
            missing -= large
        same = recipe.same_network(replace(entry.recipe, decode=recipe.decode))
        if not missing or not same:
            continue
        try:
            found.update(_intact_rows(entry, missing))
        except CacheError as error:
            log.warning("%s; its features are computed again", error)
    return found


def _intact_rows(entry: CacheEntry, keys: Set[str]) -> dict[str, StoredRow]:
    """Return file and row of the images with these keys whose features are intact.

    Raises:
        CacheError: if the file is damaged, or is not the one that was described.
    """
    path = entry.path
    with open_file(path, entry.recipe) as file:
        row_of: dict[str, int] = {}
        for row in np.flatnonzero(file.columns["valid"]).tolist():
            key = file.columns["keys"][row]
            if key in keys:
                row_of.setdefault(key, row)
        rows = np.array(sorted(row_of.values()), dtype=np.int64)
        intact: set[int] = set()
        for first in range(0, len(rows), _CHECK_ROWS):
            block = rows[first : first + _CHECK_ROWS]
            intact.update(block[file.read_intact(block)[1]].tolist())
    if len(intact) < len(rows):
        log.warning(
            "%s: the features of %d images are damaged and are computed again; remove the file "
            "with `featkit cache rm`",
            path,
            len(rows) - len(intact),
        )
    return {key: (path, row) for key, row in row_of.items() if row in intact}


def read_rows(places: Sequence[StoredRow]) -> NDArray[np.float32]:
    """Return the features ``(len(places), d)`` of rows of any files, at least one.

    Raises:
        CacheError: as ``open_file`` does, and if one of the rows is damaged.
    """
    with open_places() as read:
        return read(places)


@contextmanager
def open_places() -> Iterator[Callable[[Sequence[StoredRow]], NDArray[np.float32]]]:
    """Yield what ``read_rows`` does for many calls: each file is opened and checked once.

    The function must be called from one thread at a time.
    """
    with ExitStack() as stack:
        readers: dict[Path, Callable[[NDArray[np.int64]], NDArray[np.floating[Any]]]] = {}

        def read(places: Sequence[StoredRow]) -> NDArray[np.float32]:
            positions: dict[Path, list[int]] = {}
            for position, (path, _) in enumerate(places):
                positions.setdefault(path, []).append(position)
            features = np.empty((0, 0), np.float32)
            for path, own in positions.items():
                if path not in readers:
                    readers[path] = stack.enter_context(open_rows(path))
                stored = readers[path](np.array([places[position][1] for position in own]))
                if not features.size:
                    features = np.empty((len(places), stored.shape[1]), np.float32)
                features[own] = stored
            return features

        yield read


@contextmanager
def open_rows(path: Path) -> Iterator[Callable[[NDArray[np.int64]], NDArray[np.floating[Any]]]]:
    """Open a file that may be larger than memory, to read some of its rows at a time.

    Yields a function from rows ``(b,)``, in any order, to features ``(b, d)`` in the type in which
    they are stored. It must be called from one thread at a time, and raises CacheError for damaged
    rows.

    Raises:
        CacheError: as ``open_file`` does.
    """
    with open_file(path) as file:

        def read(rows: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
            # HDF5 takes increasing, distinct rows only.
            distinct, positions = np.unique(rows, return_inverse=True)
            return file.read_rows(distinct)[positions]

        yield read
