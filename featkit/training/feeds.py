"""Where batches come from: decoded images, or activations in a cache file. Each is decided by seed, epoch and step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featkit.backbones.base import Preprocess
from featkit.backbones.devices import one_thread_per_worker
from featkit.backbones.engines import ForwardPass
from featkit.embeddings.lookup import open_rows
from featkit.images.augment import augment_image
from featkit.images.base import ImageSet, Pixels
from featkit.images.perturb import image_rng
from featkit.parallel import in_threads
from featkit.storage import available_cores

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class TrainingBatch:
    """What one step sees.

    Attributes:
        inputs: float32 or float16 ``(b, ...)``: normalised images, or flat activations at the cut.
        labels: ``(b,)`` int64.
        teacher: what a teacher says about them ``(b, ...)``, float32, or None.
    """

    inputs: Tensor
    labels: Tensor
    teacher: Tensor | None = None


class InputSource(Protocol):
    """What is fed to the learning part: rows and an epoch to inputs."""

    def batches(self, epoch: int, parts: Sequence[Rows]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield inputs and what the teacher says about them, for each part of rows, in order."""


@dataclass(frozen=True)
class ImageInputs:
    """Images, decoded and augmented anew in each epoch, by worker threads.

    Attributes:
        images: where they come from.
        views: ``(n, v)`` their rows, one line for each image: in each epoch it is seen in one of them.
        preprocess: of the network.
        augment: kind of augmentation (``images.augment``) or None.
        seed: of the augmentation.
        trunk: the part of the network that stays as it is, if any: pixels to flat activations.
        teacher: another network and its preprocessing, from the same augmented pixels to ``(b, ...)``.
        said: ``(rows of images, ...)`` float32 what a teacher said before, in place of ``teacher``.
    """

    images: ImageSet
    views: Rows
    preprocess: Preprocess
    augment: str | None = None
    seed: int = 0
    trunk: ForwardPass | None = None
    teacher: tuple[Preprocess, ForwardPass] | None = None
    said: NDArray[np.float32] | None = None

    def batches(self, epoch: int, parts: Sequence[Rows]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield what the network sees of each part of rows."""
        drawn = _drawn(self.views, self.seed, epoch)

        def prepare(rows: Rows) -> tuple[Tensor, Tensor | None]:
            where = drawn[rows]
            shown = [self._shown(row, epoch) for row in where.tolist()]
            pixels = np.stack([self.preprocess(each) for each in shown])
            said = None if self.said is None else self.said[where]
            if self.teacher:
                preprocess, engine = self.teacher
                said = engine(np.stack([preprocess(each) for each in shown]))
            return self._inputs(pixels), None if said is None else torch.from_numpy(said)

        with one_thread_per_worker() as start:
            # More threads than cores would only take time from the step that is under way.
            yield from in_threads(prepare, parts, available_cores(), ahead=available_cores() + 1, start=start)

    def _inputs(self, pixels: Pixels) -> Tensor:
        if self.trunk:
            return torch.from_numpy(self.trunk(pixels))
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32)
        normalised: Tensor = self.preprocess.normalise(batch)
        return normalised

    def _shown(self, row: int, epoch: int) -> Pixels:
        pixels = self.images.load(row)
        if self.augment is None:
            return pixels
        rng = image_rng(self.seed, f"{self.images.ids[row]} epoch {epoch}")
        return augment_image(pixels, self.augment, rng)


@dataclass(frozen=True)
class CachedInputs:
    """Activations in a cache file: in each epoch each image is seen in one of its views, drawn by the seed.

    Attributes:
        path: the file.
        views: ``(n, v)`` its rows, one line for each image.
        seed: of the draw.
        said: ``(rows of the file, ...)`` float32 what a teacher said, or None.
    """

    path: Path
    views: Rows
    seed: int = 0
    said: NDArray[np.float32] | None = None

    def batches(self, epoch: int, parts: Sequence[Rows]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the activations of each part of rows."""
        drawn = _drawn(self.views, self.seed, epoch)
        with open_rows(self.path) as read:

            def prepare(rows: Rows) -> tuple[Tensor, Tensor | None]:
                where = drawn[rows]
                said = None if self.said is None else torch.from_numpy(self.said[where])
                return torch.from_numpy(read(where)), said

            yield from in_threads(prepare, parts, threads=1, ahead=2)


def _drawn(views: Rows, seed: int, epoch: int) -> Rows:
    """Return ``(n,)`` the row of the view in which each image is seen in an epoch."""
    places = np.random.default_rng([seed, epoch, 1]).integers(views.shape[1], size=len(views))
    return views[np.arange(len(views)), places]


@dataclass(frozen=True)
class BatchLoader:
    """Labelled inputs, batch by batch.

    Attributes:
        inputs: of the n images.
        labels: ``(n,)`` int64, positions in the class names.
        batch_size: images in a batch, over all processes.
        order: epoch to the rows in the order in which they are seen.
        share: number of this process and number of processes: each takes its part of every batch.
    """

    inputs: InputSource
    labels: NDArray[np.int64]
    batch_size: int
    order: Callable[[int], Rows]
    share: tuple[int, int] = (0, 1)

    @property
    def steps(self) -> int:
        """Number of whole batches in an epoch; one smaller one where there is no whole one."""
        return max(1, len(self.labels) // self.batch_size)

    def batches(self, epoch: int, first: int = 0, *, whole: bool = False) -> Iterator[TrainingBatch]:
        """Yield the batches of an epoch from step ``first`` on.

        What is left over after the last whole batch is seen only with ``whole``: a batch of one has no statistics.
        """
        rows, (rank, size) = self.order(epoch), self.share
        ends = len(rows) if whole or len(rows) < self.batch_size else self.steps * self.batch_size
        parts = [rows[start : min(start + self.batch_size, ends)] for start in range(0, ends, self.batch_size)]
        mine = [part[rank::size] for part in parts[first:]]
        for part, (inputs, said) in zip(mine, self.inputs.batches(epoch, mine), strict=True):
            yield TrainingBatch(inputs, torch.from_numpy(self.labels[part]), said)


def shuffled(n: int, seed: int) -> Callable[[int], Rows]:
    """Return an order that is drawn anew for each epoch."""
    return lambda epoch: np.random.default_rng([seed, epoch]).permutation(n)


def resampled(labels: NDArray[np.int64], seed: int) -> Callable[[int], Rows]:
    """Return draws of as many rows as there are, with replacement, each class as often as any other."""
    counts = np.bincount(labels)
    chance = 1 / counts[labels] / (counts > 0).sum()
    return lambda epoch: np.random.default_rng([seed, epoch]).choice(len(labels), len(labels), p=chance)


def in_order(n: int) -> Callable[[int], Rows]:
    """Return the rows as they lie."""
    return lambda epoch: np.arange(n)
