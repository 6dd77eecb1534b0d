"""Measure time and memory of the heads from 1,000 to 1,000,000 rows of features.

    python experiments/benchmarks/heads_scale.py [--rows 1000 10000] [--heads linear knn] \
        [--fit] [--out heads_scale.json]

The features are synthetic: 512 numbers per row, clustered in 100 classes, rectified as those of a
network are. They lie in a file that is opened memory-mapped, as cache files are. Each head is
fitted, and predicts 10,000 other rows, in a process of its own with one thread. ``peak`` is the
largest resident memory, pages of the mapped file included, which the system may drop at any time;
``anonymous`` is the part that it may not. With ``--out`` each point is kept as soon as it is
measured, points that are there already are not measured again, and growth exponents are fitted on
all of them. Needs Linux.

With ``--fit`` the whole command ``featkit fit --cache FILE`` is measured instead, on a cache file
of such features (names ``image0000000``, ...) of which 96 % are train, 2 % val and 2 % test rows,
drawn at random: the file is read and checked, near copies are searched, a head is fitted on train
and one on train and val, and the run is written with its figures. ``--folder`` keeps the files.
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
from contextlib import contextmanager, suppress
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
SHARES = (0.96, 0.02, 0.02)
"""Fractions of train, val and test rows in a cache file."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
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


def memory(field: str, process: int | str = "self") -> float:
    """Return a field of the status of a process, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
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


# The whole command --------------------------------------------------------------------------------


def write_cache(path: Path, rows: int) -> None:
    """Write a cache file of features, block by block."""
    from featkit.embeddings import store
    from featkit.embeddings.recipe import Recipe
    from featkit.embeddings.request import Request
    from featkit.embeddings.validation import images_digest, labels_digest
    from featkit.storage import digest

    ids = tuple(f"image{row:07d}" for row in range(rows))
    keys = tuple(f"{row:064x}" for row in range(rows))
    labels, classes = np.arange(rows) % CLASSES, tuple(f"class{row:02d}" for row in range(CLASSES))
    splits = np.random.default_rng(3).choice(["train", "val", "test"], rows, p=SHARES)
    recipe = Recipe(
        images=images_digest(ids, keys),
        labels=labels_digest(classes, labels),
        split=digest(splits.tolist()),
        perturb="none",
        backbone="import:synthetic.npy",
        weights="0" * 64,
        layer="",
        pool="",
        preprocess={},
        precision="fp32",
    )
    request = Request(data="", backbone=recipe.backbone).to_dict()
    provenance = {"data": "synthetic", "request": request, "weights": "none"}
    header = store.Header(recipe, ids, keys, labels, splits, classes, provenance)

    def numbered() -> Iterator[store.Block]:
        first = 0
        for block in blocks(rows, seed=2):
            yield np.arange(first, first + len(block)), block
            first += len(block)

    store.write(path, header, numbered())


def measure_command(head: str, file: Path, out: Path) -> dict[str, Any]:
    """Run ``featkit fit`` on a cache file; return its figures."""
    command = ["fit", "--cache", str(file), "--head", head, "--out", str(out)]
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "FEATKIT_OFFLINE": "1"}
    environment["FEATKIT_HOME"] = str(out / "home")
    anonymous = peak = 0.0
    start = time.perf_counter()
    with (out / "output.txt").open("w+b") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "featkit", *command],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            # A process that is about to end has no memory any more.
            with suppress(OSError, IndexError):
                anonymous = max(anonymous, memory("RssAnon", process.pid))
                peak = max(peak, memory("VmHWM", process.pid))
            time.sleep(CHECKED_EVERY)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    text = (out / "output.txt").read_text()
    if process.returncode:
        raise SystemExit(f"featkit {' '.join(command)} failed:\n{text}")
    run = Path(text.partition("run: ")[2].splitlines()[0])
    results = json.loads((run / "results.json").read_text())
    return {
        "command": "fit",
        "head": head,
        "wall_s": round(wall, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "anonymous_mb": round(anonymous),
        "peak_mb": round(peak),
        "run_mb": round(sum(each.stat().st_size for each in run.iterdir()) / 2**20),
        "n_train": results["provenance"]["n_train"],
        "n_test": results["n"],
        "top1": results["top1"],
        "interval95": results["interval95"],
    }


def print_commands(points: Sequence[dict[str, Any]]) -> None:
    """Print the figures of whole commands."""
    print(
        "| head | rows | wall, s | CPU s | anonymous, MB | peak, MB | run, MB | top-1 (95 % CI) | "
        "n |\n|---|---|---|---|---|---|---|---|---|"
    )
    for point in points:
        low, high = point["interval95"]
        print(
            f"| {point['head']} | {point['rows']:,} | {point['wall_s']} | {point['cpu_s']} | "
            f"{point['anonymous_mb']} | {point['peak_mb']} | {point['run_mb']} | "
            f"{point['top1']:.2%} ({low:.2%} to {high:.2%}) | {point['n_test']:,} |"
        )


def main_fit(options: argparse.Namespace, machine: dict[str, Any]) -> None:
    """Measure whole commands and print all points."""
    points = measured(options.out)
    known = {(point["head"], point["rows"]) for point in points if "command" in point}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for rows in options.rows:
            names = [name for name in options.heads if (name, rows) not in known]
            file = folder / f"synthetic-{rows}.h5"
            if names and not file.exists():
                # In a process of its own: the memory of a parent counts when it is forked.
                command = [sys.executable, __file__, "--write", str(rows), str(file)]
                subprocess.run(command, check=True)
            for name in names:
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    figures = measure_command(name, file, Path(out))
                points.append({"rows": rows, **figures})
                print(json.dumps(points[-1]), flush=True)
                if options.out:
                    options.out.write_text(json.dumps({**machine, "points": points}, indent=2))
    print(machine)
    print_commands([point for point in points if "command" in point])


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
    parser.add_argument("--fit", action="store_true", help="measure the whole command")
    parser.add_argument("--folder", type=Path, help="keeps the cache files of --fit")
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        name, train, test = options.here
        measure_here(name, Path(train), Path(test))
        return
    if options.write:
        write_cache(Path(options.write[1]), int(options.write[0]))
        return
    from featkit.backbones.devices import instruction_set

    machine = {"processor": instruction_set(), "cores": os.cpu_count(), "threads": 1}
    if options.fit:
        main_fit(options, machine)
        return
    points = [point for point in measured(options.out) if "command" not in point]
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
