"""Images and a backbone to a cache file: each image is read and embedded once."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from featkit.backbones.base import Backbone
from featkit.embeddings import store
from featkit.embeddings.base import Embeddings
from featkit.embeddings.pipeline import Compute, batches, in_threads
from featkit.embeddings.recipe import Recipe, digest
from featkit.embeddings.request import Request
from featkit.errors import DataError, DecodeError
from featkit.images.base import ImageSet

_COPY_ROWS = 4096


@dataclass(frozen=True)
class Extraction:
    """What an extraction came to.

    Attributes:
        path: the cache file.
        hit: whether it was there already.
        embedded: how many images went through the network.
        reused: how many vectors were copied from other files.
        skipped: names of the images that could not be read.
        weights: label of the weights, for people.
    """

    path: Path
    hit: bool
    embedded: int
    reused: int
    skipped: tuple[str, ...]
    weights: str


def extract(
    data: str | ImageSet = "digits",
    backbone: str = "resnet18",
    *,
    cache: str | Path = "cache",
    compute: Compute | None = None,
    **options: Any,
) -> Embeddings:
    """Return the embeddings of a data set, from the cache where they are already there.

    Args:
        data: a spec (``digits``, a folder, a CSV file, ``cifar10:root=...``) or an ImageSet.
        backbone: a spec such as ``resnet50``.
        cache: folder of the HDF5 files.
        compute: device, batch size, workers, what to do about unreadable images.
        options: any other field of ``Request``: ``weights``, ``layer``, ``pool``, ``resize``, ``crop``, ``split``, ...

    Raises:
        FeatkitError: of the kind that says what cannot be had.
    """
    if isinstance(data, ImageSet):
        request, images = Request(data="", backbone=backbone, **options), data
    else:
        request = Request(data=str(data), backbone=backbone, **options)
        images = request.load_images()
    done = run_extraction(request, images, Path(cache), compute or Compute())
    return read_for(images, done.path)


def read_for(images: ImageSet, path: Path) -> Embeddings:
    """Read a cache file with the splits of ``images``: one file serves every seed of a split."""
    embeddings = store.read(path)
    splits = dict(zip(images.ids, images.splits.tolist(), strict=True))
    return replace(embeddings, splits=np.array([splits[name] for name in embeddings.ids], dtype=np.str_))


def run_extraction(request: Request, images: ImageSet, cache: Path, compute: Compute) -> Extraction:
    """Make the cache file of these images through the network that a request names, unless it is there.

    Raises:
        FeatkitError: of the kind that says what cannot be had.
    """
    backbone = request.load_backbone()
    keys = content_keys(images, compute)
    recipe = make_recipe(images, keys, backbone, request.precision)
    path = store.find(cache, recipe)
    if path is not None:
        skipped_before = _check_hit(path, recipe, compute)
        return Extraction(path, hit=True, embedded=0, reused=0, skipped=skipped_before, weights=backbone.weights)
    path = cache / store.file_name(images.name, backbone.name, recipe)
    header = store.Header(
        recipe=recipe,
        ids=images.ids,
        keys=keys,
        labels=images.labels,
        splits=images.splits,
        classes=images.classes,
        provenance=_provenance(request, backbone, compute),
    )
    known = store.vectors_by_key(cache, recipe, keys)
    is_new = np.array([key not in known for key in keys])
    new, old = np.flatnonzero(is_new), np.flatnonzero(~is_new)
    skipped: list[int] = []
    copied = _copied(old, [known[keys[row]] for row in old])
    fresh = embed(images.take(new), backbone, request.precision, compute, skipped)
    embedded = ((new[rows], vectors) for rows, vectors in fresh)
    store.write(path, header, _some(chain(copied, embedded), images.name))
    names = tuple(images.ids[new[row]] for row in skipped)
    count = len(new) - len(names)
    return Extraction(path, hit=False, embedded=count, reused=len(old), skipped=names, weights=backbone.weights)


def embed(
    images: ImageSet, backbone: Backbone, precision: str, compute: Compute, skipped: list[int]
) -> Iterator[store.Block]:
    """Yield ``(rows, vectors)`` of the images, batch by batch; rows that cannot be read are added to ``skipped``."""
    if not len(images):
        return
    from featkit.backbones.engines import open_engine

    engine = open_engine(backbone, precision=precision, device=compute.device)
    title = f"{backbone.name} on {images.name}"
    with tqdm(total=len(images), desc=title, unit="img", disable=not compute.progress) as bar:
        for rows, pixels in batches(len(images), lambda row: backbone.preprocess(images.load(row)), compute, skipped):
            yield rows, engine(pixels)
            bar.update(len(rows))


def content_keys(images: ImageSet, compute: Compute) -> tuple[str, ...]:
    """Return the SHA-256 of each image's bytes, in order; empty where the bytes cannot be read and that is put up with.

    Raises:
        DecodeError: for the first image whose bytes cannot be read, unless ``compute.on_error`` is ``skip``.
    """

    def key(row: int) -> str:
        try:
            return images.key(row)
        except DecodeError:
            if compute.on_error == "skip":
                return ""
            raise

    return tuple(in_threads(key, range(len(images)), compute.threads, ahead=64 * compute.threads))


def make_recipe(images: ImageSet, keys: tuple[str, ...], backbone: Backbone, precision: str) -> Recipe:
    """Return everything that decides the vectors of these images through this backbone."""
    return Recipe(
        images=digest([*images.ids, *keys]),
        labels=digest([*images.classes, *map(str, images.labels.tolist())]),
        split=digest(images.splits.tolist()) if images.split == "own" else "none",
        perturb="none",
        backbone=backbone.name,
        weights=backbone.digest,
        layer=backbone.layer,
        pool=backbone.pool,
        preprocess=asdict(backbone.preprocess),
        precision=precision,
    )


def _check_hit(path: Path, recipe: Recipe, compute: Compute) -> tuple[str, ...]:
    """Return the images that a cache file has no vector for, which only ``skip`` puts up with."""
    skipped = tuple(store.check(path, recipe))
    if skipped and compute.on_error == "fail":
        raise DecodeError(
            f"{len(skipped)} images of {path} cannot be read ({', '.join(skipped[:5])}): mend or remove them, "
            "or go on without them with --on-error skip"
        )
    return skipped


def _copied(rows: NDArray[np.int64], vectors: list[NDArray[np.float32]]) -> Iterator[store.Block]:
    for start in range(0, len(rows), _COPY_ROWS):
        yield rows[start : start + _COPY_ROWS], np.stack(vectors[start : start + _COPY_ROWS])


def _some(blocks: Iterator[store.Block], name: str) -> Iterator[store.Block]:
    """Pass blocks on; none at all means that not one image could be read."""
    first = next(blocks, None)
    if first is None:
        raise DataError(f"none of the images of {name} can be read: look at one of them with an image viewer")
    yield first
    yield from blocks


def _provenance(request: Request, backbone: Backbone, compute: Compute) -> dict[str, Any]:
    packages = ("featkit", "torch", "torchvision", "pillow", "numpy")
    return {
        "request": request.to_dict(),
        "weights": backbone.weights,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": compute.device,
        "batch_size": compute.batch_size,
        "host": platform.node(),
        "versions": {name: version(name) for name in packages},
    }
