"""Saving and loading of heads in the skops format, which stores no pickle and executes no code."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import cache
from importlib import import_module
from io import BytesIO
from math import prod
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import sklearn
from sklearn.base import BaseEstimator
from sklearn.exceptions import InconsistentVersionWarning

from featkit.blocks import RowView, row_blocks
from featkit.errors import HeadError
from featkit.heads import HEADS
from featkit.heads.archive import UnknownNodeError, read_archive
from featkit.storage import read_file

MAX_FILE_BYTES = 2**34
"""Largest file that is read: 16 GiB."""

MAX_SCHEMA_BYTES = 2**24
"""Largest description of the objects in a file: 16 MiB, of which a head uses a few KiB."""

MAX_OBJECTS = 2**20
"""Largest number of objects in a file, objects that are referred to again counted again."""

MAX_DEPTH = 50
"""Largest depth of objects in objects."""

_MARK = 0x5EED
"""Second dimension of empty arrays that stand for a ``RowView`` until it is written."""

TRUSTED = (
    "featkit.heads.balance.BalancedHead",
    "featkit.heads.knn.KNNHead",
    "featkit.heads.linear.LinearHead",
    "featkit.heads.mlp.MLPHead",
    "featkit.heads.multilabel.MultiLabelHead",
    "featkit.heads.prototypical.PrototypicalHead",
    "featkit.heads.svm.SVMHead",
)
"""Types that a file may contain, besides those that skops trusts by itself: data types of Python
and NumPy, and the estimators of scikit-learn. Head classes of installed plug-ins are trusted too.

Files name these classes by module, so that a class that moves must stay importable by its old name.
"""


def save_head(head: Any, path: Path, trusted: Iterable[str] = ()) -> None:
    """Save a fitted head and the version of scikit-learn that fitted it.

    Args:
        head: the estimator.
        path: the file, ``*.skops``.
        trusted: full names of additional types, for heads of plug-ins.

    Raises:
        HeadError: if the head cannot be stored without pickle, or contains a type that
            ``load_head`` would not trust.
    """
    views: list[RowView] = []
    try:
        stored = _without_views(head, views)
        data = _skops().dumps({"scikit-learn": sklearn.__version__, "head": stored})
        _check_archive(data)
    except Exception as error:  # attributes of a plug-in may raise anything
        raise HeadError(
            f"{_type_name(head)} cannot be saved to {path} without pickle: {_first_line(error)}"
        ) from error
    untrusted = set(_skops().get_untrusted_types(data=data)) - _trusted_types(trusted)
    if untrusted:
        raise HeadError(f"{_type_name(head)} cannot be saved to {path}: {_describe(untrusted)}")
    if views:
        _write_with_views(data, views, path)
    else:
        path.write_bytes(data)


def _without_views(value: Any, views: list[RowView]) -> Any:
    """Return a head with an empty array of a marked shape in place of each ``RowView``.

    Args:
        value: the head, or an attribute of it.
        views: those that were found are appended.

    Returns:
        The head itself if it has none, else a copy.
    """
    if isinstance(value, RowView):
        views.append(value)
        return np.empty((0, _MARK, len(views) - 1), value.dtype)
    before = len(views)
    if isinstance(value, list):
        replaced = [_without_views(each, views) for each in value]
        return value if len(views) == before else replaced
    if not isinstance(value, BaseEstimator):
        return value
    attributes = {name: _without_views(each, views) for name, each in vars(value).items()}
    if len(views) == before:
        return value
    copied = copy(value)
    vars(copied).update(attributes)
    return copied


def _write_with_views(data: bytes, views: Sequence[RowView], path: Path) -> None:
    """Write a skops file whose marked empty arrays are replaced by the rows of views."""
    with ZipFile(BytesIO(data)) as source, ZipFile(path, "w", ZIP_STORED) as archive:
        for part in source.infolist():
            content = source.read(part)
            view = _marked_view(content, views) if part.filename.endswith(".npy") else None
            if view is None:
                archive.writestr(part, content)
                continue
            header = {"descr": view.dtype.str, "fortran_order": False, "shape": view.shape}
            with archive.open(part.filename, "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                for _, block in row_blocks(view):
                    stream.write(np.ascontiguousarray(block).data)


def _marked_view(content: bytes, views: Sequence[RowView]) -> RowView | None:
    """Return the view that an array in NumPy's format stands for, if it does."""
    stream = BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        return None
    shape = np.lib.format.read_array_header_1_0(stream)[0]
    return views[shape[2]] if shape[:2] == (0, _MARK) and len(shape) == 3 else None


def load_head(path: Path, trusted: Iterable[str] = ()) -> Any:
    """Load a head that ``save_head`` saved, without executing code from the file.

    If another version of scikit-learn fitted the head, a note is added to its ``warnings_``.

    Args:
        path: the file.
        trusted: full names of additional types, for heads of plug-ins.

    Raises:
        HeadError: if the file is missing or damaged, is not a head, contains a type that is not
            trusted, was saved by a version of featkit whose heads had other parameters, or holds
            arrays that do not fit together.
    """
    from featkit.heads.validate import check_fitted_head  # imports all heads

    allowed = _trusted_types(trusted)
    head, version = _read(path, allowed)
    if _type_name(head) not in allowed:
        raise HeadError(f"{path} contains a {_type_name(head)}, which is not a head: fit it again")
    try:
        head.get_params()
    except AttributeError as error:
        raise HeadError(
            f"{path} was saved by another version of featkit ({_first_line(error)}): fit it again"
        ) from error
    try:
        check_fitted_head(head)
    except HeadError as error:
        raise HeadError(f"{path} was not loaded: {error}; fit it again") from error
    if version != sklearn.__version__:
        note = (
            f"fitted with scikit-learn {version}, used with {sklearn.__version__}: "
            "predictions may differ"
        )
        head.warnings_ = (*getattr(head, "warnings_", ()), note)
    return head


def _read(path: Path, allowed: set[str]) -> tuple[Any, str]:
    """Return the head in a file, and the version of scikit-learn that fitted it."""
    untrusted: set[str] = set()
    try:
        data = read_file(path, MAX_FILE_BYTES)
        _check_archive(data)
        try:
            content = read_archive(data, TRUSTED)
        except UnknownNodeError:
            content, untrusted = _load_by_skops(data, allowed)
        if not untrusted:
            return content["head"], str(content["scikit-learn"])
    except OSError as error:
        raise HeadError(
            f"{path} is not a head saved by featkit ({error.strerror or error}): fit it again"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise HeadError(
            f"{path} is not a head saved by featkit ({_first_line(error)}): fit it again"
        ) from error
    raise HeadError(f"{path} was not loaded: {_describe(untrusted)}")


def _load_by_skops(data: bytes, allowed: set[str]) -> tuple[Any, set[str]]:
    """Return the object in a file, or None and the types in it that are not allowed."""
    untrusted = set(_skops().get_untrusted_types(data=data)) - allowed
    if untrusted:
        return None, untrusted
    with warnings.catch_warnings():
        # load_head reports the version itself.
        warnings.simplefilter("ignore", InconsistentVersionWarning)
        return _skops().loads(data, trusted=sorted(allowed)), untrusted


def _check_archive(data: bytes) -> None:
    """Check that loading a file takes no more memory than a few times its size.

    skops compresses nothing by default, so that compressed parts were not written by featkit.

    Raises:
        ValueError: if the file is larger when it is unpacked, or its objects are too many.
    """
    with ZipFile(BytesIO(data)) as archive:
        sizes = {}
        for part in archive.infolist():
            if part.compress_type != ZIP_STORED:
                raise ValueError(f"{part.filename} is compressed, which featkit never does")
            sizes[part.filename] = part.file_size
        if len(sizes) < len(archive.infolist()) or sum(sizes.values()) > len(data):
            raise ValueError("the sizes of its parts are inconsistent")
        if sizes.get("schema.json", 0) > MAX_SCHEMA_BYTES:
            raise ValueError(f"schema.json has {sizes['schema.json']} bytes")
        schema = json.loads(archive.read("schema.json"))
        for name in sizes:
            if name != "schema.json":
                with archive.open(name) as stream:
                    _check_array_file(stream, sizes[name], name)
    _count_objects(schema, {}, 0)
    read = sum(sizes.get(name, 0) for name in _file_references(schema))
    if read > len(data):
        raise ValueError("arrays are read more than once")


def _check_array_file(stream: IO[bytes], size: int, name: str) -> None:
    """Check that a part of ``size`` bytes is an array in NumPy's format, of the stated shape."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"{name} is in version {version} of NumPy's format")
    if dtype.hasobject or prod(shape) * dtype.itemsize != size - stream.tell():
        raise ValueError(f"{name} is not an array of the shape {shape} that it states")


def _count_objects(state: Any, sizes: dict[Any, int], depth: int) -> int:
    """Return the number of objects below a node of the schema, with repeated ones repeated.

    Args:
        state: the node.
        sizes: number of objects of nodes that were counted before, by their ids; extended.
        depth: of the node.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"objects are nested more than {MAX_DEPTH} levels deep")
    identity = state.get("__id__") if isinstance(state, dict) else None
    if identity is not None and identity in sizes:
        return sizes[identity]
    children = state.values() if isinstance(state, dict) else state
    count = 1
    for child in children:
        if isinstance(child, dict | list):
            count += _count_objects(child, sizes, depth + 1)
    if count > MAX_OBJECTS:
        raise ValueError(f"it contains more than {MAX_OBJECTS} objects")
    if identity is not None:
        sizes[identity] = count
    return count


def _file_references(state: Any) -> Iterator[str]:
    """Yield the name of every file that a node of the schema refers to."""
    children = state.values() if isinstance(state, dict) else state
    for child in children:
        if isinstance(child, dict | list):
            yield from _file_references(child)
    if isinstance(state, dict) and isinstance(state.get("file"), str):
        yield state["file"]


@cache
def _skops() -> ModuleType:
    """Import ``skops.io`` without importing torch.

    skops lists all estimators of scikit-learn, which imports its adapters of other array libraries
    and with them torch, where it is installed. That takes seconds and is not needed. ``None`` in
    ``sys.modules`` makes an import fail.
    """
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            # If torch is imported already, skops accesses all its attributes, also deprecated ones.
            warnings.simplefilter("ignore", FutureWarning)
            return import_module("skops.io")
    finally:
        if hide_torch:
            del sys.modules["torch"]


def _trusted_types(additional: Iterable[str]) -> set[str]:
    """Return ``TRUSTED``, the heads of installed plug-ins (not imported), and ``additional``."""
    plugins = {point.value.replace(":", ".") for point in HEADS.plugins()}
    return {*TRUSTED, *plugins, *additional}


def _describe(untrusted: Iterable[str]) -> str:
    return f"it contains types that featkit does not trust: {', '.join(sorted(untrusted))}"


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
