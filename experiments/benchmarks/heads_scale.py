"""Measure time and memory of the heads from 1,000 to 1,000,000 rows of features.

    python experiments/benchmarks/heads_scale.py [--rows 1000 10000] [--heads linear knn] \
        [--out heads_scale.json]

The features are synthetic: 512 numbers per row, clustered in 100 classes, rectified as those of a
network are. They lie in a file that is opened memory-mapped, as cache files are. Each head is
fitted, and predicts 10,000 other rows, in a process of its own with one thread. ``peak`` is the
largest resident memory, pages of the mapped file included, which the system may drop at any time;
``anonymous`` is the part that it may not. With ``--out`` each point is kept as soon as it is
measured, points that are there already are not measured again, and growth exponents are fitted on
all of them. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH = 512
CLASSES = 100
PREDICTED = 10_000
HEADS = ("linear", "svm", "knn", "mlp", "prototypical")
FIGURES = ("fit_s", "predict_s", "fit_anonymous_mb", "predict_anonymous_mb", "peak_mb")
BLOCK = 20_000
CHECKED_EVERY = 0.02
"""Seconds between two looks at the memory of a process."""


# Features -----------------------------------------------------------------------------------------


def blocks(rows: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield blocks of features, row ``i`` of class ``i % 100``."""
    shared = np.random.default_rng(0)
    spread = np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5
    axes = shared.standard_normal((WIDTH, WIDTH), np.float32) * spread[:, None]
    means = shared.standard_normal((CLASSES, WIDTH), np.float32) * 0.6
    rng = np.random.default_rng(seed)
    for first in range(0, rows, BLOCK):
        number = np.arange(first, min(rows, first + BLOCK))
        noise = rng.standard_normal((len(number), WIDTH), np.float32)
        yield np.maximum(means[number % CLASSES] + noise @ axes, 0)


def write_features(path: Path, rows: int, seed: int) -> None:
    """Write features to a NumPy file, block by block."""
    file = np.lib.format.open_memmap(path, "w+", np.float32, (rows, WIDTH))
    first = 0
    for block in blocks(rows, seed):
        file[first : first + len(block)] = block
        first += len(block)
    file.flush()


# One head in a process of its own -----------------------------------------------------------------


def memory(field: str) -> float:
    """Return a field of the status of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


@contextmanager
def watched() -> Iterator[list[float]]:
    """Yield a list that holds the largest anonymous memory in MB when the block ends."""
    peak = [memory("RssAnon")]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(CHECKED_EVERY):
            peak[0] = max(peak[0], memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def measure_here(name: str, train: Path, test: Path) -> None:
    """Fit a head and predict in this process; print the figures as JSON."""
    from threadpoolctl import threadpool_limits

    from featkit.heads import make_head

    head = make_head(name, seed=0)
    x, other = np.load(train, mmap_mode="r"), np.load(test)
    y, expected = np.arange(len(x)) % CLASSES, np.arange(len(other)) % CLASSES
    before = memory("RssAnon")
    with threadpool_limits(1):
        with watched() as fit_peak:
            start = time.process_time()
            head.fit(x, y)
            fit_seconds = time.process_time() - start
        with watched() as predict_peak:
            start = time.process_time()
            predicted = head.predict_proba(other).argmax(axis=1)
            predict_seconds = time.process_time() - start
    figures = {
        "head": name,
        "rows": len(x),
        "fit_s": round(fit_seconds, 3),
        "predict_s": round(predict_seconds, 3),
        "before_mb": round(before),
        "fit_anonymous_mb": round(fit_peak[0]),
        "predict_anonymous_mb": round(predict_peak[0]),
        "peak_mb": round(memory("VmHWM")),
        "top1": round(float(np.mean(predicted == expected)), 4),
        "warnings": list(head.warnings_),
    }
    print(json.dumps(figures))


def measure(name: str, train: Path, test: Path) -> dict[str, Any]:
    """Measure a head in a new process."""
    command = [sys.executable, __file__, "--here", name, str(train), str(test)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


# Table --------------------------------------------------------------------------------------------


def growth(points: Sequence[dict[str, Any]], name: str) -> float:
    """Return the slope of the logarithm of a figure over that of the rows, by least squares."""
    rows = np.log([point["rows"] for point in points])
    values = np.log([max(point[name], 1e-3) for point in points])
    return float(np.polyfit(rows, values, 1)[0])


def print_table(points: Sequence[dict[str, Any]]) -> None:
    """Print all points, and the growth of time and memory of each head from its first to its last.

    Memory grows from that of the imports: it is counted above ``before_mb``.
    """
    print("| head | rows | fit, CPU s | predict 10,000, CPU s | anonymous, MB | peak, MB | top-1 |")
    print("|---|---|---|---|---|---|---|")
    for point in points:
        anonymous = max(point["fit_anonymous_mb"], point["predict_anonymous_mb"])
        print(
            f"| {point['head']} | {point['rows']:,} | {point['fit_s']:.2f} | "
            f"{point['predict_s']:.2f} | {anonymous} | {point['peak_mb']} | {point['top1']:.1%} |"
        )
    print("\n| head | exponent of fit | of predict | of anonymous memory | rows |")
    print("|---|---|---|---|---|")
    for name in HEADS:
        own = [point for point in points if point["head"] == name]
        if len(own) < 2:
            continue
        for point in own:
            anonymous = max(point["fit_anonymous_mb"], point["predict_anonymous_mb"])
            point["added_mb"] = max(1, anonymous - point["before_mb"])
        exponents = [growth(own, figure) for figure in ("fit_s", "predict_s", "added_mb")]
        cells = " | ".join(f"{each:.2f}" for each in exponents)
        print(f"| {name} | {cells} | {own[0]['rows']:,} to {own[-1]['rows']:,} |")


def measured(out: Path | None) -> list[dict[str, Any]]:
    """Return the points of an earlier measurement."""
    if out is None or not out.exists():
        return []
    points: list[dict[str, Any]] = json.loads(out.read_text())["points"]
    return points


def main() -> None:
    """Measure the points that are asked for and print all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--out", type=Path, help="JSON file that the points are kept in")
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        name, train, test = options.here
        measure_here(name, Path(train), Path(test))
        return
    from featkit.backbones.devices import instruction_set

    machine = {"processor": instruction_set(), "cores": os.cpu_count(), "threads": 1}
    points = measured(options.out)
    known = {(point["head"], point["rows"]) for point in points}
    with tempfile.TemporaryDirectory() as folder:
        test = Path(folder, "test.npy")
        write_features(test, PREDICTED, seed=1)
        for rows in options.rows:
            names = [name for name in options.heads if (name, rows) not in known]
            train = Path(folder, "train.npy")
            if names:
                write_features(train, rows, seed=2)
            for name in names:
                points.append(measure(name, train, test))
                print(json.dumps(points[-1]), flush=True)
                if options.out:
                    options.out.write_text(json.dumps({**machine, "points": points}, indent=2))
    points.sort(key=lambda point: (HEADS.index(point["head"]), point["rows"]))
    print(machine)
    print_table(points)


if __name__ == "__main__":
    main()
