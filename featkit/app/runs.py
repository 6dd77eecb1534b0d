"""Names and results of runs, as they are shown in lists."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from featkit.errors import RunError
from featkit.runs.card import CARD_FILE, read_card


def run_name(text: str) -> str:
    """Return a name for a run directory or an exported file, which need not be intact."""
    path = Path(text)
    if path.suffix == ".onnx":
        return f"{path.parent.name}/{path.name}"
    try:
        return _run_name(path, (path / CARD_FILE).stat().st_mtime_ns)
    except (OSError, RunError):
        return f"{path.name} (damaged)"


@lru_cache(maxsize=1000)
def _run_name(path: Path, changed: int) -> str:
    """Return the name of a run whose card was changed at a time; pages ask for it very often."""
    card = read_card(path)
    data = Path(card.request.data).name or "images"
    described = f"{card.head_spec} on {card.network}, {data}"
    return f"{card.name}: {described}" if card.name else f"{described} ({card.run[:6]})"
