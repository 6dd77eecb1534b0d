"""Measure time and peak memory of commands by the number of images.

    python experiments/benchmarks/limits.py [--images 1000 10000] [--only fit compare] [--list]

For each number, a folder of JPEG files of 32 x 32 pixels in 20 classes, and a cache file with 512
numbers for each image, which were drawn at random around a mean of its class: a network would take
a minute for 10,000 images. Each command runs in a process of its own. It may take ``--limit``
seconds; those that were stopped are reported as such. Prints a JSON line for each command: wall and
CPU seconds, and the peak of the resident memory in MB (10^6 bytes). Needs Linux or macOS.

Files that are not young are remembered by the cache, so the program waits for two seconds after it
has written the images.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# The processes that are measured are started from here, and the peak memory of a process includes
# that of its parent when it was forked: featkit and NumPy are imported in other processes only.

CLASSES, WIDTH, EDGE = 20, 512, 32
IMAGES = ("--data", "photos", "--backbone", "resnet18", "--weights", "random")
FEATURES = (*IMAGES, "--resize", str(EDGE), "--precision", "fp32")

COMMANDS = {
    "extract, files read": ("extract", *FEATURES, "--rehash"),
    "extract, cache hit": ("extract", *FEATURES),
    "cache ls": ("cache", "ls"),
    "cache verify": ("cache", "verify"),
    "fit prototypical": ("fit", *FEATURES, "--head", "prototypical"),
    "fit linear": ("fit", *FEATURES, "--head", "linear"),
    "compare": ("compare", "{prototypical}", "{linear}"),
    "audit": ("audit", *FEATURES, "--no-quality"),
    "audit, quality too": ("audit", *FEATURES),
    "ablate": ("ablate", *FEATURES, "--head", "prototypical", "--head", "knn", "--seed", "1"),
    "predict": ("predict", "{linear}", "photos", "--csv"),
    "plot projection": ("plot", "projection", "{linear}", "--out", "map.png"),
    "report": ("report", "{linear}", "--no-heat-maps"),
}
"""Commands by name. Runs that an earlier one made stand in braces."""


def main() -> None:
    """Make the data, run the commands, print a JSON line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--limit", type=float, default=600.0, help="seconds [%(default)s]")
    parser.add_argument("--folder", type=Path, help="keeps the data between calls")
    parser.add_argument("--list", action="store_true", help="print the commands")
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:  # a process of ``prepare``
        make_data(arguments.make)
        return
    if arguments.list:
        for name, command in COMMANDS.items():
            print(f"{name:20} featkit {' '.join(command)}")
        return
    for images in arguments.images:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(arguments.folder or temporary, str(images))
            prepare(folder, images)
            measure_all(folder, images, arguments)


def prepare(folder: Path, images: int) -> None:
    """Make images and features in a folder, unless they are there."""
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    program = str(Path(__file__).resolve())
    subprocess.run([sys.executable, program, "--make", str(images)], cwd=folder, check=True)
    (folder / "complete").touch()


def measure_all(folder: Path, images: int, arguments: argparse.Namespace) -> None:
    """Run the chosen commands on the data in a folder, and those that they need."""
    stored = folder / "runs.json"
    runs: dict[str, str] = json.loads(stored.read_text()) if stored.exists() else {}
    for name, command in COMMANDS.items():
        needed = re.fullmatch("fit (.+)", name)
        if name not in arguments.only and not (needed and needed[1] not in runs):
            continue
        words = [word.format(**runs) for word in command]
        found, output = measure(words, folder, arguments.limit)
        if found["exit"] == 0 and needed:
            runs[needed[1]] = re.search("^run: (.+)$", output, re.MULTILINE)[1]  # type: ignore[index]
            stored.write_text(json.dumps(runs))
        elif found["exit"]:
            found["error"] = output.strip().splitlines()[-1][:300] if output.strip() else ""
        print(json.dumps({"command": name, "images": images, **found}), flush=True)


def measure(arguments: list[str], folder: Path, limit: float) -> tuple[dict[str, Any], str]:
    """Run a command of featkit in a folder; return its figures and what it printed."""
    environment = {**os.environ, "FEATKIT_HOME": str(folder / "home"), "FEATKIT_OFFLINE": "1"}
    began = time.perf_counter()
    with (folder / "output.txt").open("w+b") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "featkit", *arguments],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        stopped = False
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            if not stopped and time.perf_counter() - began > limit:
                stopped = True
                process.kill()
            time.sleep(0.01)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    unit = 1 if sys.platform == "darwin" else 1024
    found: dict[str, Any] = {
        "wall_s": round(wall, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss * unit / 1e6),
        "exit": process.returncode,
    }
    return ({**found, "stopped": True} if stopped else found), text


def make_data(images: int) -> None:
    """Write images and the cache file of their features into the working directory."""
    import numpy as np
    from PIL import Image

    from featkit.embeddings import store
    from featkit.embeddings.extract import Extractor
    from featkit.embeddings.pipeline import Compute
    from featkit.embeddings.plan import make_provenance
    from featkit.embeddings.request import Request

    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        Path("photos", f"class {label:02d}").mkdir(parents=True, exist_ok=True)
    for row in range(images):
        pixels = rng.integers(0, 256, (EDGE // 4, EDGE // 4, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels.repeat(4, axis=0).repeat(4, axis=1))
        picture.save(Path("photos", f"class {row % CLASSES:02d}", f"{row:07d}.jpg"))
    time.sleep(2.1)

    request = Request(data="photos", weights="random", resize=str(EDGE), precision="fp32")
    plan = Extractor(Path("cache"), Compute()).plan(request)
    header = store.Header(
        recipe=plan.recipe,
        ids=plan.images.ids,
        keys=plan.keys,
        labels=plan.images.labels,
        splits=plan.images.splits,
        classes=plan.images.classes,
        provenance=make_provenance(plan, Compute()),
    )
    # Sparse and not negative, as features of a ResNet; about one error in ten.
    means = rng.normal(0, 0.1, (CLASSES, WIDTH))

    def blocks() -> Any:
        for first in range(0, images, 1024):
            rows = np.arange(first, min(images, first + 1024))
            drawn = means[plan.images.labels[rows]] + rng.normal(size=(len(rows), WIDTH))
            yield rows, np.maximum(drawn, 0).astype(np.float32)

    store.write(plan.path, header, blocks())


if __name__ == "__main__":
    main()
