"""From image files to batches: read, decoded and preprocessed in threads, in order, a few batches ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DecodeError, SpecError

ON_ERROR = ("fail", "skip")
_AHEAD = 2

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Compute:
    """How the work is done; none of it decides a vector.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        batch_size: images in one forward pass.
        workers: threads that read and decode; None for one for each core.
        on_error: ``fail`` at the first image that cannot be read, or ``skip`` such images.
        progress: whether to show a progress bar on stderr.
    """

    device: str = "auto"
    batch_size: int = 64
    workers: int | None = None
    on_error: str = "fail"
    progress: bool = False

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise SpecError(f"on_error={self.on_error!r}: known: {', '.join(ON_ERROR)}")
        if self.batch_size < 1 or self.threads < 1:
            raise SpecError("the batch size and the number of workers must be at least 1")

    @property
    def threads(self) -> int:
        """Number of threads that read and decode."""
        return (os.cpu_count() or 1) if self.workers is None else self.workers


def in_threads(work: Callable[[A], B], items: Iterable[A], threads: int, ahead: int) -> Iterator[B]:
    """Yield ``work(item)`` in the order of the items, with at most ``ahead`` of them under way or waiting."""
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[B]] = deque(pool.submit(work, item) for item in islice(remaining, ahead))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(remaining, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def batches(
    count: int, load: Callable[[int], NDArray[np.uint8]], compute: Compute, skipped: list[int]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield ``(rows (b,), pixels (b, h, w, 3))`` for those of ``count`` images that can be read.

    The rows of the others are added to ``skipped``.

    Raises:
        DecodeError: for the first image that cannot be read, unless ``compute.on_error`` is ``skip``.
    """

    def attempt(row: int) -> NDArray[np.uint8] | DecodeError:
        try:
            return load(row)
        except DecodeError as error:
            return error

    ahead = _AHEAD * compute.batch_size + compute.threads
    pending: list[tuple[int, NDArray[np.uint8]]] = []
    for row, result in enumerate(in_threads(attempt, range(count), compute.threads, ahead)):
        if not isinstance(result, DecodeError):
            pending.append((row, result))
        elif compute.on_error == "skip":
            skipped.append(row)
        else:
            raise result
        if len(pending) == compute.batch_size:
            yield _stack(pending)
            pending = []
    if pending:
        yield _stack(pending)


def _stack(pending: list[tuple[int, NDArray[np.uint8]]]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    rows, pixels = zip(*pending, strict=True)
    return np.array(rows, dtype=np.int64), np.stack(pixels)
