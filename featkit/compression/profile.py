"""What a network costs: numbers, operations, bytes, time, memory."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from featkit.backbones.base import Backbone, QuantizedNetwork
from featkit.backbones.engines.torch import Engine, one_thread_each, open_engine
from featkit.backbones.precision import INT8
from featkit.embeddings.request import Request
from featkit.errors import SpecError
from featkit.storage import available_cores, peak_memory_mb

BATCH = 32
_BYTES = {"torch": 4, "fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class NetworkSize:
    """How large a network is.

    Attributes:
        parameters: numbers that were learned.
        nonzero: those of them that are not zero.
        macs: multiplications and additions, as pairs, for one image; zeros are multiplied like other numbers.
        bytes: of the parameters in the type that they run in; of an int8 network, its file.
    """

    parameters: int
    nonzero: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class NetworkTiming:
    """How fast a network is.

    Attributes:
        median_ms, p95_ms: time for a batch of one image on one thread: its median and its 95th percentile, in
            milliseconds.
        images_per_s: throughput at batches of 32 on one thread, by the median time.
        images_per_s_all_cores: the same with all cores at work: each on a batch of its own, as when vectors are
            made, or all of them on one, as torch does by itself.
    """

    median_ms: float
    p95_ms: float
    images_per_s: float
    images_per_s_all_cores: float


@dataclass(frozen=True)
class TimedNetwork:
    """What is timed: a network, the ``(height, width)`` in pixels of its images, and whether it shares out a batch.

    A network that does not share out a batch among the cores by itself is given as many batches as there are cores.
    """

    engine: Engine
    crop: tuple[int, int]
    shares: bool = False


def count_macs(module: nn.Module, crop: tuple[int, int]) -> int:
    """Return the MACs of a float network, on any device, for an image of ``(height, width)`` pixels."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(module).to("meta")(torch.empty(1, 3, *crop, device="meta"))
    return int(counter.get_total_flops()) // 2


def measure_size(backbone: Backbone, precision: str) -> NetworkSize:
    """Return the size of a float network in the type that it runs in.

    Raises:
        SpecError: if int8 is asked for without a quantized network.
    """
    module = backbone.build()
    parameters = sum(each.numel() for each in module.parameters())
    return NetworkSize(
        parameters,
        sum(int(torch.count_nonzero(each)) for each in module.parameters()),
        count_macs(module, backbone.preprocess.crop),
        file_size(backbone) if precision in INT8 else parameters * _BYTES[precision],
    )


def file_size(backbone: Backbone) -> int:
    """Return the bytes of the quantized file.

    Raises:
        SpecError: if the network was not quantized.
    """
    if backbone.quantized is None:
        raise SpecError(
            f"{backbone.name} has to be calibrated for int8: give --data, or a directory of `featkit quantize`"
        )
    return backbone.quantized.path.stat().st_size


def open_any(backbone: Backbone, precision: str) -> Engine:
    """Return what runs a network on a CPU; ``torch`` is the network as torch runs it by itself, in float32."""
    if precision != "torch":
        return open_engine(backbone, precision=precision, device="cpu")
    module = backbone.build()

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float()
            vectors: NDArray[np.float32] = module(backbone.preprocess.normalise(batch)).numpy()
        return vectors

    return run


def time_engines(networks: Sequence[TimedNetwork], *, repeats: int = 30, warm_up: int = 3, seed: int = 0) -> list[NetworkTiming]:
    """Time some networks, one after the other in every repeat: what slows the machine slows all.

    Args:
        networks: what is timed.
        repeats: of a batch of 1; batches of 32 are repeated a third as often.
        warm_up: repeats before those that count.
        seed: of the random pixels.
    """
    rng = np.random.default_rng(seed)
    inputs = [rng.integers(0, 256, (BATCH, *each.crop, 3), dtype=np.uint8) for each in networks]
    pairs = [(each.engine, pixels) for each, pixels in zip(networks, inputs, strict=True)]
    fewer = -(-repeats // 3)
    with one_thread_each() as start:
        start()
        one = _interleaved([_call(engine, pixels[:1]) for engine, pixels in pairs], repeats, warm_up)
        many = _interleaved([_call(engine, pixels) for engine, pixels in pairs], fewer, 1)
    with one_thread_each() as start, ThreadPoolExecutor(available_cores(), initializer=start) as pool:
        torch.set_num_threads(available_cores())
        calls = [
            _call(each.engine, pixels) if each.shares else _on_each_core(pool, each.engine, pixels)
            for each, pixels in zip(networks, inputs, strict=True)
        ]
        full = _interleaved(calls, fewer, 1)
    batches = [1 if each.shares else available_cores() for each in networks]
    return [_timing(*times) for times in zip(one, many, full, batches, strict=True)]


def _timing(one: list[float], many: list[float], full: list[float], batches: int) -> NetworkTiming:
    median, p95 = 1000 * np.quantile(one, [0.5, 0.95])
    return NetworkTiming(float(median), float(p95), BATCH / float(np.median(many)), batches * BATCH / float(np.median(full)))


def _on_each_core(pool: ThreadPoolExecutor, engine: Engine, pixels: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: list(pool.map(engine, [pixels] * available_cores()))


def _call(engine: Engine, pixels: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: engine(pixels)


def _interleaved(calls: Sequence[Callable[[], object]], repeats: int, warm_up: int) -> list[list[float]]:
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(warm_up + repeats):
        for call, taken in zip(calls, seconds, strict=True):
            begun = time.perf_counter()
            call()
            if repeat >= warm_up:
                taken.append(time.perf_counter() - begun)
    return seconds


def peak_memory(request: Request, quantized: QuantizedNetwork | None, precision: str) -> float:
    """Return the peak memory, in 10^6 bytes, of a fresh process that runs one batch of 32, libraries included.

    Raises:
        SpecError: if that process failed.
    """
    task = {"request": request.to_dict(), "quantized": quantized and [str(quantized.path), quantized.digest]}
    code = "from featkit.compression import profile; profile.run_probe()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps({**task, "precision": precision}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
        raise SpecError(f"the memory of {request.backbone}@{precision} cannot be measured: {reason}")
    return float(done.stdout)


def run_probe() -> None:
    """Do what ``peak_memory`` has a fresh process do: read a task from stdin, write bytes to stdout."""
    task: dict[str, Any] = json.load(sys.stdin)
    backbone = Request.from_dict(task["request"]).load_backbone()
    if task["quantized"]:
        path, digest = task["quantized"]
        backbone = replace(backbone, quantized=QuantizedNetwork(Path(path), digest))
    torch.set_num_threads(1)
    open_any(backbone, task["precision"])(np.zeros((BATCH, *backbone.preprocess.crop, 3), np.uint8))
    sys.stdout.write(str(peak_memory_mb()))
