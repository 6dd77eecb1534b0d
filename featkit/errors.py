"""What can go wrong in a way that the user can put right.

::

    FeatkitError
    ├── SpecError           a name, an option or a value that nobody knows
    ├── DataError           a source of images that is missing, empty or inconsistent
    │   └── DecodeError     one image file that cannot be read
    ├── WeightsError        weights that are absent, damaged or of another network
    ├── CacheError          an embeddings file that cannot be read
    │   └── StaleCacheError   ... or that was made by another recipe
    ├── HeadError           a head that cannot be fitted, saved or loaded
    ├── TrainingError       training that diverges, or cannot be gone on with
    ├── RunError            a run directory that is incomplete or was tampered with
    ├── StorageError        a disk that is full or cannot be written
    └── MissingExtraError   an optional dependency that is not installed

Every message is one line: what, where, what to do. The command line prints it and exits with code 1.
"""

from __future__ import annotations

from collections.abc import Mapping


class FeatkitError(Exception):
    """Something that the user can put right."""


class SpecError(FeatkitError):
    """A name, an option or a value that nobody knows."""


class OptionsError(SpecError):
    """Options that exclude each other, or one that needs another; the command line exits with code 2."""


class DataError(FeatkitError):
    """A source of images that is missing, empty or inconsistent."""


class DecodeError(DataError):
    """One image file that cannot be read."""


class WeightsError(FeatkitError):
    """Weights that are absent, damaged or of another network."""


class CacheError(FeatkitError):
    """An embeddings file that cannot be read."""


class StaleCacheError(CacheError):
    """An embeddings file that was made by another recipe than the one asked for.

    Attributes:
        fields: for each recipe field that differs, ``(in the file, asked for)``.
    """

    def __init__(self, message: str, fields: Mapping[str, tuple[object, object]]) -> None:
        super().__init__(message)
        self.fields = dict(fields)


class HeadError(FeatkitError):
    """A head that cannot be fitted, saved or loaded."""


class TrainingError(FeatkitError):
    """Training that diverges, or that cannot be gone on with."""


class RunError(FeatkitError):
    """A run directory that is incomplete or was tampered with."""


class StorageError(FeatkitError):
    """A disk that is full or cannot be written."""


class MissingExtraError(FeatkitError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'featkit[{extra}]'")
