"""TOML files in which a person asks for a study."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featkit.errors import SpecError
from featkit.registry import unknown


def read_document(path: Path, kind: str) -> dict[str, Any]:
    """Return what a TOML file holds; ``kind`` says in the error what it should be, such as ``a grid``.

    Raises:
        SpecError: if the file is not there, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"{path} cannot be read as {kind}: {error}") from error


def check_names(kind: str, found: Mapping[str, Any], known: list[str]) -> None:
    """Make sure that a table has only names that are known.

    Raises:
        SpecError: for the first that is not.
    """
    for name in found:
        if name not in known:
            raise unknown(kind, name, known)


def expanded(value: Any) -> Any:
    """Put environment variables such as ``$HOME`` into a text."""
    return os.path.expandvars(value) if isinstance(value, str) else value
