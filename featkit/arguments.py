"""Check the types and ranges of the arguments of public functions.

The command line checks the text that a user types; a call from Python can pass anything. A wrong
argument is reported by name before any work starts, and not by whatever function fails on it first.
"""

from __future__ import annotations

import inspect
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from featkit.errors import SpecError

P = ParamSpec("P")
R = TypeVar("R")

MAX_COUNT = 2**31 - 1
"""Largest number of anything: larger ones do not fit into the integers of NumPy and torch."""

MAX_NAME = 80
"""Largest number of characters of the name of a run or network: it must fit into a table."""

MAX_SEED = 2**32 - 1
"""Largest random seed: that of NumPy's legacy generator, which scikit-learn uses."""


@dataclass(frozen=True)
class Kind:
    """What an argument may be.

    Attributes:
        accepts: completes the sentence "give ...".
        convert: returns the value as a plain Python type; raises TypeError or ValueError for a
            value that is not accepted.
    """

    accepts: str
    convert: Callable[[Any], Any]

    def check(self, name: str, value: Any) -> Any:
        """Return the converted value of the argument ``name``.

        Raises:
            SpecError: if it is not accepted.
        """
        try:
            return self.convert(value)
        except (TypeError, ValueError, OverflowError):
            raise SpecError(f"{name}={_SHORT.repr(value)}: give {self.accepts}") from None


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def text(example: str) -> Kind:
    """Return the kind of text without null characters; ``example`` is a valid value."""
    return Kind(f"text, such as {example!r}", _plain_text)


def integer(low: int, high: int = MAX_COUNT) -> Kind:
    """Return the kind of integers from ``low`` to ``high``; NumPy's integers become Python's."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError
        converted = int(value)
        if not low <= converted <= high:
            raise ValueError
        return converted

    return Kind(f"an integer {_range(low, None if high == MAX_COUNT else high)}", convert)


def number(low: float, high: float | None = None, *, below_high: bool = False) -> Kind:
    """Return the kind of finite numbers from ``low`` to ``high``, or below ``high``."""

    def convert(value: Any) -> int | float:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number:
            raise TypeError
        # 1 and 1.0 differ in the fingerprint of a training: Python's own numbers stay as they are.
        converted: int | float = value if type(value) in (int, float) else float(value)
        is_above = high is not None and (converted >= high if below_high else converted > high)
        if not math.isfinite(converted) or converted < low or is_above:
            raise ValueError
        return converted

    return Kind(f"a number {_range(low, high)}{' (exclusive)' if below_high else ''}", convert)


def several(kind: Kind, *, least: int = 0) -> Kind:
    """Return the kind of one value or a sequence of ``least`` or more; it becomes a tuple.

    A single value stays what it is.
    """

    def convert(value: Any) -> Any:
        if isinstance(value, str | bytes | os.PathLike) or not isinstance(value, Iterable):
            return kind.convert(value)
        if isinstance(value, Mapping):
            raise TypeError
        values = tuple(kind.convert(each) for each in value)
        if len(values) < least:
            raise ValueError
        return values

    count = "" if least < 1 else f" of at least {least}"
    return Kind(f"{kind.accepts}, or a list{count} of such", convert)


def mapping() -> Kind:
    """Return the kind of dictionaries with text as keys."""

    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise TypeError
        return dict(value)

    return Kind("a dictionary with text as keys", convert)


def sequence(kind: Kind, *, least: int = 0) -> Kind:
    """Return the kind of sequences of ``least`` or more values; they become tuples."""
    accepted = several(kind, least=least)

    def convert(value: Any) -> Any:
        if isinstance(value, str):
            raise TypeError
        values = accepted.convert(value)
        if not isinstance(values, tuple):
            raise TypeError
        return values

    return Kind(f"a list of at least {least}, each {kind.accepts}", convert)


def one_of(kind: Kind, *types: type) -> Kind:
    """Return the kind of what ``kind`` accepts or is an instance of one of ``types``."""

    def convert(value: Any) -> Any:
        return value if isinstance(value, types) else kind.convert(value)

    names = " or ".join(each.__name__ for each in types)
    return Kind(f"{kind.accepts}, or {names}", convert)


def instance(*types: type) -> Kind:
    """Return the kind of instances of one of ``types``."""

    def convert(value: Any) -> Any:
        if not isinstance(value, types):
            raise TypeError
        return value

    return Kind(" or ".join(each.__name__ for each in types), convert)


def _plain_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    if "\0" in value:
        raise ValueError
    return str(value)


def printable_line(value: Any) -> str:
    """Return text without the space around it.

    Raises:
        TypeError, ValueError: if it is no text, empty, or has characters that cannot be printed.
    """
    line = _filled_text(value).strip()
    # Line breaks, control characters and marks that reverse the text around them are not printable;
    # neither are the two joiners, without which Persian and Indic scripts cannot be written.
    if not line.replace("\u200c", "").replace("\u200d", "").isprintable():
        raise ValueError("it has characters that cannot be printed")
    return line


def _name(value: Any) -> str:
    name = printable_line(value)
    if len(name) > MAX_NAME:
        raise ValueError
    return name


def _path(value: Any) -> Any:
    if isinstance(value, str):
        return _expanded(_filled_text(value))
    if not isinstance(value, os.PathLike) or not isinstance(os.fspath(value), str):
        raise TypeError
    text = _filled_text(os.fspath(value))
    return value if isinstance(value, Path) and not text.startswith("~") else Path(_expanded(text))


def _expanded(text: str) -> str:
    """Return a path with the home folder in place of ``~``; a shell leaves it in ``--cache=~/x``.

    Raises:
        SpecError: if the home folder is not known, as for a user id without an entry.
    """
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        if text == "~" or text.startswith(("~/", f"~{os.sep}")):
            raise SpecError(
                f"{text}: the home folder is not known: set HOME, or give a path without ~"
            ) from error
        return text  # "~name" without such a user is a file of that name.


def _filled_text(value: Any) -> str:
    if not _plain_text(value).strip():
        raise ValueError
    return str(value)


def _flag(value: Any) -> bool:
    # NumPy's bool by name: NumPy would take longer to import than the rest of the command line.
    if type(value).__name__ not in ("bool", "bool_"):
        raise TypeError
    return bool(value)


def _count_or_text(value: Any) -> Any:
    return _plain_text(value) if isinstance(value, str) else integer(1).convert(value)


def _range(low: float, high: float | None) -> str:
    return f"of {low:n} or more" if high is None else f"from {low:n} to {high:n}"


def _numbers(value: Any) -> Any:
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or not array.ndim:
        raise TypeError
    return array


def _names_or_numbers(value: Any) -> Any:
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind not in "iuU" or array.ndim != 1:
        raise TypeError
    return array


ARRAY = Kind("an array of numbers", _numbers)
GROUPS = Kind("a sequence of texts or whole numbers", _names_or_numbers)
FLAG = Kind("True or False", _flag)
NAME = Kind(f"a name of 1 to {MAX_NAME} printable characters in one line", _name)
PATH = Kind("a path as text or pathlib.Path", _path)
SEED = integer(0, MAX_SEED)
SIZE = Kind("a number of pixels, or text such as '224' or '224x224'", _count_or_text)
DEPTH = Kind("a number of blocks, or the name of one, such as 'layer4'", _count_or_text)


def checked(**kinds: Kind) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that checks the arguments of a function before it is called.

    Args:
        kinds: of all parameters. None is accepted where it is the default.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        missing = signature.parameters.keys() - kinds.keys()
        if missing:
            raise TypeError(f"{function.__name__} has parameters without a kind: {missing}")

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            for name, value in bound.arguments.items():
                if value is None and signature.parameters[name].default is None:
                    continue
                bound.arguments[name] = kinds[name].check(name, value)
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate
