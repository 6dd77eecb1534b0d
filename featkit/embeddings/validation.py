"""Validation of cache files: nothing in a file is used before it has been checked.

A file may be damaged, written by another program, or made to do harm. Its structure, types and
sizes are checked before its data are read, and its data against digests: names and contents of
images, labels, classes and splits against the recipe, each row of features against its CRC-32,
everything else against the attribute ``seal``, which files of version 0.2.0 and earlier lack.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.layout import ZSTD_FILTER
from featkit.embeddings.recipe import Recipe
from featkit.errors import CacheError, FeatkitError
from featkit.extras import is_installed
from featkit.images.base import SPLITS
from featkit.storage import digest, processes_using

COLUMNS = ("labels", "ids", "keys", "splits", "valid", "checksums")
"""Datasets with one value for each image."""

SHARDS = "shards"
"""Folder of the shards of extractions, in the folder of the cache files."""

_POSITIONS = {"positions", "order"}
"""Datasets that shards and virtual files have besides: rows in the whole image set."""

_FILTERS = {
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_FLETCHER32,
    ZSTD_FILTER,
}
"""Filters that may be applied: HDF5 would load any other one as a plug-in."""

_FREE_BYTES, _MOST_RATIO = 2**30, 64
"""A dataset may be this large, or this many times the space that it takes in the file."""

_HEAP_MARK = b"GCOL\x01\0\0\0"
"""Signature and version of a global heap."""

_HEAP_HEADER = struct.Struct("<HHIQ")
"""Index, reference count and length of an object; the header of a heap has the same size."""

_SEARCHED_BYTES = 2**25

_REQUEST_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("data", "backbone", "weights", "pool", "precision", "store"), (str,)),
    **dict.fromkeys(("split", "limit", "intensity_range", "layer"), (str, type(None))),
    **dict.fromkeys(("augment", "perturb", "part", "group", "decode"), (str, type(None))),
    "allow_group_leak": (bool, type(None)),
    **dict.fromkeys(("resize", "crop"), (str, int, type(None))),
    **dict.fromkeys(("seed", "views"), (int,)),
}
"""Types of the fields of ``Request``, which imports this module."""

_UNKNOWN = {"data": "unknown", "weights": "unknown"}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_LOCKED = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}
_DENIED = {errno.EACCES, errno.EPERM}


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Convert the errors of reading a cache file into a CacheError.

    Raises:
        CacheError: for any error inside the block but a FeatkitError and a lack of memory.
    """
    try:
        yield
    except (FeatkitError, MemoryError):
        raise
    except OSError as error:
        raise _describe_os_error(path, error) from error
    except Exception as error:  # h5py raises almost any exception for a damaged file
        raise damaged(path, error) from error


def damaged(path: Path, reason: object) -> CacheError:
    """Return the error of a file whose content is wrong."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    if isinstance(reason, KeyError):
        text = f"{text} is missing"
    return CacheError(
        f"{path} is damaged or not an embeddings file ({text[:300]}): remove it with "
        f"`featkit cache rm {shlex.quote(str(path))}` and extract again"
    )


def _describe_os_error(path: Path, error: OSError) -> CacheError:
    """Return the error of a file that the operating system refused to open or to read.

    Only an error without a number is one of HDF5's own: the content is wrong. In all other cases
    the file may be intact, so its removal is never advised.
    """
    if error.errno is None:
        return damaged(path, error)
    reason = os.strerror(error.errno)
    if error.errno in _LOCKED:
        owners = ", ".join(processes_using(path)) or "another process"
        return CacheError(
            f"{path} is locked: {owners} has it open for writing; close it there and try again"
        )
    if error.errno == errno.ENOENT:
        return _not_found(path)
    fix = "check the disk or the network connection and try again"
    if error.errno in _DENIED:
        fix = "change its permissions or choose another folder with --cache"
    return CacheError(f"{path} cannot be read: {reason}; {fix}")


def _not_found(path: Path) -> CacheError:
    return CacheError(
        f"{path} not found: see `featkit cache ls`, or create it with `featkit extract`"
    )


def open_hdf5(path: Path) -> Any:
    """Open an HDF5 file for reading.

    Raises:
        CacheError: if the file is missing, locked, not a regular file or not HDF5.
    """
    with read_errors(path):
        status = path.stat()
        if not path.is_file():
            raise CacheError(f"{path} is not a file: choose another name, or move it away")
        if not status.st_size:
            raise ValueError("the file is empty")
        _check_heaps(path, status.st_size, (status.st_ino, status.st_mtime_ns))
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            # Network file systems without locks: the lock is not needed, as files are never
            # changed once they have their name.
            return h5py.File(path, "r", locking=False)


@lru_cache(maxsize=4096)  # a file is opened several times by one command
def _check_heaps(path: Path, size: int, _version: tuple[int, int]) -> None:
    """Check the global heaps of a file, which hold its texts, without the HDF5 library.

    HDF5 2.0 never returns from reading a heap with a free object of size 0. The layout is that of
    the HDF5 file format specification, section III.E. Heaps lie before and after the features, so
    the middle of a large file is not searched.

    Raises:
        ValueError: if a heap is damaged.
    """
    with path.open("rb") as file:
        _check_heaps_of_part(file.read(_SEARCHED_BYTES))
        rest = size - _SEARCHED_BYTES
        if rest > 0:
            file.seek(size - min(rest, _SEARCHED_BYTES))
            _check_heaps_of_part(file.read(_SEARCHED_BYTES))


def _check_heaps_of_part(content: bytes) -> None:
    start = content.find(_HEAP_MARK)
    while start >= 0:
        length = int.from_bytes(content[start + 8 : start + 16], "little")
        heap = content[start : start + length]
        # A heap that is cut off here is refused by HDF5, or is no heap but four bytes of features.
        if len(heap) == length:
            _check_heap(heap)
        start = content.find(_HEAP_MARK, start + len(_HEAP_MARK))


def _check_heap(heap: bytes) -> None:
    """Check that the objects of a heap follow each other up to its end."""
    position = _HEAP_HEADER.size
    while position + _HEAP_HEADER.size <= len(heap):
        index, _, _, length = _HEAP_HEADER.unpack_from(heap, position)
        # An object of index 0 is the free rest; its length includes the header.
        step = length if index == 0 else _HEAP_HEADER.size + -(-length // 8) * 8
        if step < _HEAP_HEADER.size or position + step > len(heap):
            raise ValueError("one of its texts is damaged")
        position += step


def open_datasets(file: Any) -> dict[str, Any]:
    """Return the datasets of a complete file by name, with the right types and sizes.

    No data are read.

    Raises:
        ValueError: with the reason, if the file is not an embeddings file.
        CacheError: if the compression of the features is not installed.
    """
    complete = file.attrs.get("complete")
    if not isinstance(complete, np.bool_) or not complete:
        raise ValueError("it is not a complete embeddings file")
    datasets = {name: _open_dataset(name, file) for name in COLUMNS}
    features = datasets["embeddings"] = _open_features(file)
    if features.dtype not in (np.float32, np.float16) or features.ndim != 2 or not features.size:
        raise ValueError(f"embeddings are {features.dtype} of shape {features.shape}")
    rows = features.shape[:1]
    for name in COLUMNS:
        shape, dtype = datasets[name].shape, datasets[name].dtype
        if shape != rows or not _is_column_type(name, dtype):
            raise ValueError(f"{name} is {dtype} of shape {shape}, for features of {rows[0]} rows")
    for name in _POSITIONS & file.keys():
        datasets[name] = _open_dataset(name, file)
        if datasets[name].shape != rows or datasets[name].dtype != np.int64:
            raise ValueError(f"{name} is {datasets[name].dtype} of shape {datasets[name].shape}")
    if features.is_virtual and "order" not in datasets:
        raise ValueError("order is missing")
    return datasets


def _open_features(file: Any) -> Any:
    """Return the dataset of features, whose data may be in shards; these are checked too."""
    link = file.get("embeddings", getlink=True)
    dataset = file.get("embeddings") if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or not dataset.is_virtual:
        return _open_dataset("embeddings", file)
    folder = Path(file.filename).parent
    for source in dataset.virtual_sources():
        name = Path(source.file_name)
        # Only below the folder of the file: it may have been received from someone.
        if name.parts[:1] != (SHARDS,) or len(name.parts) != 3 or ".." in name.parts:
            raise ValueError("the data of embeddings are in other files")
        _check_source(folder / name)
    return dataset


def _check_source(path: Path) -> None:
    """Check a shard that a virtual file refers to: HDF5 would replace a missing one by NaN.

    Raises:
        ValueError: if it is missing or a link.
        CacheError: if it is damaged.
    """
    if path.is_symlink() or path.parent.is_symlink() or path.parent.parent.is_symlink():
        raise ValueError(f"its shard {path} is a link")
    if not path.is_file():
        raise ValueError(f"its shard {path} is missing")
    status = path.stat()
    _check_source_structure(path, (status.st_size, status.st_ino, status.st_mtime_ns))


@lru_cache(maxsize=4096)
def _check_source_structure(path: Path, _version: tuple[int, ...]) -> None:
    with read_errors(path), open_hdf5(path) as shard:
        if open_datasets(shard)["embeddings"].is_virtual:
            raise ValueError("a shard is virtual itself")


def _open_dataset(name: str, file: Any) -> Any:
    # Links to other files, and datasets whose data are in other files, would let a file that was
    # received from someone read any file of the user.
    link = file.get(name, getlink=True)
    if link is None:
        raise ValueError(f"it is not a complete embeddings file: {name} is missing")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name} is a link")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is not a dataset")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"the data of {name} are in other files")
    _check_filters(name, dataset)
    stored = dataset.id.get_storage_size()
    if dataset.shape is None or dataset.nbytes > max(_FREE_BYTES, _MOST_RATIO * stored):
        raise ValueError(f"{name} has shape {dataset.shape}, but only {stored} bytes")
    return dataset


def _check_filters(name: str, dataset: Any) -> None:
    properties = dataset.id.get_create_plist()
    filters = {properties.get_filter(index)[0] for index in range(properties.get_nfilters())}
    if not filters <= _FILTERS:
        raise ValueError(f"{name} is compressed with an unknown filter")
    # Importing hdf5plugin registers its filters with HDF5.
    if ZSTD_FILTER in filters and not is_installed("hdf5plugin"):
        raise CacheError(
            f"{dataset.file.filename} is compressed with zstd; "
            "install it: pip install 'featkit[zstd]'"
        )


def _is_column_type(name: str, dtype: np.dtype[Any]) -> bool:
    if name == "ids":
        return h5py.check_string_dtype(dtype) is not None
    kinds = {"labels": "iu", "keys": "S", "splits": "S", "valid": "b", "checksums": "u"}
    return dtype.kind in kinds[name] and dtype.itemsize <= 64


@dataclass(frozen=True)
class Attributes:
    """Attributes of a file.

    Attributes:
        recipe: what decided the features.
        classes: class names.
        provenance: recorded, not hashed.
        columns: digests of columns, JSON; None in an old file.
        rounding: largest rounding error of a stored number.
    """

    recipe: Recipe
    classes: tuple[str, ...]
    provenance: dict[str, Any]
    columns: str | None
    rounding: float


def read_recipe(file: Any) -> Recipe:
    """Return the recipe of an open file, which ``read_attributes`` checks.

    Raises:
        ValueError: with the reason, if it is not one.
    """
    try:
        return Recipe.from_json(_text(file.attrs.get("recipe"), "recipe"))
    except CacheError as error:
        raise ValueError(str(error)) from error


def read_attributes(path: Path, file: Any, features: Any) -> Attributes:
    """Return the attributes of an open file.

    Args:
        path: the file.
        file: the open file.
        features: its dataset of features.

    Raises:
        ValueError: with the reason, if one of them is damaged.
    """
    found = dict(file.attrs.items())
    for name in ("recipe", "classes", "provenance", *({"columns", "seal"} & found.keys())):
        _text(found.get(name), name)
    recipe = read_recipe(file)
    if "seal" not in found:
        _check_name(path, recipe)
    elif found["seal"] != seal(found, features):
        raise ValueError("its attributes do not match their digest")
    classes = json.loads(found["classes"])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes is not a list of names")
    if len(set(classes)) < len(classes):
        raise ValueError("two classes have the same name")
    return Attributes(
        recipe=recipe,
        classes=tuple(classes),
        provenance=_check_provenance(json.loads(found["provenance"])),
        columns=found.get("columns"),
        rounding=float(found.get("rounding", 0.0)),
    )


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"attribute {name} is missing or not text")
    return value


def _check_name(path: Path, recipe: Recipe) -> None:
    """Check the recipe of an old file against the file's name, if that has a fingerprint."""
    found = re.search("-([0-9a-f]{12})$", path.stem)
    if found and found[1] != recipe.fingerprint[:12]:
        raise ValueError("its name does not match its recipe")


def _check_provenance(provenance: Any) -> dict[str, Any]:
    """Return the provenance, completed by ``unknown`` where a value is missing.

    Raises:
        ValueError: if a value has the wrong type, or the name of the data is not a folder name.
    """
    if not isinstance(provenance, dict):
        raise ValueError("provenance is not an object")
    request = provenance.get("request", {})
    if not isinstance(request, dict):
        raise ValueError("the request in its provenance is not an object")
    for name, types in _REQUEST_TYPES.items():
        # bool is a subclass of int
        if name in request and type(request[name]) not in types:
            raise ValueError(f"{name} of the request in its provenance is {request[name]!r:.40}")
    known = {**_UNKNOWN, **provenance, "request": {"data": "", **request}}
    for name in _UNKNOWN:
        if not isinstance(known[name], str):
            raise ValueError(f"{name} in its provenance is not text")
    if not is_folder_name(known["data"]):
        raise ValueError(f"the name of the data in its provenance is {known['data']!r:.40}")
    return known


def is_folder_name(name: str) -> bool:
    """Return whether results can be written to a folder of this name, inside another one."""
    outside = any(part in ("", ".", "..") for part in re.split(r"[/\\]", name))
    is_drive = re.match("[A-Za-z]:", name) is not None
    return name.isprintable() and not outside and not is_drive


def seal(attributes: Mapping[str, Any], features: Any) -> str:
    """Return the SHA-256 (hex) of the attributes and of the type and shape of the features.

    It is compared with the attribute ``seal``. The attribute ``columns`` includes the data of the
    columns that the recipe has no digest of.
    """
    texts = [attributes[name] for name in ("recipe", "classes", "provenance", "columns")]
    rounding = repr(float(attributes["rounding"]))
    return digest([*texts, rounding, str(features.shape), features.dtype.name])


def column_digests(splits: NDArray[np.str_], valid: NDArray[np.bool_]) -> str:
    """Return the attribute ``columns``: JSON of the digests of columns ``(n,)``, by name.

    Checksums need none: they must match the features.
    """
    return json.dumps(
        {
            "splits": digest(splits.tolist()),
            "valid": hashlib.sha256(valid.tobytes()).hexdigest(),
        }
    )


def images_digest(ids: Sequence[str], keys: Sequence[str]) -> str:
    """Return the recipe's digest of the names and contents of images."""
    return digest(chain(ids, keys))


def labels_digest(classes: Sequence[str], labels: NDArray[np.int64]) -> str:
    """Return the recipe's digest of class names and labels ``(n,)``."""
    return digest([*classes, *map(str, labels.tolist())])


def splits_digest(splits: NDArray[np.str_]) -> str:
    """Return the recipe's digest of the splits ``(n,)`` that a source defines."""
    return digest(splits.tolist())


def check_columns(
    recipe: Recipe, classes: Sequence[str], columns: Mapping[str, Any], recorded: str | None
) -> None:
    """Check the columns of a file against its recipe and the attribute ``columns``.

    Args:
        recipe: of the file.
        classes: class names.
        columns: the data of each of ``COLUMNS``; texts as str.
        recorded: the attribute ``columns``; None for an old file.

    Raises:
        ValueError: with the reason, if one of them is damaged.
    """
    ids, labels, splits = columns["ids"], columns["labels"], columns["splits"]
    if images_digest(ids, columns["keys"]) != recipe.images:
        raise ValueError("the names or keys of the images do not match the recipe")
    if labels_digest(classes, labels) != recipe.labels:
        raise ValueError("the labels or classes do not match the recipe")
    if recipe.split != "none" and splits_digest(splits) != recipe.split:
        raise ValueError("the splits do not match the recipe")
    if recorded is not None and recorded != column_digests(splits, columns["valid"]):
        raise ValueError("splits or valid do not match their digests")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(f"labels are not positions in its {len(classes)} classes")
    if len(set(ids)) < len(ids):
        raise ValueError("two images have the same name")
    unknown = set(splits.tolist()) - set(SPLITS)
    if unknown:
        raise ValueError(f"split {min(unknown)!r} is unknown")
