"""What was found out about engines on this machine is kept in a folder of the user."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featkit.backbones.devices import cpu_flags
from featkit.extras import package_version
from featkit.storage import HOME_VARIABLE, cache_folder, digest, user_path


def engine_folder() -> Path | None:
    """Return the folder; None if no home folder is known."""
    given = os.environ.get(HOME_VARIABLE)
    if given:
        return user_path(given) / "engines"
    return cache_folder("engines")


def machine_key(parts: Sequence[Any], packages: Sequence[str]) -> str:
    """Return a name for what was found out about something on this machine.

    Args:
        parts: what it is about, as JSON can represent it.
        packages: packages whose versions count, besides featkit's.
    """
    values = {
        "parts": list(parts),
        "versions": [package_version(name) for name in ("featkit", *packages)],
        "machine": [platform.machine(), platform.processor(), sorted(cpu_flags())],
    }
    return digest([json.dumps(values, sort_keys=True)])[:24]
