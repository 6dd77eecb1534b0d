"""Names of runs, as they are shown in lists."""

from __future__ import annotations

from pathlib import Path

from featkit.errors import RunError
from featkit.runs.card import read_card


def run_name(text: str) -> str:
    """Return a name for a run directory or an exported file, which need not be intact."""
    path = Path(text)
    if path.suffix == ".onnx":
        return f"{path.parent.name}/{path.name}"
    try:
        card = read_card(path)
    except RunError:
        return f"{path.name} (damaged)"
    data = Path(card.request.data).name or "images"
    backbone = Path(card.request.backbone).name
    return f"{card.head_spec} on {backbone}, {data} ({card.run[:6]})"
