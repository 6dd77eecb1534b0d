"""Registries of named factories, which plug-ins can extend, and specs that select one.

A spec is ``name``, ``name:argument`` or ``name:key=value,key=value``: ``svm:C=9,kernel=rbf``,
``timm:vit_small_patch16_224``, ``random:7``, ``cifar10:root=photos,download=true``.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from featkit.errors import SpecError

Value = str | int | float | bool | None
T = TypeVar("T", bound=Callable[..., Any])

_WORDS: dict[str, Value] = {"true": True, "false": False, "none": None}


def parse_value(text: str) -> Value:
    """Parse a value of a spec: a number, ``true``, ``false``, ``none`` or text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True)
class Spec:
    """A name with options, as a user writes it on the command line.

    Attributes:
        name: name of a factory.
        argument: text after the colon that is not ``key=value``, such as a timm model name; None if
            there is none.
        options: keyword arguments of the factory.
    """

    name: str
    argument: str | None = None
    options: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Parse ``name[:argument][,key=value...]``.

        Raises:
            SpecError: if the name is missing or an option is not ``key=value``.
        """
        name, _, rest = text.strip().partition(":")
        if not name:
            raise SpecError(f"{text!r} has no name: write NAME or NAME:key=value,key=value")
        parts = rest.split(",") if rest else []
        argument: str | None = None
        if parts and "=" not in parts[0] and parts[0].strip():
            argument = parts.pop(0).strip()
        options: dict[str, Value] = {}
        for part in parts:
            key, equals, value = part.partition("=")
            if not equals or not key.strip():
                raise SpecError(
                    f"{part!r} in {text!r} is not key=value: write {name}:key=value,key=value"
                )
            options[key.strip()] = parse_value(value.strip())
        return cls(name, argument, options)

    def __str__(self) -> str:
        """Return the spec in canonical form, with sorted options, as ``parse`` accepts it."""
        parts = [] if self.argument is None else [self.argument]
        parts += [f"{key}={_format_value(value)}" for key, value in sorted(self.options.items())]
        return self.name + (":" + ",".join(parts) if parts else "")


def _format_value(value: Value) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def unknown(kind: str, name: str, known: Sequence[str]) -> SpecError:
    """Return the error for an unknown name, with the known names and the most similar one.

    Args:
        kind: kind of thing that the name should be, such as ``head``.
        name: the unknown name.
        known: all known names.
    """
    similar = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {similar[0]}? " if similar else ""
    return SpecError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}")


class Registry(Generic[T]):
    """Factories by name: those of featkit, and those of plug-ins by entry point.

    Factories of featkit are given as ``"module:attribute"`` and imported on first use, so that
    listing the names imports nothing.

    Args:
        kind: what the factories make, for error messages, such as ``head``.
        group: entry-point group of plug-ins, such as ``featkit.heads``.
        own: import path of each factory of featkit, by name.
    """

    def __init__(self, kind: str, group: str, own: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._own = dict(own)

    def names(self) -> list[str]:
        """Return all known names: those of featkit first, then those of plug-ins."""
        return list(dict.fromkeys([*self._own, *(point.name for point in self.plugins())]))

    def get(self, name: str) -> T:
        """Import and return the factory of a name.

        Raises:
            SpecError: if the name is unknown, or its plug-in cannot be imported.
        """
        if name in self._own:
            module, _, attribute = self._own[name].partition(":")
            factory: T = getattr(import_module(module), attribute)
            return factory
        for point in self.plugins():
            if point.name == name:
                return self._load(point)
        raise unknown(self.kind, name, self.names())

    def make(self, spec: str | Spec, **given: Any) -> Any:
        """Call the factory of a spec with the options of the spec and further keyword arguments.

        Args:
            spec: name and options.
            given: keyword arguments that a user cannot set in the spec.

        Raises:
            SpecError: if the name or an option is unknown, or the options do not fit the factory.
        """
        spec = Spec.parse(spec) if isinstance(spec, str) else spec
        factory = self.get(spec.name)
        signature = signature_of(factory)
        known = [name for name in signature.parameters if name not in given]
        for option in spec.options:
            if option not in known:
                raise unknown(f"option of {self.kind} {spec.name}", option, known)
        arguments = [] if spec.argument is None else [spec.argument]
        try:
            signature.bind(*arguments, **spec.options, **given)
        except TypeError as error:
            options = ", ".join(known) or "none"
            raise SpecError(f"{self.kind} {str(spec)!r}: {error}; its options: {options}") from None
        return factory(*arguments, **spec.options, **given)

    def plugins(self) -> list[Any]:
        """Return the entry points of plug-ins, by name."""
        return sorted(_installed(self.group, tuple(sys.path)), key=lambda point: point.name)

    def _load(self, point: Any) -> T:
        try:
            factory: T = point.load()
        except Exception as error:  # a plug-in can raise anything when it is imported
            raise SpecError(
                f"{self.kind} {point.name!r} of plug-in {_plugin_name(point)} cannot be imported "
                f"({type(error).__name__}: {error}): update, reinstall or uninstall the plug-in"
            ) from error
        return factory


@cache
def signature_of(factory: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a factory; kept, since a grid asks for the same ones in each cell."""
    return inspect.signature(factory)


@cache
def _installed(group: str, path: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the entry points of a group in the packages on ``path``, ``sys.path``.

    Kept, as the metadata of all packages are read for them, which takes 20 ms.
    """
    return tuple(entry_points(group=group))


def check_names(kind: str, found: Iterable[str], known: Sequence[str]) -> None:
    """Make sure that every name is known.

    Args:
        kind: description of the names for error messages, such as ``axis``.
        found: the names to check.
        known: all valid names.

    Raises:
        SpecError: for the first unknown name, listing the known ones.
    """
    for name in found:
        if name not in known:
            raise unknown(kind, name, known)


def check_types(kind: type, values: Any) -> None:
    """Check values that were read from a file against the type hints of a dataclass.

    Integers must not be negative, and numbers must be finite. Names that are not fields are left to
    the caller.

    Args:
        kind: the dataclass.
        values: values by the names of its fields, as JSON or TOML represents them.

    Raises:
        SpecError: if a value is of another type.
    """
    if not isinstance(values, Mapping):
        raise SpecError(f"{kind.__name__.lower()} must be a table of names and values")
    for name, hint in get_type_hints(kind).items():
        if name in values and not _fits(values[name], hint):
            raise SpecError(f"{name} = {_shortened(values[name])} is not {_describe_type(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value is of a type: lists stand for tuples, integers for floats."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_fits(value, each) for each in arguments)
    if origin is tuple:
        return isinstance(value, list | tuple) and _all_fit(value, arguments[0])
    if origin is Mapping:
        if not isinstance(value, Mapping):
            return False
        return _all_fit(value.keys(), str) and _all_fit(value.values(), arguments[1])
    return _is_plain(value, hint)


def _all_fit(values: Iterable[Any], hint: Any) -> bool:
    return all(_fits(each, hint) for each in values)


def _is_plain(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type without arguments."""
    if hint is Any:
        return True
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and -sys.float_info.max <= value <= sys.float_info.max
    if hint is int:
        # Not isinstance: True is an int.
        return type(value) is int and 0 <= value < 2**63
    if hint is str:
        return isinstance(value, str) and "\0" not in value
    return isinstance(value, hint)


_TYPE_NAMES: dict[Any, str] = {
    int: "a whole number from 0 up",
    float: "a finite number",
    str: "text",
    Any: "values",
}


def _describe_type(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return " or ".join(_describe_type(each) for each in arguments if each is not type(None))
    if origin is tuple:
        return f"a list of {_describe_type(arguments[0])}"
    if origin is Mapping:
        return f"a table of {_describe_type(arguments[1])}"
    return _TYPE_NAMES.get(hint) or str(getattr(hint, "__name__", hint))


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plugin_name(point: Any) -> str:
    """Return the distribution that an entry point belongs to, and the object that it names."""
    package = point.dist.name if point.dist else ""
    return f"{package} ({point.value})" if package else str(point.value)
