"""Make the pictures of this folder.

    python experiments/gallery/make.py [--cache cache] [--runs DIR]

FEATKIT_TEST_DATA is the folder of the data sets, FEATKIT_WEIGHTS the folder of the weights.
Pictures and runs that exist are kept: delete a picture to make it again. The screenshots of the
reports need Chromium, and are left out without it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

import featkit

GALLERY = Path(__file__).parent
DATA = Path(os.environ["FEATKIT_TEST_DATA"])
PETS, EUROSAT = DATA / "pets" / "labels.csv", DATA / "eurosat"
ANIMALS = [
    DATA / "pets" / "images" / f"{name}.jpg"
    for name in (
        "Abyssinian_130",
        "Maine_Coon_139",
        "american_bulldog_123",
        "english_cocker_spaniel_143",
        "keeshond_130",
    )
]
PROFILE = GALLERY.parent / "compression" / "resnet18.csv"

# Name of the file, kind of plot, run or other target, and options. Photographs have fewer dots per
# inch, so that the folder stays small.
PLOTS: list[tuple[str, str, str | Path | None, dict[str, Any]]] = [
    ("pareto.png", "pareto", PROFILE, {"dpi": 100, "style": "screen"}),
    ("curves.png", "curves", "eurosat", {}),
    ("confusion-eurosat.pdf", "confusion", "eurosat", {}),
    ("projection.png", "projection", "pets", {}),
    ("confusion.png", "confusion", "pets", {}),
    ("reliability.png", "reliability", "pets", {}),
    ("learning-curve.png", "learning-curve", "pets", {}),
    ("mistakes.png", "mistakes", "pets", {"count": 10, "dpi": 75}),
    ("cam.png", "cam", "pets", {"images": ANIMALS, "dpi": 75}),
    ("neighbours.png", "neighbours", "pets", {"images": ANIMALS, "dpi": 75}),
    ("filters.png", "filters", "pets", {}),
    ("feature-maps.png", "feature-maps", "pets", {"images": ANIMALS[:1]}),
    ("perturbations.png", "perturbations", None, {"images": ANIMALS[:1]}),
]
# Name of the file, run, width and height of the window.
SCREENSHOTS = [
    ("report.png", "pets", 1280, 1700),
    ("report-narrow.png", "pets", 400, 1200),
]


def main() -> None:
    """Make what does not exist yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--runs", type=Path, default=Path("experiments/runs/gallery"))
    options = parser.parse_args()
    fits: dict[str, Callable[[], object]] = {
        "pets": lambda: featkit.fit(
            PETS, backbone="resnet50", weights="imagenet", cache=options.cache, out=options.runs
        ),
        "eurosat": lambda: featkit.finetune(
            EUROSAT,
            resize="64",
            crop="64",
            limit="train=1000,test=300",
            epochs=12,
            cache=options.cache,
            out=options.runs,
        ),
    }
    runs = {name: run_of(options.runs / name, fit) for name, fit in fits.items()}
    for name, kind, target, given in PLOTS:
        if (GALLERY / name).exists():
            continue
        target = runs.get(target, target) if isinstance(target, str) else target
        given = {"style": "paper", **given}
        featkit.plot(kind, target, out=GALLERY / name, cache=options.cache, **given)
        (GALLERY / name).with_suffix(".csv").unlink()
        print(name, flush=True)
    for name, run, width, height in SCREENSHOTS:
        if not (GALLERY / name).exists():
            screenshot(GALLERY / name, runs[run], options.cache, (width, height))
    total = sum(path.stat().st_size for path in GALLERY.iterdir())
    print(f"{total / 1e6:.2f} MB")


def run_of(folder: Path, fit: Callable[[], object]) -> Path:
    """Return the directory of the run in a folder, fitted now if there is none."""
    if not list(folder.glob("*/card.json")):
        fit()
    (card,) = folder.glob("*/card.json")
    return card.parent


def screenshot(path: Path, run: Path, cache: Path, size: tuple[int, int]) -> None:
    """Write a picture of the report of a run in a window of this size."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print(f"{path.name} needs Chromium")
        return
    page = run / "report.html"
    if not page.exists():
        featkit.report(run, cache=cache)
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars"]
    command += ["--virtual-time-budget=5000", f"--window-size={size[0]},{size[1]}"]
    command += [f"--screenshot={path.absolute()}", page.absolute().as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    # 256 colours are enough for text and thumbnails, and make the file less than half as large.
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
    print(path.name)


if __name__ == "__main__":
    main()
