"""Cost of a network: parameters, MACs, bytes, latency, throughput and memory."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from featkit.backbones.base import Backbone, QuantizedNetwork
from featkit.backbones.devices import INT8, one_thread_per_worker
from featkit.backbones.engines import ForwardPass, open_engine
from featkit.embeddings.request import Request
from featkit.errors import SpecError
from featkit.storage import available_cores, peak_memory_mb

BATCH = 32
"""Images in a batch of the throughput and memory measurements."""

_BYTES_PER_PARAMETER = {"torch": 4, "fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class NetworkSize:
    """Size of a network.

    Attributes:
        parameters: number of parameters.
        nonzero: number of parameters that are not zero.
        macs: multiply-accumulate operations for one image; those with zero weights count too.
        bytes: of the parameters in the precision of inference; of an int8 network, its file.
    """

    parameters: int
    nonzero: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class NetworkTiming:
    """Speed of a network on the CPU.

    Attributes:
        median_ms, p95_ms: latency of one image on one thread, in milliseconds: median and 95th
            percentile.
        images_per_s: throughput in batches of 32 on one thread, from the median time.
        images_per_s_all_cores: throughput on all cores: each core runs its own batches, as in
            feature extraction; a network with ``TimedNetwork.shares`` uses all cores for one batch.
    """

    median_ms: float
    p95_ms: float
    images_per_s: float
    images_per_s_all_cores: float


@dataclass(frozen=True)
class TimedNetwork:
    """A network to time.

    Attributes:
        engine: runs the network.
        crop: ``(height, width)`` of its images in pixels.
        shares: whether it distributes one batch over the cores, as PyTorch does.
    """

    engine: ForwardPass
    crop: tuple[int, int]
    shares: bool = False


def count_macs(module: nn.Module, crop: tuple[int, int]) -> int:
    """Return the MACs of a float network for an image of ``(height, width)`` pixels."""
    # Tensors on the meta device have shapes but no values: nothing is computed.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(module).to("meta")(torch.empty(1, 3, *crop, device="meta"))
    return int(counter.get_total_flops()) // 2


def measure_size(backbone: Backbone, precision: str) -> NetworkSize:
    """Return the size of a float network in a precision.

    Raises:
        SpecError: if int8 is requested without a quantized network.
    """
    module = backbone.build()
    parameters = sum(each.numel() for each in module.parameters())
    return NetworkSize(
        parameters=parameters,
        nonzero=sum(int(torch.count_nonzero(each)) for each in module.parameters()),
        macs=count_macs(module, backbone.preprocess.crop),
        bytes=file_size(backbone)
        if precision in INT8
        else parameters * _BYTES_PER_PARAMETER[precision],
    )


def file_size(backbone: Backbone) -> int:
    """Return the bytes of the file of the quantized network.

    Raises:
        SpecError: if there is no quantized network.
    """
    if backbone.quantized is None:
        raise SpecError(
            f"{backbone.name} needs calibration for int8: give --data, "
            "or a directory of `featkit quantize`"
        )
    return backbone.quantized.path.stat().st_size


def open_any(backbone: Backbone, precision: str) -> ForwardPass:
    """Return an engine on the CPU; ``torch`` is the unoptimised PyTorch network in float32."""
    if precision != "torch":
        return open_engine(backbone, precision=precision, device="cpu")
    module = backbone.build()

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float()
            embeddings: NDArray[np.float32] = module(backbone.preprocess.normalise(batch)).numpy()
        return embeddings

    return run


def time_engines(
    networks: Sequence[TimedNetwork], *, repeats: int = 30, warm_up: int = 3, seed: int = 0
) -> list[NetworkTiming]:
    """Time all networks once in each repeat, so that a slow phase affects all of them.

    Args:
        networks: the networks.
        repeats: of a batch of 1; batches of 32 are repeated a third as often.
        warm_up: repeats that are not counted.
        seed: of the random pixels.
    """
    rng = np.random.default_rng(seed)
    cores = available_cores()
    batches = [rng.integers(0, 256, (BATCH, *each.crop, 3), dtype=np.uint8) for each in networks]
    fewer = -(-repeats // 3)
    with one_thread_per_worker() as start:
        start()
        single_calls = [
            partial(each.engine, pixels[:1]) for each, pixels in zip(networks, batches, strict=True)
        ]
        batch_calls = [
            partial(each.engine, pixels) for each, pixels in zip(networks, batches, strict=True)
        ]
        single_times = _time_interleaved(single_calls, repeats, warm_up)
        batch_times = _time_interleaved(batch_calls, fewer, 1)
    with one_thread_per_worker() as start, ThreadPoolExecutor(cores, initializer=start) as pool:
        torch.set_num_threads(cores)
        calls: list[Callable[[], object]] = []
        for each, pixels in zip(networks, batches, strict=True):
            if each.shares:
                calls.append(partial(each.engine, pixels))
            else:
                calls.append(partial(_run_on_each_core, pool, each.engine, pixels, cores))
        all_core_times = _time_interleaved(calls, fewer, 1)

    timings = []
    for each, single, batch, full in zip(
        networks, single_times, batch_times, all_core_times, strict=True
    ):
        median, p95 = 1000 * np.quantile(single, [0.5, 0.95])
        images = BATCH if each.shares else cores * BATCH
        timings.append(
            NetworkTiming(
                median_ms=float(median),
                p95_ms=float(p95),
                images_per_s=BATCH / float(np.median(batch)),
                images_per_s_all_cores=images / float(np.median(full)),
            )
        )
    return timings


def _run_on_each_core(
    pool: ThreadPoolExecutor, engine: ForwardPass, pixels: NDArray[np.uint8], cores: int
) -> None:
    list(pool.map(engine, [pixels] * cores))


def _time_interleaved(
    calls: Sequence[Callable[[], object]], repeats: int, warm_up: int
) -> list[list[float]]:
    """Return the seconds of each repeat of each call, without the warm-up."""
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(warm_up + repeats):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if repeat >= warm_up:
                times.append(time.perf_counter() - start)
    return seconds


def measure_peak_memory(
    request: Request, quantized: QuantizedNetwork | None, precision: str
) -> float:
    """Return the peak memory, in 10^6 bytes, of a new process that runs one batch of 32.

    Raises:
        SpecError: if that process failed.
    """
    task = {
        "request": request.to_dict(),
        "quantized": [str(quantized.path), quantized.digest] if quantized else None,
        "precision": precision,
    }
    code = "from featkit.compression import profile; profile.run_memory_probe()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
        raise SpecError(
            f"the memory of {request.backbone}@{precision} cannot be measured: {reason}"
        )
    return float(done.stdout)


def run_memory_probe() -> None:
    """Run one batch as described on stdin, and write the peak memory to stdout."""
    task: dict[str, Any] = json.load(sys.stdin)
    backbone = Request.from_dict(task["request"]).load_backbone()
    if task["quantized"]:
        path, digest = task["quantized"]
        backbone = replace(backbone, quantized=QuantizedNetwork(Path(path), digest))
    torch.set_num_threads(1)
    open_any(backbone, task["precision"])(np.zeros((BATCH, *backbone.preprocess.crop, 3), np.uint8))
    sys.stdout.write(str(peak_memory_mb()))
