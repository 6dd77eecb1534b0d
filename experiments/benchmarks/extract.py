"""Images per second from files to a cache file: featkit beside the plain torchvision loop, in one run, interleaved.

    FEATKIT_TEST_DATA=... FEATKIT_WEIGHTS=... python experiments/benchmarks/extract.py [--images 256] [--repeats 5]

The limit is what the cores could do if they did nothing but decode and compute: cores / (core-seconds of decoding and
preprocessing + core-seconds of the forward pass, per image). Without the real images and weights there is nothing to
measure, and it says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch.utils.data import DataLoader

from featkit import Compute, load_backbone
from featkit.backbones.engines import one_thread_each, open_engine
from featkit.embeddings.extract import run_extractions
from featkit.embeddings.pipeline import cores
from featkit.embeddings.request import Request
from featkit.images.decode import decode_file
from featkit.images.files import image_files

Timed = Callable[[], object]


def plain_loop(network: str, root: Path) -> Timed:
    """Return the loop that everyone writes; the network is built before the clock starts."""
    transform = torchvision.models.get_model_weights(network).IMAGENET1K_V1.transforms()
    images = torchvision.datasets.ImageFolder(str(root), transform=transform)
    module = torchvision.models.get_model(network)
    state = torch.load(Path(os.environ["FEATKIT_WEIGHTS"], f"{network}.pth"), weights_only=True)
    module.load_state_dict(state)
    module.fc = torch.nn.Identity()
    module.eval()

    def run() -> object:
        with torch.no_grad():
            return torch.cat([module(batch) for batch, _ in DataLoader(images, batch_size=32, num_workers=2)])

    return run


def ours(network: str, precision: str, files: list[Path], scratch: Path) -> Timed:
    """Return featkit's whole way, from files to a published cache file."""
    images = image_files(files)

    def run() -> object:
        shutil.rmtree(scratch, ignore_errors=True)
        request = Request(data="", backbone=network, precision=precision)
        return run_extractions([request], images, scratch, Compute(device="cpu"))

    return run


def core_seconds(network: str, precision: str, files: list[Path]) -> tuple[float, float]:
    """Return core-seconds per image of decoding with preprocessing, and of the forward pass, on one core."""
    backbone = load_backbone(network)
    start = time.perf_counter()
    pixels = np.stack([backbone.preprocess(decode_file(file)) for file in files[:64]])
    decoded = (time.perf_counter() - start) / len(pixels)
    engine = open_engine(backbone, precision=precision)
    with one_thread_each() as one_thread:
        one_thread()
        engine(pixels[:32])
        start = time.perf_counter()
        engine(pixels[:32]), engine(pixels[32:])
        forward = (time.perf_counter() - start) / len(pixels)
    return decoded, forward


def compare(network: str, files: list[Path], root: Path, scratch: Path, repeats: int) -> None:
    """Print one line for each way, medians over the repeats, each repeat running all ways in turn."""
    ways = {"plain loop": plain_loop(network, root)}
    ways |= {f"featkit {precision}": ours(network, precision, files, scratch) for precision in ("fp32", "bf16")}
    limits: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
            if name != "plain loop":
                limits[name].append(cores() / sum(core_seconds(network, name.split()[1], files)))
    plain = statistics.median(seconds["plain loop"])
    for name, taken in seconds.items():
        median = statistics.median(taken)
        rate = len(files) / median
        share = f"{rate / statistics.median(limits[name]):.0%}" if limits[name] else ""
        print(f"{network:10} {name:13} {rate:7.1f} images/s {plain / median:6.2f}x  {share}", flush=True)


def warm_hit(files: list[Path], scratch: Path) -> float:
    """Return the seconds that finding a whole file of these images takes."""
    images = image_files(files)
    request = Request(data="", weights="random", resize="32", precision="fp32")
    run_extractions([request], images, scratch, Compute(device="cpu"))
    start = time.perf_counter()
    (done,) = run_extractions([request], images, scratch, Compute(device="cpu"))
    assert done.hit
    return time.perf_counter() - start


PEAK = """
import resource, sys
from pathlib import Path
from featkit import Compute
from featkit.embeddings.extract import run_extractions
from featkit.embeddings.request import Request
from featkit.images.files import image_files
from dataclasses import replace
files = Path(sys.argv[1]).read_text().splitlines()
images = image_files(files)
images = replace(images, ids=tuple(map(str, range(len(files)))), key=lambda row: f"{row:064x}")
request = Request(data="", weights="random", precision="bf16", resize="64")
run_extractions([request], images, Path(sys.argv[2]), Compute(device="cpu"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak_memory(files: list[Path], count: int, scratch: Path) -> float:
    """Return the peak resident memory, in MiB, of a fresh process that embeds ``count`` images."""
    names = scratch / "names.txt"
    names.write_text("\n".join(str(file.absolute()) for file in islice(cycle(files), count)))
    command = [sys.executable, "-c", PEAK, str(names), str(scratch / f"peak{count}")]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=256)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    options.add_argument("--no-memory", action="store_true")
    chosen = options.parse_args()
    if not {"FEATKIT_TEST_DATA", "FEATKIT_WEIGHTS"} <= os.environ.keys():
        print("nothing measured: set FEATKIT_TEST_DATA and FEATKIT_WEIGHTS to real images and weights")
        return
    data = Path(os.environ["FEATKIT_TEST_DATA"])
    everything = sorted((data / "caltech101").rglob("*.jpg"))
    files = everything[:: max(1, len(everything) // chosen.images)][: chosen.images]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "images")
        for number, file in enumerate(files):
            (root / str(number % 2)).mkdir(parents=True, exist_ok=True)
            (root / str(number % 2) / f"{number}.jpg").symlink_to(file.absolute())
        print(f"{len(files)} images of Caltech-101, {cores()} cores, medians of {chosen.repeats}; last: share of limit")
        for network in chosen.networks:
            compare(network, files, root, Path(folder, "cache"), chosen.repeats)
        print(f"warm hit on {len(everything)} images: {warm_hit(everything, Path(folder, 'warm')):.2f} s")
        if not chosen.no_memory:
            few, many = (peak_memory(everything, count, Path(folder)) for count in (1_000, 10_000))
            print(f"peak memory: {few:.0f} MiB at 1,000 images, {many:.0f} MiB at 10,000 ({many / few - 1:+.1%})")


if __name__ == "__main__":
    main()
