"""Measure extraction in shards and grids on a Dask cluster of this machine.

    python experiments/benchmarks/scaling.py [workers] [merge] [memory] [cells] [soak]

workers: images per second with one and with two worker processes of one thread each, and the share
of sharding and merging. merge: time to merge synthetic shards. memory: peak memory of the driver
for several numbers of synthetic rows. cells: overhead per cell of a grid of tiny cells, here and on
a cluster. soak: synthetic shards while workers are killed; the merged file is verified.

Synthetic shards are cache files with random features and keys, as ``featkit extract --shard``
writes them. Times are CPU seconds unless the name says wall: other programs may run at the same
time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from featkit.ablation.executors.cluster import connect
from featkit.ablation.grid import Grid
from featkit.ablation.run import AblationConfig, run_grid
from featkit.embeddings import store
from featkit.embeddings.extract import Extractor
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.recipe import Part, Recipe
from featkit.embeddings.request import Request
from featkit.embeddings.shards import (
    Shard,
    extract_in_parallel,
    find_shards,
    merge_shards,
    parts_of,
)
from featkit.embeddings.validation import SHARDS, images_digest, labels_digest
from featkit.embeddings.verify import verify
from featkit.storage import SequenceDigest, peak_memory_mb


def main() -> None:
    """Run the parts that were asked for; print a JSON line for each figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {
        "workers": measure_workers,
        "merge": measure_merge,
        "memory": measure_memory,
        "cells": measure_cells,
        "soak": measure_soak,
    }
    parser.add_argument("parts", nargs="*", default=list(parts), help="[all]")
    parser.add_argument("--rows", type=int, default=100_000, help="synthetic rows [%(default)s]")
    parser.add_argument("--width", type=int, default=512, help="of synthetic rows [%(default)s]")
    parser.add_argument("--shards", type=int, default=100, help="[%(default)s]")
    parser.add_argument("--limit", default="train=600,test=200", help="images [%(default)s]")
    parser.add_argument("--cells", type=int, default=1000, help="[%(default)s]")
    parser.add_argument("--kill", type=float, default=30.0, help="seconds between kills")
    arguments = parser.parse_args()
    for name in arguments.parts:
        if name == "merge-in-this-process":  # a process of ``measure_memory``
            merge_here(Path(os.environ["SCALING_CACHE"]))
        else:
            parts[name](arguments)


def report(**figures: Any) -> None:
    """Print figures as one JSON line."""
    print(json.dumps(figures), flush=True)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the processes that it has waited for."""
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


# Extraction ---------------------------------------------------------------------------------------


def measure_workers(arguments: argparse.Namespace) -> None:
    """Extract the same images here, with one worker and with two, in turn."""
    real = {"FEATKIT_TEST_DATA", "FEATKIT_WEIGHTS"} <= os.environ.keys()
    data = str(Path(os.environ["FEATKIT_TEST_DATA"], "caltech101")) if real else "digits"
    request = Request(
        data=data,
        limit=arguments.limit,
        weights="imagenet" if real else "random",
        precision="fp32",
    )
    compute = Compute(workers=1, device="cpu")
    images = len(request.load_images())
    for name in ("here", "local:1", "local:2"):
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder)
            before, start = cpu_seconds(), time.perf_counter()
            if name == "here":
                Extractor(cache, compute).extract([request])
                wall = time.perf_counter() - start
            else:
                with connect(name, folders=[cache]) as executor:
                    start = time.perf_counter()
                    extract_in_parallel([request], cache, compute, executor.run)
                    wall = time.perf_counter() - start
            cpu = cpu_seconds() - before
        report(part="workers", run=name, images=images, wall=round(wall, 1), cpu=round(cpu, 1))


# Synthetic shards ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SyntheticShard:
    """A shard of ``rows`` rows in all, with random features."""

    cache: Path
    rows: int
    width: int
    shard: Shard


def make_shard(task: SyntheticShard) -> str:
    """Write a synthetic shard unless it exists; return its path."""
    parts, sizes, whole = synthetic_set(task.rows, task.shard.count)
    rows = np.flatnonzero(parts == task.shard.number - 1)
    labels = rows % len(SYNTHETIC_CLASSES)
    ids = tuple(synthetic_name(row) for row in rows.tolist())
    keys = tuple(f"{row:064x}" for row in rows.tolist())
    recipe = replace(
        whole,
        images=images_digest(ids, keys),
        labels=labels_digest(SYNTHETIC_CLASSES, labels),
    )
    part = Part(task.shard.number, task.shard.count, sizes, whole, rows)
    folder = task.cache / SHARDS / f"synthetic-{whole.fingerprint[:12]}"
    path = folder / f"{task.shard.stem}-{recipe.fingerprint[:12]}.h5"
    if path.exists():
        return str(path)
    header = store.Header(
        recipe=recipe,
        ids=ids,
        keys=keys,
        labels=labels,
        splits=np.full(len(rows), "train"),
        classes=SYNTHETIC_CLASSES,
        provenance={"data": "synthetic", "request": {"data": ""}, "shard": part.to_dict()},
        positions=rows,
    )
    store.write(path, header, synthetic_blocks(len(rows), task.width, task.shard.number))
    return str(path)


SYNTHETIC_CLASSES = tuple(f"class {number}" for number in range(10))


def synthetic_name(row: int) -> str:
    """Return the name of a synthetic image."""
    return f"image{row:09d}.jpg"


@lru_cache(maxsize=1)
def synthetic_set(rows: int, count: int) -> tuple[Any, tuple[int, ...], Recipe]:
    """Return the part of each of ``rows`` images, the sizes of the parts, and their recipe."""
    parts = parts_of(map(synthetic_name, range(rows)), count)
    names = SequenceDigest()
    for first in range(0, rows, 4096):
        names.update([synthetic_name(row) for row in range(first, min(rows, first + 4096))])
    whole = Recipe(
        images=names.hexdigest(),
        labels=labels_digest(SYNTHETIC_CLASSES, np.arange(rows) % len(SYNTHETIC_CLASSES)),
        split="none",
        perturb="none",
        backbone="synthetic",
        weights="none",
        layer="none",
        pool="none",
        preprocess={},
        precision="fp32",
    )
    return parts, tuple(np.bincount(parts, minlength=count).tolist()), whole


def synthetic_blocks(rows: int, width: int, seed: int) -> Any:
    """Yield blocks of random features."""
    rng = np.random.default_rng(seed)
    for first in range(0, rows, 1024):
        size = min(1024, rows - first)
        yield np.arange(first, first + size), rng.random((size, width), dtype=np.float32)


def make_all(arguments: argparse.Namespace, cache: Path, rows: int) -> list[SyntheticShard]:
    """Return the tasks of all shards of ``rows`` rows."""
    count = min(arguments.shards, rows)
    tasks = []
    for number in range(1, count + 1):
        tasks.append(SyntheticShard(cache, rows, arguments.width, Shard(number, count)))
    return tasks


def measure_merge(arguments: argparse.Namespace) -> None:
    """Merge synthetic shards, into a file and into a virtual one."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        before = cpu_seconds()
        for task in make_all(arguments, cache, arguments.rows):
            make_shard(task)
        made = cpu_seconds() - before
        (paths,) = find_shards(cache)
        for virtual in (True, False):
            before, start = cpu_seconds(), time.perf_counter()
            merged = merge_shards(paths, cache, virtual=virtual)
            report(
                part="merge",
                virtual=virtual,
                rows=arguments.rows,
                width=arguments.width,
                shards=len(paths),
                cpu=round(cpu_seconds() - before, 2),
                wall=round(time.perf_counter() - start, 2),
                making_cpu=round(made, 1),
                bytes=merged.path.stat().st_size,
                peak_mb=round(peak_memory_mb()),
            )
            if not virtual:
                before = cpu_seconds()
                assert verify(merged.path, Compute()) == []
                report(part="verify", rows=arguments.rows, cpu=round(cpu_seconds() - before, 2))
            merged.path.unlink()


def measure_memory(arguments: argparse.Namespace) -> None:
    """Merge ever more rows in a new process each; print its peak memory."""
    for rows in (1000, arguments.rows, 10 * arguments.rows):
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder)
            for task in make_all(arguments, cache, rows):
                make_shard(task)
            environment = {**os.environ, "SCALING_CACHE": folder, "SCALING_ROWS": str(rows)}
            command = [sys.executable, __file__, "merge-in-this-process"]
            subprocess.run(command, check=True, env=environment)


def merge_here(cache: Path) -> None:
    """Merge the shards in a cache; print the peak memory of this process."""
    before = peak_memory_mb()
    (paths,) = find_shards(cache)
    merge_shards(paths, cache)
    rows = int(os.environ["SCALING_ROWS"])
    report(part="memory", rows=rows, before_mb=round(before), peak_mb=round(peak_memory_mb()))


# Grids --------------------------------------------------------------------------------------------


def measure_cells(arguments: argparse.Namespace) -> None:
    """Run a grid of tiny cells in this process and on a cluster of one worker."""
    axes = {
        "weights": ("random",),
        # Heads that are fitted in no time, and differ: another seed would choose other images.
        "head": tuple(f"knn:k=1,temperature={1 + cell}" for cell in range(arguments.cells)),
        "subset": ("kshot:k=1",),
    }
    fixed = {"split": "80/10/10", "limit": "train=20,test=10", "resize": "16", "crop": "16"}
    grid = Grid("tiny", {"data": ("digits",), **axes}, fixed)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("here", "local:1"):
            work = AblationConfig(Path(folder, name[:4]), Path(folder, "cache"), Compute(workers=1))
            if name == "here":
                Extractor(work.cache, work.compute)
                measure_grid(name, grid, work)
            else:
                with connect(name, folders=[work.out, work.cache]) as executor:
                    measure_grid(name, grid, replace(work, executor=executor, jobs=1))


def measure_grid(name: str, grid: Grid, work: AblationConfig) -> None:
    """Run a grid whose features are cached; print the time per cell that is not fitting."""
    first = replace(grid, axes={**grid.axes, "head": grid.axes["head"][:1]})
    run_grid(first, replace(work, out=work.out / "warm"))
    before, start = cpu_seconds(), time.perf_counter()
    result = run_grid(grid, work)
    wall = time.perf_counter() - start
    busy = sum(cell.seconds for cell in result.cells)
    cells = len(result.cells)
    assert all(cell.status == "ok" for cell in result.cells), result.cells[0].reason
    report(
        part="cells",
        run=name,
        cells=cells,
        wall=round(wall, 1),
        client_cpu=round(cpu_seconds() - before, 1),
        fitting=round(busy, 1),
        overhead_ms=round(1000 * (wall - busy) / cells, 1),
    )


# Soak ---------------------------------------------------------------------------------------------


def measure_soak(arguments: argparse.Namespace) -> None:
    """Make shards on two workers while one is killed now and then; verify the merged file."""
    kills = 0
    done = threading.Event()
    with tempfile.TemporaryDirectory() as folder, connect("local:2") as executor:
        cache = Path(folder)

        def kill() -> None:
            nonlocal kills
            while not done.wait(arguments.kill):
                victims = executor.client.run(os.getpid)
                os.kill(next(iter(victims.values())), signal.SIGKILL)
                kills += 1

        killer = threading.Thread(target=kill)
        killer.start()
        start = time.perf_counter()
        tasks = make_all(arguments, cache, arguments.rows)
        failed = [each for each in executor.run(make_shard, tasks) if each.worker_died]
        done.set()
        killer.join()
        (paths,) = find_shards(cache)
        merged = merge_shards(paths, cache)
        problems = verify(merged.path, Compute())
        report(
            part="soak",
            rows=merged.rows,
            shards=len(paths),
            kills=kills,
            failed=len(failed),
            problems=len(problems),
            wall=round(time.perf_counter() - start, 1),
        )


if __name__ == "__main__":
    main()
