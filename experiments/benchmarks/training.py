"""Deep fine-tuning on kept activations against the same training end to end.

    FEATKIT_TEST_DATA=... FEATKIT_WEIGHTS=... python experiments/benchmarks/training.py

Both train layer4 and the classifier of a network whose other blocks stay as they are, with the same
settings and the same seed. One reads the activations of four augmented views of each image from the
cache, which is empty at first; the other decodes, augments and runs the frozen blocks in each
epoch. Without the real images and weights there is nothing to measure, and it says so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.runs.train import publish_trained
from featkit.training.config import TrainingConfig
from featkit.training.finetune import finetune
from featkit.training.history import EpochRecord
from featkit.training.loop import ExecutionConfig, TrainingCallbacks
from featkit.training.prepare import prepare


@dataclass(frozen=True)
class Timed:
    """One training: seconds before its first epoch, of each epoch, in all; bytes on disk; top-1 and its interval."""

    first: float
    epochs: list[float]
    total: float
    disk: int
    top1: float
    interval: tuple[float, float]
    val: list[float]


def main() -> None:
    """Time both for each network."""
    if not {"FEATKIT_TEST_DATA", "FEATKIT_WEIGHTS"} <= os.environ.keys():
        print("FEATKIT_TEST_DATA and FEATKIT_WEIGHTS are not set: nothing is measured")
        return
    arguments = parse()
    print(
        f"{arguments.limit}, {arguments.resize or 256} / {arguments.crop or 224} pixels, {arguments.epochs} epochs"
    )
    for backbone in arguments.backbone:
        kept, live = (timed(backbone, views, arguments) for views in (4, 0))
        report(backbone, kept, live)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument(
        "--limit", default="train=1000,test=1000", help="part of Caltech-101 [%(default)s]"
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--resize", help="shorter edge in pixels [256]")
    parser.add_argument("--crop", help="centre crop in pixels [224]")
    return parser.parse_args()


def timed(backbone: str, views: int, arguments: argparse.Namespace) -> Timed:
    """Train, with a cache of its own."""
    data = f"{os.environ['FEATKIT_TEST_DATA']}/caltech101"
    compute = Compute(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        request = Request(
            data=data,
            limit=arguments.limit,
            backbone=backbone,
            resize=arguments.resize,
            crop=arguments.crop,
        )
        config = TrainingConfig(
            epochs=arguments.epochs, augment="light", views=views, request=request, cache=cache
        )
        prepared = prepare(config, compute)
        begun: list[float] = []
        callbacks = TrainingCallbacks(
            on_step=lambda *_: begun or begun.append(time.perf_counter()), on_epoch=progress
        )
        start = time.perf_counter()
        trained = finetune(prepared, ExecutionConfig(compute, callbacks=callbacks))
        total = time.perf_counter() - start
        disk = sum(path.stat().st_size for path in cache.glob("*.h5"))
        report = publish_trained(trained, compute, Path(folder, "out"), lambda *_: {}).report
    epochs = [epoch.seconds for epoch in trained.history]
    val = [epoch.val.top1 for epoch in trained.history if epoch.val]
    return Timed(total - sum(epochs), epochs, total, disk, report.top1, report.interval95, val)


def progress(epoch: EpochRecord) -> None:
    """Say on stderr what an epoch came to."""
    print(
        f"  epoch {epoch.number + 1}: {epoch.seconds:.1f} s, val top-1 {epoch.val.top1 if epoch.val else 0:.3f}",
        file=sys.stderr,
        flush=True,
    )


def reached(run: Timed, level: float) -> float:
    """Return the seconds after which val top-1 is first at a level, what came before the first epoch included."""
    number = next((place for place, top1 in enumerate(run.val) if top1 >= level), None)
    return float("nan") if number is None else run.first + sum(run.epochs[: number + 1])


def report(backbone: str, kept: Timed, live: Timed) -> None:
    """Print both, and the ratios."""
    level = min(max(kept.val), max(live.val))
    print(f"{backbone}: both reach a val top-1 of {level:.3f}")
    print(
        "             before   epoch (median)   all epochs   to that val   test top-1               on disk"
    )
    for name, run in (("kept", kept), ("end to end", live)):
        low, high = run.interval
        print(
            f"{name:11}{run.first:7.1f} s{statistics.median(run.epochs):14.1f} s{run.total:11.1f} s"
            f"{reached(run, level):12.1f} s   {100 * run.top1:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
            f"{run.disk / 1e6:10.0f} MB"
        )
    epoch = statistics.median(live.epochs) / statistics.median(kept.epochs)
    print(
        f"images/s in an epoch {epoch:.2f}x; wall time {live.total / kept.total:.2f}x less for all epochs, ",
        end="",
    )
    print(f"{reached(live, level) / reached(kept, level):.2f}x less to the same val top-1")


if __name__ == "__main__":
    main()
