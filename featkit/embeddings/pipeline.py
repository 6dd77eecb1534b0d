"""From image files to vectors: each file read once, on every core, in order, a few batches at a time.

On a CPU each worker decodes a batch and runs it through the networks by itself, on one thread: cores share nothing and
wait for nobody. With a GPU the workers decode, and the calling thread feeds the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DecodeError, SpecError
from featkit.parallel import in_threads
from featkit.storage import available_cores

ON_ERROR = ("fail", "skip")
# Measured on two cores with AVX-512: 16 is 5 to 15 % faster than 32 or 64, whose activations leave the caches.
_CPU_BATCH, _GPU_BATCH = 16, 128

A = TypeVar("A")
B = TypeVar("B")

Rows = NDArray[np.int64]
Pixels = NDArray[np.uint8]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Compute:
    """How the work is done; none of it decides a vector.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        batch_size: images in one forward pass; None for what suits the device.
        workers: threads that read, decode and, on a CPU, compute; None for one for each core.
        compiled: whether torch compiles the networks first: seconds, for a few percent on a CPU.
        on_error: ``fail`` at the first image that cannot be read, or ``skip`` such images.
        progress: whether to show a progress bar on stderr.
    """

    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    compiled: bool = False
    on_error: str = "fail"
    progress: bool = False

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise SpecError(f"on_error={self.on_error!r}: known: {', '.join(ON_ERROR)}")
        if (self.batch_size is not None and self.batch_size < 1) or self.threads < 1:
            raise SpecError("the batch size and the number of workers must be at least 1")

    @property
    def threads(self) -> int:
        """Number of worker threads."""
        return available_cores() if self.workers is None else self.workers


@dataclass(frozen=True)
class PipelineTarget:
    """One of the networks that see the same images.

    Attributes:
        preprocess: uint8 ``(h, w, 3)`` to uint8 of one size.
        engine: uint8 ``(b, h, w, 3)`` to float32 ``(b, d)``; called from several threads on a CPU.
        rows: the images it needs.
    """

    preprocess: Callable[[Pixels], Pixels]
    engine: Callable[[Pixels], Vectors]
    rows: frozenset[int]


@dataclass(frozen=True)
class FeatureBatch:
    """What came of a few images.

    Attributes:
        outputs: for each target, the rows it was given ``(b,)`` and their vectors ``(b, d)``; None where it had none.
        failed: rows whose image cannot be read, and why.
        size: number of images.
    """

    outputs: list[tuple[Rows, Vectors] | None]
    failed: dict[int, DecodeError]
    size: int


def run(
    load: Callable[[int], Pixels],
    targets: Sequence[PipelineTarget],
    compute: Compute,
    *,
    on_cpu: bool,
    start: Callable[[], object] | None = None,
) -> Iterator[FeatureBatch]:
    """Yield the vectors of all rows that some target needs, batch by batch, in order; each image is read once.

    Args:
        load: row to pixels; called from several threads.
        targets: the networks.
        compute: batch size, workers, what to do about unreadable images.
        on_cpu: whether the workers run the networks too.
        start: called in each worker first.

    Raises:
        DecodeError: for the first image that cannot be read, unless ``compute.on_error`` is ``skip``.
    """
    rows = sorted(frozenset[int]().union(*(target.rows for target in targets)))
    size = compute.batch_size or (_CPU_BATCH if on_cpu else _GPU_BATCH)
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]

    def decode(part: list[int]) -> _Decoded:
        return _decode(part, load, targets, skip=compute.on_error == "skip")

    def infer(decoded: _Decoded) -> FeatureBatch:
        outputs = [
            (np.array(list(inputs)), target.engine(np.stack(list(inputs.values())))) if inputs else None
            for target, inputs in zip(targets, decoded.inputs, strict=True)
        ]
        return FeatureBatch(outputs, decoded.failed, decoded.size)

    ahead = compute.threads + 2
    if on_cpu:
        yield from in_threads(lambda part: infer(decode(part)), parts, compute.threads, ahead, start)
    else:
        yield from map(infer, in_threads(decode, parts, compute.threads, ahead, start))


@dataclass(frozen=True)
class _Decoded:
    inputs: list[dict[int, Pixels]]
    failed: dict[int, DecodeError]
    size: int


def _decode(part: list[int], load: Callable[[int], Pixels], targets: Sequence[PipelineTarget], *, skip: bool) -> _Decoded:
    inputs: list[dict[int, Pixels]] = [{} for _ in targets]
    failed = {}
    for row in part:
        try:
            pixels = load(row)
        except DecodeError as error:
            if not skip:
                raise
            failed[row] = error
            continue
        seen: dict[Callable[[Pixels], Pixels], Pixels] = {}
        for target, rows in zip(targets, inputs, strict=True):
            if row in target.rows:
                if target.preprocess not in seen:
                    seen[target.preprocess] = target.preprocess(pixels)
                rows[row] = seen[target.preprocess]
    return _Decoded(inputs, failed, len(part))
