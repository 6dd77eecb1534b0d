"""What the learning part is fed with: activations kept in the cache, or images decoded in each epoch."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.engines import ForwardPass, open_engine
from featkit.embeddings import lookup, store
from featkit.embeddings.extract import run_extractions
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys, plan_extraction
from featkit.embeddings.request import Request
from featkit.errors import StorageError
from featkit.images.augment import add_augmented_views
from featkit.images.base import ImageSet
from featkit.training.feeds import CachedInputs, ImageInputs, InputSource, Rows
from featkit.training.network import WHOLE, TrainableBody, cut_layer
from featkit.training.prepare import PreparedTraining

_VIEW_SEED = 0
"""What the kept views look like does not depend on the seed of a training: those with other seeds share the file."""


@dataclass(frozen=True)
class Teacher:
    """What a student learns from beside labels.

    Attributes:
        request: its network.
        answer: its embeddings ``(b, d)`` to what it says ``(b, ...)``, float32.
    """

    request: Request
    answer: Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class _Kept:
    """Images in all their views; the rows of each train image and of each val image, ``(n, v)`` and ``(m, 1)``."""

    images: ImageSet
    train: Rows
    val: Rows


def inputs_for(
    prepared: PreparedTraining,
    body: TrainableBody,
    compute: Compute,
    *,
    note: Callable[[str], None] = lambda _: None,
    teacher: Teacher | None = None,
) -> tuple[InputSource, InputSource | None]:
    """Return what the learning part sees of train images, and of val images, if there are any.

    Where a part of the network stays as it is, its output for some fixed views of each image is made once and read
    from the cache in each epoch. So is what a teacher says about them.

    Args:
        prepared: images, network, augmentation and the number of views.
        body: the learning part.
        compute: how the rest is run.
        note: told what is made, and how large it is.
        teacher: what is to be asked about train images.

    Raises:
        StorageError: if the activations would not fit on the disk.
        FeatkitError: of the kind that says what cannot be had.
    """
    config = prepared.config
    fixed = config.augment is None or config.views > 0
    if fixed and (body.start != WHOLE or teacher):
        return _from_kept(prepared, body, compute, note, teacher)
    kept = _views(prepared, None)
    trunk = None if body.start == WHOLE else _engine(_trunk(prepared, body), compute)
    asked = (teacher.request.load_backbone().preprocess, _answering(teacher, compute)) if teacher else None
    live = ImageInputs(kept.images, kept.train, prepared.backbone.preprocess, seed=config.seed, trunk=trunk)
    val = replace(live, views=kept.val) if len(kept.val) else None
    return replace(live, augment=config.augment, teacher=asked), val


def _from_kept(
    prepared: PreparedTraining, body: TrainableBody, compute: Compute, note: Callable[[str], None], teacher: Teacher | None
) -> tuple[InputSource, InputSource | None]:
    config = prepared.config
    kept = _views(prepared, config.augment)
    requests = [] if body.start == WHOLE else [_trunk(prepared, body)]
    for request in requests:
        note(_room(request, kept.images, body, config.cache, compute))
    requests += [teacher.request] if teacher else []
    done = run_extractions(requests, kept.images, config.cache, compute, note)
    said = teacher.answer(store.read(done[-1].path).x) if teacher else None
    train: InputSource
    if body.start == WHOLE:
        live = ImageInputs(kept.images, kept.train, prepared.backbone.preprocess, seed=config.seed)
        train, val = replace(live, said=said), replace(live, views=kept.val)
        return train, val if len(kept.val) else None
    train = CachedInputs(done[0].path, kept.train, config.seed, said)
    return train, CachedInputs(done[0].path, kept.val) if len(kept.val) else None


def _views(prepared: PreparedTraining, augment: str | None) -> _Kept:
    """Return the images that training sees, each train image with its views behind it if there are any."""
    images, config = prepared.images, prepared.config
    images = images.take(np.flatnonzero(images.splits != "test"))
    count = 1 + config.views if augment else 1
    wide = add_augmented_views(images, augment, config.views, _VIEW_SEED) if augment else images
    lengths = np.where(images.splits == "train", count, 1)
    first = np.cumsum(lengths) - lengths
    train = first[images.splits == "train"][:, None] + np.arange(count)
    return _Kept(wide, train, first[images.splits == "val"][:, None])


def _trunk(prepared: PreparedTraining, body: TrainableBody) -> Request:
    """Return the part of the network that stays as it is: to its embedding, or to the whole map at the cut."""
    layer = cut_layer(body.network, body.start)
    request = prepared.config.request
    return request if layer is None else replace(request, layer=layer, pool="none", store="float16")


def _room(request: Request, images: ImageSet, body: TrainableBody, cache: Path, compute: Compute) -> str:
    """Say how much room the activations take, and whether they are there already.

    Raises:
        StorageError: if there is not so much.
    """
    if request.layer is None:
        return f"classifier alone: embeddings of {len(images):,} views from {cache}"
    size = 2 * len(images) * math.prod(body.shape)
    shape = "x".join(map(str, body.shape))
    text = (
        f"activations of {request.layer} ({shape}, float16) for {len(images):,} views: {size / 1e9:.2f} GB in {cache}"
    )
    job = plan_extraction(request.for_device(compute.device), images, content_keys(images, compute), cache)
    if lookup.find(cache, job.recipe):
        return f"{text}, already there"
    place = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    # They are first collected in a journal, then written into a file.
    if 2 * size > shutil.disk_usage(place).free:
        raise StorageError(
            f"making the activations of {request.layer} takes {2 * size / 1e9:.1f} GB in {cache}, where "
            f"{shutil.disk_usage(place).free / 1e9:.1f} GB are free: lower --views or --resize, or give --views 0"
        )
    return text


def _engine(request: Request, compute: Compute) -> ForwardPass:
    return open_engine(request.load_backbone(), precision=request.precision, device=compute.device)


def _answering(teacher: Teacher, compute: Compute) -> ForwardPass:
    engine = _engine(teacher.request, compute)
    return lambda pixels: teacher.answer(engine(pixels))
