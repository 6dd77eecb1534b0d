"""Batches of a training: decoded images, or cached activations of the frozen layers.

The content of every batch depends on seed, epoch and step only, so that a resumed training sees the
same batches as one that was not interrupted.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featkit.backbones.base import Preprocess
from featkit.backbones.devices import one_thread_per_worker
from featkit.backbones.engines import ForwardPass, open_engine
from featkit.embeddings import store
from featkit.embeddings.extract import run_extractions
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys, plan_extraction
from featkit.embeddings.request import Request
from featkit.embeddings.store import open_rows
from featkit.errors import StorageError
from featkit.images.augment import add_augmented_views, augment_image
from featkit.images.base import ImageSet, Pixels
from featkit.images.perturb import image_rng
from featkit.parallel import in_threads
from featkit.storage import available_cores
from featkit.training.network import WHOLE, TrainableBody, frozen_output_layer
from featkit.training.prepare import PreparedTraining

Rows = NDArray[np.int64]

_VIEW_SEED = 0
"""Seed of cached views; not that of the training, so that trainings share a cache file."""


@dataclass(frozen=True)
class TrainingBatch:
    """Inputs of one training step.

    Attributes:
        inputs: normalised images ``(b, 3, h, w)``, float32, or flattened activations ``(b, c * h *
            w)`` of the frozen layers, float32 or float16.
        labels: ``(b,)`` int64.
        teacher_outputs: ``(b, ...)`` float32, see ``Teacher``, or None.
    """

    inputs: Tensor
    labels: Tensor
    teacher_outputs: Tensor | None = None


@dataclass(frozen=True)
class Teacher:
    """The teacher of a distillation.

    Attributes:
        request: its network.
        outputs: its embeddings ``(b, d)`` to what the loss compares with ``(b, ...)``, float32.
    """

    request: Request
    outputs: Callable[[NDArray[np.float32]], NDArray[np.float32]]


class InputSource(Protocol):
    """Inputs of the trainable layers, by row and epoch."""

    def batches(
        self, epoch: int, batches: Sequence[Rows]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield inputs and teacher outputs of each batch of rows, in order."""


@dataclass(frozen=True)
class ImageInputs:
    """Images, decoded and augmented in each epoch by worker threads.

    Attributes:
        images: the images.
        views: ``(n, v)`` rows of ``images``, one line for each training image: in each epoch one of
            them is drawn.
        preprocess: of the network.
        augment: name of an augmentation (``images.augment``), or None.
        seed: of the augmentation, and of the draw of views.
        frozen_layers: runs the frozen layers: pixels to flattened activations; None if there are
            none.
        teacher: preprocessing of the teacher, and an engine from its pixels to its outputs, or
            None.
        teacher_outputs: ``(rows of images, ...)`` float32 precomputed outputs, instead of
            ``teacher``.
    """

    images: ImageSet
    views: Rows
    preprocess: Preprocess
    augment: str | None = None
    seed: int = 0
    frozen_layers: ForwardPass | None = None
    teacher: tuple[Preprocess, ForwardPass] | None = None
    teacher_outputs: NDArray[np.float32] | None = None

    def batches(
        self, epoch: int, batches: Sequence[Rows]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield inputs and teacher outputs of each batch of rows."""
        chosen = _draw_views(self.views, self.seed, epoch)

        def prepare(rows: Rows) -> tuple[Tensor, Tensor | None]:
            return self._prepare(chosen[rows], epoch)

        cores = available_cores()
        with one_thread_per_worker() as start:
            # More threads than cores would slow down the training step that runs at the same time.
            yield from in_threads(prepare, batches, cores, ahead=cores + 1, start=start)

    def _prepare(self, rows: Rows, epoch: int) -> tuple[Tensor, Tensor | None]:
        images = [self._load(row, epoch) for row in rows.tolist()]
        inputs = self._to_inputs(np.stack([self.preprocess(image) for image in images]))
        if self.teacher:
            preprocess, engine = self.teacher
            outputs = engine(np.stack([preprocess(image) for image in images]))
            return inputs, torch.from_numpy(outputs)
        if self.teacher_outputs is not None:
            return inputs, torch.from_numpy(self.teacher_outputs[rows])
        return inputs, None

    def _load(self, row: int, epoch: int) -> Pixels:
        pixels = self.images.load(row)
        if self.augment is None:
            return pixels
        rng = image_rng(self.seed, f"{self.images.ids[row]} epoch {epoch}")
        return augment_image(pixels, self.augment, rng)

    def _to_inputs(self, pixels: Pixels) -> Tensor:
        if self.frozen_layers:
            return torch.from_numpy(self.frozen_layers(pixels))
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32)
        normalised: Tensor = self.preprocess.normalise(batch)
        return normalised


@dataclass(frozen=True)
class CachedInputs:
    """Activations of the frozen layers, read from a cache file.

    Attributes:
        path: the file.
        views: ``(n, v)`` rows of the file, one line for each training image: in each epoch one is
            drawn.
        seed: of the draw.
        teacher_outputs: ``(rows of the file, ...)`` float32, or None.
    """

    path: Path
    views: Rows
    seed: int = 0
    teacher_outputs: NDArray[np.float32] | None = None

    def batches(
        self, epoch: int, batches: Sequence[Rows]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield activations and teacher outputs of each batch of rows."""
        chosen = _draw_views(self.views, self.seed, epoch)
        with open_rows(self.path) as read:

            def prepare(rows: Rows) -> tuple[Tensor, Tensor | None]:
                file_rows = chosen[rows]
                inputs = torch.from_numpy(read(file_rows))
                if self.teacher_outputs is None:
                    return inputs, None
                return inputs, torch.from_numpy(self.teacher_outputs[file_rows])

            # HDF5 reads one request at a time: a single thread reads ahead of the training.
            yield from in_threads(prepare, batches, threads=1, ahead=2)


def _draw_views(views: Rows, seed: int, epoch: int) -> Rows:
    """Return ``(n,)`` the row of the view of each image that is used in an epoch."""
    drawn = np.random.default_rng([seed, epoch, 1]).integers(views.shape[1], size=len(views))
    return views[np.arange(len(views)), drawn]


@dataclass(frozen=True)
class BatchLoader:
    """Labelled batches.

    Attributes:
        inputs: of the n images.
        labels: ``(n,)`` int64, positions in the class names.
        batch_size: images per batch, over all processes.
        order: epoch to the order of the rows.
        rank, processes: this process, and the number of processes: each takes its part of every
            batch.
    """

    inputs: InputSource
    labels: NDArray[np.int64]
    batch_size: int
    order: Callable[[int], Rows]
    rank: int = 0
    processes: int = 1

    @property
    def steps(self) -> int:
        """Number of full batches in an epoch; 1 if there are fewer images than a batch."""
        return max(1, len(self.labels) // self.batch_size)

    def batches(
        self, epoch: int, first: int = 0, *, keep_last: bool = False
    ) -> Iterator[TrainingBatch]:
        """Yield the batches of an epoch, starting with step ``first``.

        Args:
            epoch: number of the epoch.
            first: number of steps to skip.
            keep_last: also yield the images after the last full batch. In training they are
                dropped, as the batch statistics of very few images are useless.
        """
        rows = self.order(epoch)
        end = len(rows)
        if not keep_last and end >= self.batch_size:
            end = self.steps * self.batch_size
        batches = []
        for start in range(first * self.batch_size, end, self.batch_size):
            batch = rows[start : min(start + self.batch_size, end)]
            batches.append(batch[self.rank :: self.processes])
        for batch, (inputs, outputs) in zip(
            batches, self.inputs.batches(epoch, batches), strict=True
        ):
            yield TrainingBatch(inputs, torch.from_numpy(self.labels[batch]), outputs)


def shuffled(n: int, seed: int) -> Callable[[int], Rows]:
    """Return a random order for each epoch."""
    return lambda epoch: np.random.default_rng([seed, epoch]).permutation(n)


def class_balanced(labels: NDArray[np.int64], seed: int) -> Callable[[int], Rows]:
    """Return n rows drawn with replacement in each epoch, each class equally likely."""
    counts = np.bincount(labels)
    probability = 1 / counts[labels] / (counts > 0).sum()
    n = len(labels)
    return lambda epoch: np.random.default_rng([seed, epoch]).choice(n, n, p=probability)


def in_order(n: int) -> Callable[[int], Rows]:
    """Return the rows in their own order."""
    return lambda epoch: np.arange(n)


# --- Inputs of a prepared training ---


@dataclass(frozen=True)
class _TrainingViews:
    """Images without the test images; rows of the views of each training and validation image.

    Attributes:
        images: each training image followed by its augmented views.
        train: ``(n, v)`` rows of ``images``.
        val: ``(m, 1)`` rows of ``images``.
    """

    images: ImageSet
    train: Rows
    val: Rows


def make_inputs(
    prepared: PreparedTraining,
    body: TrainableBody,
    compute: Compute,
    *,
    on_message: Callable[[str], None] = lambda _: None,
    teacher: Teacher | None = None,
) -> tuple[InputSource, InputSource | None]:
    """Return the inputs of the trainable layers, for training and for validation images.

    If there are frozen layers and a fixed number of views per image, the activations of the frozen
    layers are computed once and read from the cache in each epoch. The same holds for the outputs
    of a teacher.

    Args:
        prepared: images, network, augmentation and number of views.
        body: the trainable layers.
        compute: how the frozen layers and the teacher are run.
        on_message: called with the size of the cached activations.
        teacher: of a distillation; it sees the training images.

    Raises:
        StorageError: if the activations do not fit on the disk.
        DataError: if an image cannot be read.
    """
    config = prepared.config
    fixed_views = config.augment is None or config.views > 0
    if fixed_views and (body.start != WHOLE or teacher):
        return _cached_inputs(prepared, body, compute, on_message, teacher)
    views = _training_views(prepared, augment=None)
    live = ImageInputs(views.images, views.train, prepared.backbone.preprocess, seed=config.seed)
    if body.start != WHOLE:
        engine = _open_request(_frozen_request(prepared, body), compute)
        live = replace(live, frozen_layers=engine)
    val = replace(live, views=views.val) if len(views.val) else None
    train = replace(live, augment=config.augment)
    if teacher:
        train = replace(train, teacher=_open_teacher(teacher, compute))
    return train, val


def _cached_inputs(
    prepared: PreparedTraining,
    body: TrainableBody,
    compute: Compute,
    on_message: Callable[[str], None],
    teacher: Teacher | None,
) -> tuple[InputSource, InputSource | None]:
    """Extract activations of the frozen layers and teacher embeddings, or find them cached."""
    config = prepared.config
    views = _training_views(prepared, config.augment)
    requests = []
    if body.start != WHOLE:
        request = _frozen_request(prepared, body)
        on_message(_describe_activations(request, views.images, body, config.cache, compute))
        requests.append(request)
    if teacher:
        requests.append(teacher.request)
    done = run_extractions(requests, views.images, config.cache, compute, on_message)
    outputs = teacher.outputs(store.read(done[-1].path).x) if teacher else None
    train: InputSource
    val: InputSource
    if body.start == WHOLE:
        live = ImageInputs(
            views.images, views.train, prepared.backbone.preprocess, seed=config.seed
        )
        train, val = replace(live, teacher_outputs=outputs), replace(live, views=views.val)
    else:
        train = CachedInputs(done[0].path, views.train, config.seed, outputs)
        val = CachedInputs(done[0].path, views.val)
    return train, val if len(views.val) else None


def _training_views(prepared: PreparedTraining, augment: str | None) -> _TrainingViews:
    images, config = prepared.images, prepared.config
    images = images.take(np.flatnonzero(images.splits != "test"))
    is_train, is_val = images.splits == "train", images.splits == "val"
    count = 1
    with_views = images
    if augment:
        count += config.views
        with_views = add_augmented_views(images, augment, config.views, _VIEW_SEED)
    # The views of a training image follow it: first[i] is the row of image i among all views.
    lengths = np.where(is_train, count, 1)
    first = np.cumsum(lengths) - lengths
    train = first[is_train][:, None] + np.arange(count)
    return _TrainingViews(with_views, train, first[is_val][:, None])


def _frozen_request(prepared: PreparedTraining, body: TrainableBody) -> Request:
    """Return the request of the frozen layers' output: embedding or unpooled feature map.

    Images are decoded in full, as they are where they are augmented, and for the evaluation.
    """
    layer = frozen_output_layer(body.network, body.start)
    request = replace(prepared.config.request, decode="full")
    if layer is None:
        return request
    return replace(request, layer=layer, pool="none", store="float16")


def _describe_activations(
    request: Request, images: ImageSet, body: TrainableBody, cache: Path, compute: Compute
) -> str:
    """Return a message on the size of the cached activations.

    Raises:
        StorageError: if there is not enough disk space for them.
    """
    if request.layer is None:
        return f"training the classifier on embeddings of {len(images):,} views, cached in {cache}"
    size = 2 * len(images) * math.prod(body.shape)
    shape = "x".join(map(str, body.shape))
    text = (
        f"activations of {request.layer} ({shape}, float16) of {len(images):,} views: "
        f"{size / 1e9:.2f} GB in {cache}"
    )
    keys = content_keys(images, compute)
    plan = plan_extraction(request.for_device(compute.device), images, keys, cache)
    if store.find(cache, plan.recipe):
        return f"{text}, already cached"
    folder = next(each for each in (cache, *cache.absolute().parents) if each.exists())
    free = shutil.disk_usage(folder).free
    # They are written to a journal first and copied to the cache file at the end.
    needed = 2 * size
    if needed > free:
        raise StorageError(
            f"caching the activations of {request.layer} needs {needed / 1e9:.1f} GB in {cache}, "
            f"where {free / 1e9:.1f} GB are free: lower --views or --resize, or use --views 0"
        )
    return text


def _open_request(request: Request, compute: Compute) -> ForwardPass:
    backbone = request.load_backbone()
    return open_engine(backbone, precision=request.precision, device=compute.device)


def _open_teacher(teacher: Teacher, compute: Compute) -> tuple[Preprocess, ForwardPass]:
    engine = _open_request(teacher.request, compute)

    def outputs(pixels: Pixels) -> NDArray[np.float32]:
        return teacher.outputs(engine(pixels))

    return teacher.request.load_backbone().preprocess, outputs
