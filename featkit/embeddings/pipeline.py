"""Pipeline from image files to features: each file is read once, on every core and in order.

On a CPU each worker decodes a batch and runs it through the networks by itself, on one thread: the
cores share nothing and never wait for each other. With a GPU the workers decode, and the calling
thread feeds the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featkit.arguments import FLAG, integer, text
from featkit.backbones.engines import ENGINES
from featkit.errors import DecodeError, SpecError
from featkit.parallel import in_threads
from featkit.registry import check_names
from featkit.storage import available_cores

ON_ERROR = ("fail", "skip")
# Measured on two cores with AVX-512: 16 is 5 to 15 % faster than 32 or 64, whose activations leave
# the caches.
_CPU_BATCH, _GPU_BATCH = 16, 128

Rows = NDArray[np.int64]
Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]


@dataclass(frozen=True)
class Compute:
    """Options of the computation that do not change the features.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        engine: of float32 networks on a CPU: ``torch``, ``onnxruntime``, or ``auto`` for the one
            that is faster here, once that has been measured, see ``backbones.engines.choice``.
        batch_size: images per forward pass; None for a default that depends on the device.
        workers: threads that read, decode and, on a CPU, compute; None for one per core.
        compiled: whether to compile the networks with ``torch.compile`` first, which takes seconds
            and saves a few percent on a CPU.
        rehash: whether to read every image file to learn whether it has changed, instead of those
            whose size, inode or times have.
        on_error: ``fail`` at the first image that cannot be read, or ``skip`` such images.
        progress: whether to show a progress bar on stderr.
        on_batch: called with the number of images that went through the networks, and of all that
            will, after each batch.
    """

    device: str = "auto"
    engine: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    compiled: bool = False
    rehash: bool = False
    on_error: str = "fail"
    progress: bool = False
    on_batch: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        text("cpu").check("device", self.device)
        for name in ("batch_size", "workers"):
            if getattr(self, name) is not None:
                # NumPy's integers become Python's, which JSON can hold.
                count = integer(1).check(name, getattr(self, name))
                object.__setattr__(self, name, count)
        for name in ("compiled", "rehash", "progress"):
            FLAG.check(name, getattr(self, name))
        check_names("engine", [self.engine], ENGINES)
        if self.on_error not in ON_ERROR:
            raise SpecError(f"on_error={self.on_error!r}: use one of {', '.join(ON_ERROR)}")

    @property
    def threads(self) -> int:
        """Number of worker threads."""
        return available_cores() if self.workers is None else self.workers

    @property
    def images_per_batch(self) -> int:
        """Images per forward pass, with the default of the device."""
        from featkit.backbones.devices import pick_device

        default = _CPU_BATCH if pick_device(self.device) == "cpu" else _GPU_BATCH
        return self.batch_size or default


@dataclass(frozen=True)
class PipelineTarget:
    """A network and the images to embed with it.

    Attributes:
        preprocess: uint8 ``(h, w, 3)`` to uint8 of one size.
        engine: uint8 ``(b, h, w, 3)`` to float32 ``(b, d)``; called from several threads on a CPU.
        rows: the images to embed.
    """

    preprocess: Callable[[Pixels], Pixels]
    engine: Callable[[Pixels], Features]
    rows: frozenset[int]


@dataclass(frozen=True)
class FeatureBatch:
    """Features of one batch of images.

    Attributes:
        outputs: for each target, rows ``(b,)`` and their features ``(b, d)``; None if no row of the
            batch is for it.
        failed: the error of each row whose image cannot be read.
        size: number of images.
        engines: what runs each target's network, see ``Engine.name``.
    """

    outputs: list[tuple[Rows, Features] | None]
    failed: dict[int, DecodeError]
    size: int
    engines: tuple[str, ...] = ()


def run(
    load: Callable[[int], Pixels],
    targets: Sequence[PipelineTarget],
    compute: Compute,
    *,
    on_cpu: bool,
    start: Callable[[], object] | None = None,
) -> Iterator[FeatureBatch]:
    """Yield the features of all rows of all targets batch by batch; each image is read once.

    Args:
        load: row to pixels; called from several threads.
        targets: the networks.
        compute: batch size, workers, treatment of unreadable images.
        on_cpu: whether the workers run the networks too.
        start: called in each worker first.

    Raises:
        DecodeError: for the first image that cannot be read, unless ``compute.on_error`` is
            ``skip``.
    """
    rows = sorted(frozenset[int]().union(*(target.rows for target in targets)))
    size = compute.batch_size or (_CPU_BATCH if on_cpu else _GPU_BATCH)
    batches = [rows[first : first + size] for first in range(0, len(rows), size)]

    def decode(batch: list[int]) -> _DecodedBatch:
        return _decode(batch, load, targets, skip=compute.on_error == "skip")

    def decode_and_embed(batch: list[int]) -> FeatureBatch:
        return _embed(decode(batch), targets)

    ahead = compute.threads + 2
    if on_cpu:
        yield from in_threads(decode_and_embed, batches, compute.threads, ahead, start)
        return
    for decoded in in_threads(decode, batches, compute.threads, ahead, start):
        yield _embed(decoded, targets)


@dataclass(frozen=True)
class _DecodedBatch:
    """Preprocessed images of one batch: for each target by row."""

    inputs: list[dict[int, Pixels]]
    failed: dict[int, DecodeError]
    size: int


def _decode(
    batch: list[int],
    load: Callable[[int], Pixels],
    targets: Sequence[PipelineTarget],
    *,
    skip: bool,
) -> _DecodedBatch:
    inputs: list[dict[int, Pixels]] = [{} for _ in targets]
    failed = {}
    for row in batch:
        try:
            pixels = load(row)
        except DecodeError as error:
            if not skip:
                raise
            failed[row] = error
            continue
        # Networks with the same preprocessing share its result.
        done: dict[Callable[[Pixels], Pixels], Pixels] = {}
        for target, target_inputs in zip(targets, inputs, strict=True):
            if row not in target.rows:
                continue
            if target.preprocess not in done:
                done[target.preprocess] = target.preprocess(pixels)
            target_inputs[row] = done[target.preprocess]
    return _DecodedBatch(inputs, failed, len(batch))


def _embed(decoded: _DecodedBatch, targets: Sequence[PipelineTarget]) -> FeatureBatch:
    outputs: list[tuple[Rows, Features] | None] = []
    for target, inputs in zip(targets, decoded.inputs, strict=True):
        if not inputs:
            outputs.append(None)
            continue
        features = target.engine(np.stack(list(inputs.values())))
        outputs.append((np.array(list(inputs)), features))
    return FeatureBatch(outputs, decoded.failed, decoded.size)
