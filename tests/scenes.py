"""Images with several labels each: a bright square for each of their labels."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import featkit

LABELS = ("left", "right", "top")
NETWORK = {"backbone": "resnet18", "weights": "random", "resize": "32", "crop": "32"}


def write_scenes(folder: Path, *, train: int = 80, test: int = 40) -> Path:
    """Write images and a table; return the path of the table."""
    rng = np.random.default_rng(0)
    lines = ["path,label,split"]
    for row in range(train + test):
        pixels = rng.integers(0, 90, (32, 32, 3)).astype(np.uint8)
        found = rng.random(3) < (0.5, 0.4, 0.3)
        for label, place in zip(found, ((12, 0), (12, 20), (0, 10)), strict=True):
            if label:
                pixels[place[0] : place[0] + 12, place[1] : place[1] + 12] += 25
        Image.fromarray(pixels).save(folder / f"{row}.png")
        names = ";".join(np.array(LABELS)[found]) or "(none)"
        lines.append(f"{row}.png,{names},{'train' if row < train else 'test'}")
    table = folder / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def fit_scenes(table: Path, work: Path, heads: list[str], **options: Any) -> Any:
    """Fit heads on the images of a table; caches and runs are in ``work``."""
    parameters = signature(featkit.fit).parameters
    given = {name: each.default for name, each in parameters.items() if name != "head"}
    given |= {**NETWORK, "data": table, "cache": work / "cache", "out": work / "runs", **options}
    return featkit.api.fit_heads(heads, **given)
