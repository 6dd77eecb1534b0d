"""Names that plug-ins can add to, and the grammar in which a person asks for them.

A spec is ``name``, ``name:argument`` or ``name:key=value,key=value``: ``svm:C=9,kernel=rbf``,
``timm:vit_small_patch16_224``, ``random:7``, ``cifar10:root=photos,download=true``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from featkit.errors import SpecError

Value = str | int | float | bool | None
T = TypeVar("T", bound=Callable[..., Any])

_WORDS: dict[str, Value] = {"true": True, "false": False, "none": None}


def parse_value(text: str) -> Value:
    """Read ``9`` as int, ``1e-3`` as float, ``true|false|none`` as such, anything else as text."""
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
    """A name with the options that follow it, as a user writes them."""

    name: str
    argument: str | None = None
    options: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read ``name[:argument][,key=value...]``.

        Raises:
            SpecError: if the name is missing or an option is not ``key=value``.
        """
        name, _, rest = text.strip().partition(":")
        if not name:
            raise SpecError(f"{text!r} has no name: write NAME or NAME:key=value,key=value")
        argument: str | None = None
        options: dict[str, Value] = {}
        for place, part in enumerate(rest.split(",") if rest else []):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if equals and key:
                options[key] = parse_value(value)
            elif place == 0 and key and not equals:
                argument = part.strip()
            else:
                raise SpecError(f"{part!r} in {text!r} is not key=value: write {name}:key=value,key=value")
        return cls(name, argument, options)

    def __str__(self) -> str:
        """Write the spec in one canonical form (options sorted), which ``parse`` reads back."""
        parts = [] if self.argument is None else [self.argument]
        parts += [f"{key}={_write(value)}" for key, value in sorted(self.options.items())]
        return self.name + (":" + ",".join(parts) if parts else "")


def _write(value: Value) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def unknown(kind: str, name: str, known: Sequence[str]) -> SpecError:
    """Return the error for a name nobody knows: the nearest known one and the whole list."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return SpecError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}")


class Registry(Generic[T]):
    """Factories by name: featkit's own, and those that installed packages add by entry point.

    Own entries are written as ``"module:attribute"`` and imported when first asked for, so that a list
    of names costs no import.
    """

    def __init__(self, kind: str, group: str, own: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._own = dict(own)

    def names(self) -> list[str]:
        """Return every known name: featkit's own first, then those of plug-ins."""
        return list(dict.fromkeys([*self._own, *(point.name for point in self._plugins())]))

    def get(self, name: str) -> T:
        """Return the factory behind a name.

        Raises:
            SpecError: if the name is unknown, listing the known ones, or if a plug-in cannot be imported.
        """
        if name in self._own:
            module, _, attribute = self._own[name].partition(":")
            factory: T = getattr(import_module(module), attribute)
            return factory
        for point in self._plugins():
            if point.name == name:
                return self._load(point)
        raise unknown(self.kind, name, self.names())

    def make(self, spec: str | Spec, **given: Any) -> Any:
        """Call the factory that a spec names with the spec's options, and with ``given``.

        Raises:
            SpecError: if the name or an option is unknown, listing the known ones.
        """
        spec = Spec.parse(spec) if isinstance(spec, str) else spec
        factory = self.get(spec.name)
        known = [name for name in inspect.signature(factory).parameters if name not in given]
        for option in spec.options:
            if option not in known:
                raise unknown(f"option of {self.kind} {spec.name}", option, known)
        arguments = [] if spec.argument is None else [spec.argument]
        try:
            inspect.signature(factory).bind(*arguments, **spec.options, **given)
        except TypeError as error:
            raise SpecError(f"{self.kind} {str(spec)!r}: {error}; its options: {', '.join(known) or 'none'}") from None
        return factory(*arguments, **spec.options, **given)

    def _plugins(self) -> list[Any]:
        return sorted(entry_points(group=self.group), key=lambda point: point.name)

    def _load(self, point: Any) -> T:
        try:
            factory: T = point.load()
        except Exception as error:
            raise SpecError(
                f"{self.kind} {point.name!r} of plug-in {point.value} cannot be imported: {error}"
            ) from error
        return factory


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
