"""Read heads of featkit from skops files without importing skops.

skops lists all estimators of scikit-learn when it is imported, which takes 1.5 s: more than
anything else that ``predict`` does with a head. The heads of featkit consist of few kinds of
objects, and their files are read here as skops reads them. Every other file is left to skops.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from io import BytesIO
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

_PROTOCOL = 2
"""Version of the format whose nodes are known here: skops 0.9 and later."""


class UnknownNodeError(ValueError):
    """An object in a file that only skops can read."""


def read_archive(data: bytes, types: Collection[str]) -> Any:
    """Return the object in a skops file; nothing is unpickled.

    Args:
        data: bytes of the file, checked by ``persist``.
        types: full names of the classes that may be imported.

    Raises:
        UnknownNodeError: if the file is of another version, or contains other objects.
        KeyError, TypeError, ValueError: if the file is damaged.
    """
    with ZipFile(BytesIO(data)) as archive:
        schema = json.loads(archive.read("schema.json"))
        if schema.get("protocol") != _PROTOCOL:
            raise UnknownNodeError("another version of the format")
        return _Reader(archive, types).read(schema)


class _Reader:
    """Construct the objects that the nodes of a schema describe."""

    def __init__(self, archive: ZipFile, types: Collection[str]) -> None:
        self._archive = archive
        self._types = types
        self._done: dict[int, Any] = {}
        self._readers: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "DictNode": self._read_dict,
            "JsonNode": lambda node: json.loads(node["content"]),
            "ListNode": lambda node: [self.read(each) for each in node["content"]],
            "NdArrayNode": self._read_array,
            "ObjectNode": self._read_object,
            "TupleNode": lambda node: tuple(self.read(each) for each in node["content"]),
        }

    def read(self, node: Mapping[str, Any]) -> Any:
        """Return the object of a node; a node that is repeated gives the same object."""
        identity = node.get("__id__")
        if identity is not None and identity in self._done:
            return self._done[identity]
        reader = self._readers.get(node["__loader__"])
        if reader is None or _type_name(node) not in self._allowed(node["__loader__"]):
            raise UnknownNodeError(f"{node['__loader__']} of {_type_name(node)}")
        found = reader(node)
        if identity is not None:
            self._done[identity] = found
        return found

    def _allowed(self, loader: str) -> Collection[str]:
        return self._types if loader == "ObjectNode" else _BUILTIN_TYPES[loader]

    def _read_dict(self, node: Mapping[str, Any]) -> dict[str, Any]:
        for key_type in node["key_types"]["content"]:
            if _type_name(key_type) != "builtins.str":
                raise UnknownNodeError("a dict whose keys are not text")
        return {name: self.read(value) for name, value in node["content"].items()}

    def _read_array(self, node: Mapping[str, Any]) -> NDArray[Any]:
        if node["type"] != "numpy":
            raise UnknownNodeError("an array of objects")
        stored = BytesIO(self._archive.read(node["file"]))
        array: NDArray[Any] = np.load(stored, allow_pickle=False)
        return array

    def _read_object(self, node: Mapping[str, Any]) -> Any:
        kind = getattr(import_module(node["__module__"]), node["__class__"])
        found = kind.__new__(kind)
        found.__setstate__(self.read(node["content"]))  # of BaseEstimator
        return found


_BUILTIN_TYPES: dict[str, Collection[str]] = {
    "DictNode": ("builtins.dict",),
    "JsonNode": ("builtins.str",),
    "ListNode": ("builtins.list",),
    "NdArrayNode": ("numpy.ndarray",),
    "TupleNode": ("builtins.tuple",),
}


def _type_name(node: Mapping[str, Any]) -> str:
    return f"{node['__module__']}.{node['__class__']}"
