"""A directory of results is published whole or not at all."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from featkit.errors import StorageError

Content = str | bytes | Callable[[Path], None]
"""Text, bytes, or a function that writes the file at a path."""


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of the same names as CSV, the names above them."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def publish(directory: Path, files: Mapping[str, Content]) -> None:
    """Write files into a new directory beside ``directory`` and put it in its place.

    Raises:
        StorageError: if the disk is full or cannot be written; ``directory`` is then as it was.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            new.mkdir()
            for name, content in files.items():
                _write(new / name, content)
            if directory.exists():
                directory.rename(old)
            new.rename(directory)
    except OSError as error:
        message = f"cannot write {directory}: {error.strerror or error}; free some room or choose another --out"
        raise StorageError(message) from error


def _write(path: Path, content: Content) -> None:
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
