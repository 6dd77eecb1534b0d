"""Compare fine-tuning on cached activations with the same training end to end.

    FEATKIT_TEST_DATA=... FEATKIT_WEIGHTS=... python experiments/benchmarks/training.py

Both train layer4 and the classifier of a network with frozen earlier layers, with the same settings
and seed. One reads activations of four augmented views of each image from the cache, which is empty
at first; the other decodes and augments images and runs the frozen layers in each epoch. Without
the real images and weights, nothing is measured.
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
class TimedTraining:
    """Measurements of one training.

    Attributes:
        first: seconds before the first epoch.
        epochs: seconds of each epoch.
        total: seconds of the whole training.
        disk: bytes of the cache.
        top1, interval: on the test set.
        val: validation top-1 of each epoch.
    """

    first: float
    epochs: list[float]
    total: float
    disk: int
    top1: float
    interval: tuple[float, float]
    val: list[float]


def main() -> None:
    """Measure both trainings of each network."""
    if not {"FEATKIT_TEST_DATA", "FEATKIT_WEIGHTS"} <= os.environ.keys():
        print("FEATKIT_TEST_DATA and FEATKIT_WEIGHTS are not set: nothing is measured")
        return
    arguments = parse()
    print(
        f"{arguments.limit}, {arguments.resize or 256} / {arguments.crop or 224} pixels, "
        f"{arguments.epochs} epochs"
    )
    for backbone in arguments.backbone:
        cached = timed(backbone, 4, arguments)
        report(backbone, cached, live=timed(backbone, 0, arguments))


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone", nargs="+", default=["resnet18", "resnet50"], help="[%(default)s]"
    )
    parser.add_argument(
        "--limit", default="train=1000,test=1000", help="subset of Caltech-101 [%(default)s]"
    )
    parser.add_argument("--epochs", type=int, default=20, help="[%(default)s]")
    parser.add_argument("--resize", help="shorter edge in pixels [256]")
    parser.add_argument("--crop", help="centre crop in pixels [224]")
    return parser.parse_args()


def timed(backbone: str, views: int, arguments: argparse.Namespace) -> TimedTraining:
    """Train and evaluate with an empty cache; ``views`` is 0 for training end to end."""
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
        callbacks = TrainingCallbacks(on_epoch=progress)
        start = time.perf_counter()
        trained = finetune(prepared, ExecutionConfig(compute, callbacks=callbacks))
        total = time.perf_counter() - start
        disk = sum(path.stat().st_size for path in cache.glob("*.h5"))
        report = publish_trained(trained, compute, Path(folder, "out"), lambda *_: {}).report
    epochs = [epoch.seconds for epoch in trained.history]
    val = [epoch.val.top1 for epoch in trained.history if epoch.val]
    return TimedTraining(
        total - sum(epochs), epochs, total, disk, report.top1, report.interval95, val
    )


def progress(epoch: EpochRecord) -> None:
    """Print an epoch on stderr."""
    print(
        f"  epoch {epoch.number + 1}: {epoch.seconds:.1f} s, "
        f"val top-1 {epoch.val.top1 if epoch.val else 0:.3f}",
        file=sys.stderr,
        flush=True,
    )


def reached(run: TimedTraining, level: float) -> float:
    """Return the seconds until validation top-1 first reaches a level."""
    seconds = run.first
    for duration, top1 in zip(run.epochs, run.val, strict=True):
        seconds += duration
        if top1 >= level:
            return seconds
    return float("nan")


def report(backbone: str, cached: TimedTraining, live: TimedTraining) -> None:
    """Print both trainings and their ratios."""
    level = min(max(cached.val), max(live.val))
    print(f"{backbone}: both reach a val top-1 of {level:.3f}")
    print(
        "             before   epoch (median)        total   to that val   test top-1"
        "               on disk"
    )
    for name, run in (("cached", cached), ("end to end", live)):
        low, high = run.interval
        print(
            f"{name:11}{run.first:7.1f} s{statistics.median(run.epochs):14.1f} s{run.total:11.1f} s"
            f"{reached(run, level):12.1f} s   {100 * run.top1:.1f}% "
            f"({100 * low:.1f} to {100 * high:.1f})"
            f"{run.disk / 1e6:10.0f} MB"
        )
    epoch = statistics.median(live.epochs) / statistics.median(cached.epochs)
    print(
        f"speed-up with cached activations: {epoch:.2f} per epoch, "
        f"{live.total / cached.total:.2f} in total, "
        f"{reached(live, level) / reached(cached, level):.2f} to the same val top-1"
    )


if __name__ == "__main__":
    main()
