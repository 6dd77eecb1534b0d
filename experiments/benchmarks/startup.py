"""Measure time and memory of the ten most usual commands, each in a new process.

    python experiments/benchmarks/startup.py [--repeats 3] [--out startup.json]

The images are noise and the network is untrained, so that it runs anywhere: loading real weights
takes as long. Where ONNX Runtime is named, the network was converted before, as it is by the first
long extraction on a machine. Rounds are interleaved; the table has the medians. Needs Linux or
macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from featkit.backbones.devices import instruction_set

PER_CLASS = 12
NETWORK = ["--backbone", "resnet18", "--weights", "random", "--precision", "fp32"]
IMAGES = ["--data", "photos", *NETWORK]
FOUR = ["--data", "four", *NETWORK]
COMMANDS = {
    "--help": ["--help"],
    "models": ["models"],
    "cache ls": ["cache", "ls"],
    "runs ls": ["runs", "ls"],
    "extract, 4 images, new cache": ["extract", *FOUR, "--engine", "torch", "--cache", "torch-{}"],
    "extract, 4 images, new cache, ONNX Runtime": ["extract", *FOUR, "--cache", "onnx-{}"],
    "extract, cache hit": ["extract", *IMAGES],
    "fit, cache hit": ["fit", *IMAGES, "--head", "linear"],
    "predict one image": ["predict", "latest", "photos/a/0.png", "--engine", "torch"],
    "predict one image, ONNX Runtime": ["predict", "latest", "photos/a/0.png"],
    "predict one image, exported file": ["predict", "model.onnx", "photos/a/0.png"],
    "runs show": ["runs", "show", "latest"],
}


def make_images(folder):
    """Write images of two classes."""
    rng = np.random.default_rng(0)
    for name, level in (("a", 60), ("b", 190)):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = np.clip(rng.normal(level, 40, (240, 320, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
        (folder / "four" / name).mkdir(parents=True)
        for number in range(2):
            shutil.copy(folder / "photos" / name / f"{number}.png", folder / "four" / name)


def measure(arguments, folder):
    """Run a command; return wall and CPU seconds and the peak memory in MB."""
    command = [sys.executable, "-m", "featkit", *arguments]
    began = time.perf_counter()
    with (folder / "output.txt").open("wb") as output:
        # The list of runs and the choice of engines are those of this measurement.
        environment = {**os.environ, "FEATKIT_HOME": str(folder / "home")}
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {(folder / 'output.txt').read_text()}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / unit,
    }


def main():
    """Measure the commands and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write all measurements as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder)
        measure(COMMANDS["fit, cache hit"], folder)
        measure(["extract", *FOUR, "--engine", "onnxruntime", "--cache", "first"], folder)
        measure(["export", "latest", "--out", "model.onnx"], folder)
        time.sleep(3)  # images that have only just been written are read again
        measure(COMMANDS["extract, cache hit"], folder)
        found = {title: [] for title in COMMANDS}
        for number in range(options.repeats):
            for title, arguments in COMMANDS.items():
                arguments = [each.format(number) for each in arguments]
                found[title].append(measure(arguments, folder))
    machine = {
        "processor": instruction_set(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("featkit", "torch", "onnxruntime", "scikit-learn")
        },
        "repeats": options.repeats,
    }
    print(machine)
    print("| command | wall, s | CPU, s | peak, MB |\n|---|---|---|---|")
    for title, runs in found.items():
        values = [median(run[name] for run in runs) for name in ("wall_s", "cpu_s", "peak_mb")]
        print(f"| {title} | {values[0]:.2f} | {values[1]:.2f} | {values[2]:.0f} |")
    if options.out:
        options.out.write_text(json.dumps({**machine, "commands": found}, indent=2))


if __name__ == "__main__":
    main()
