"""Exceptions for errors that the user can fix.

::

    FeatkitError
    ├── SpecError           an unknown name or option, or an invalid value
    ├── DataError           an image source that is missing, empty or inconsistent
    │   └── DecodeError     an image file that cannot be decoded
    ├── WeightsError        weights that are missing, damaged or of another network
    ├── CacheError          an embeddings file that cannot be read
    │   └── StaleCacheError   an embeddings file made with another recipe
    ├── HeadError           a head that cannot be fitted, saved or loaded
    ├── TrainingError       training that diverges or cannot be resumed
    ├── RunError            a run directory that is incomplete or was modified
    ├── StorageError        a disk that is full or cannot be written
    └── MissingExtraError   an optional dependency that is not installed

Every message is one line: what is wrong, where, and how to fix it. The command line prints it and
exits with code 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def visible(text: str) -> str:
    r"""Return the text in one line, with invisible characters as escapes like ``\u202e``.

    File and class names may hold line breaks, escape sequences that a terminal obeys, and
    characters that change the order in which text is shown. Everything that featkit prints, logs
    or writes to tables and reports passes through this function.
    """
    if text.isprintable():
        return text
    parts = []
    for char in text:
        parts.append(char if char.isprintable() else char.encode("unicode_escape").decode())
    return "".join(parts)


def first_names(names: Sequence[str], separator: str = ", ") -> str:
    """Return the first three names, and an ellipsis if there are more."""
    more = [*names[:3], "..."] if len(names) > 3 else names
    return separator.join(more)


class FeatkitError(Exception):
    """Base class of all errors that the user can fix.

    Args:
        message: what is wrong and where; with ``fixes`` empty, also what to do.
        fixes: alternatives for what to do. The command line leaves out those that name an option
            which the command does not have.
    """

    def __init__(self, message: str = "", *, fixes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.fixes = tuple(fixes)

    def __str__(self) -> str:
        return self.text(self.fixes)

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors of workers are sent to their client; subclasses have other arguments.
        return _restore, (type(self), self.args, self.__dict__)

    def text(self, fixes: Sequence[str]) -> str:
        """Return the message in one line, followed by some of the alternatives."""
        message = visible(super().__str__())
        return f"{message}: {visible(', or '.join(fixes))}" if fixes else message


def _restore(
    kind: type[FeatkitError], args: tuple[object, ...], attributes: Mapping[str, object]
) -> FeatkitError:
    """Return the copy of an error in another process."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class SpecError(FeatkitError):
    """An unknown name or option, or an invalid value."""


class OptionsError(SpecError):
    """Options that exclude each other, or one that needs another.

    The command line exits with code 2.
    """


class DataError(FeatkitError):
    """An image source that is missing, empty or inconsistent."""


class DecodeError(DataError):
    """An image file that cannot be decoded."""


class WeightsError(FeatkitError):
    """Weights that are missing, damaged or of another network."""


class CacheError(FeatkitError):
    """An embeddings file that cannot be read."""


class StaleCacheError(CacheError):
    """An embeddings file that was made with another recipe than the requested one.

    Attributes:
        fields: for each recipe field that differs, ``(value in the file, requested value)``.
    """

    def __init__(self, message: str, fields: Mapping[str, tuple[object, object]]) -> None:
        super().__init__(message)
        self.fields = dict(fields)


class HeadError(FeatkitError):
    """A head that cannot be fitted, saved or loaded."""


class TrainingError(FeatkitError):
    """Training that diverges or cannot be resumed."""


class RunError(FeatkitError):
    """A run directory that is incomplete or was modified."""


class StorageError(FeatkitError):
    """A disk that is full or cannot be written."""


class MissingExtraError(FeatkitError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'featkit[{extra}]'")
