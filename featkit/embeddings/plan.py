"""A cache file that is wanted: where it will lie, what will decide it, and what there was before."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.base import Backbone
from featkit.backbones.devices import INT8
from featkit.embeddings import store
from featkit.embeddings.calibration import CalibrationTask, choose
from featkit.embeddings.layout import StorageLayout
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.request import Request
from featkit.errors import DecodeError
from featkit.images.base import ImageSet
from featkit.images.perturb import parse_perturbation
from featkit.parallel import in_threads
from featkit.storage import digest, safe_name

_KEYS_AT_ONCE = 64


@dataclass(frozen=True)
class ExtractionPlan:
    """One cache file that is wanted.

    Attributes:
        request, backbone, recipe: how it is made.
        images, keys: the images and their content digests.
        path, journal: the file, and where its vectors are kept until it is whole.
    """

    request: Request
    images: ImageSet
    backbone: Backbone
    recipe: Recipe
    keys: tuple[str, ...]
    path: Path
    journal: Path


def plan_extraction(request: Request, images: ImageSet, keys: tuple[str, ...], cache: Path) -> ExtractionPlan:
    """Return the cache file that a request wants; no image is decoded and no network built.

    Raises:
        FeatkitError: if the backbone or its weights cannot be had.
    """
    backbone, recipe = plan(request, images, keys, cache)
    stem = safe_name(f"{images.name}-{backbone.name}")
    path = cache / f"{stem}-{recipe.fingerprint[:12]}.h5"
    journal = cache / f".{stem}-{recipe.network[:12]}.partial"
    return ExtractionPlan(request, images, backbone, recipe, keys, path, journal)


def plan(request: Request, images: ImageSet, keys: tuple[str, ...], cache: Path) -> tuple[Backbone, Recipe]:
    """Return the backbone that a request wants, in the int8 network it has to run through if any, and the recipe.

    Where that network has not been calibrated yet, the recipe's calibration is ``none``, which no file has.

    Raises:
        FeatkitError: if the backbone or its weights cannot be had.
    """
    backbone = request.load_backbone()
    recipe = make_recipe(images, keys, backbone, request.precision)
    perturbation = str(parse_perturbation(request.perturb or "none"))
    recipe = replace(recipe, perturb=perturbation, store=StorageLayout.parse(request.store).dtype)
    if request.precision not in INT8:
        return backbone, recipe
    if backbone.quantized:
        return backbone, replace(recipe, calibration=backbone.quantized.digest)
    found = choose(CalibrationTask(backbone, recipe, images, keys), request.to_dict()["data"], cache)
    return replace(backbone, quantized=found), replace(recipe, calibration=found.digest if found else "none")


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

    def keys(start: int) -> list[str]:
        return [key(row) for row in range(start, min(start + _KEYS_AT_ONCE, len(images)))]

    starts = range(0, len(images), _KEYS_AT_ONCE)
    return tuple(chain.from_iterable(in_threads(keys, starts, compute.threads, ahead=2 * compute.threads)))


def images_digest(ids: Sequence[str], keys: Sequence[str]) -> str:
    """Return the recipe's digest of names and contents."""
    return digest([*ids, *keys])


def labels_digest(classes: Sequence[str], labels: NDArray[np.int64]) -> str:
    """Return the recipe's digest of class names and labels ``(n,)``."""
    return digest([*classes, *map(str, labels.tolist())])


def make_recipe(images: ImageSet, keys: tuple[str, ...], backbone: Backbone, precision: str) -> Recipe:
    """Return everything that decides the vectors of these images through this backbone."""
    return Recipe(
        images=images_digest(images.ids, keys),
        labels=labels_digest(images.classes, images.labels),
        split=digest(images.splits.tolist()) if images.split == "own" else "none",
        perturb="none",
        backbone=backbone.name,
        weights=backbone.digest,
        layer=backbone.layer,
        pool=backbone.pool,
        preprocess=asdict(backbone.preprocess),
        precision=precision,
    )


def changes(job: ExtractionPlan) -> dict[str, int] | None:
    """Compare with the newest file of the same data through the same network; None where there is none."""
    source = job.request.to_dict()["data"]
    for entry in store.entries(job.path.parent)[0]:
        if entry.recipe.same_network(job.recipe) and source and entry.provenance["request"]["data"] == source:
            before = store.read_header(entry.path)
            changed = differing(before.ids, before.keys, job.images.ids, job.keys)
            return {what: len(names) for what, names in changed.items()}
    return None


def differing(
    names: Sequence[str], keys: Sequence[str], names_now: Sequence[str], keys_now: Sequence[str]
) -> dict[str, list[str]]:
    """Return the names of images that are ``new``, ``changed`` and ``gone``; a renamed image is none of these."""
    before, now = dict(zip(names, keys, strict=True)), dict(zip(names_now, keys_now, strict=True))
    known, kept = set(keys), set(keys_now)
    return {
        "new": [name for name, key in now.items() if key not in known and name not in before],
        "changed": [name for name, key in now.items() if key not in known and name in before],
        "gone": [name for name, key in before.items() if key not in kept and name not in now],
    }


def provenance(job: ExtractionPlan, compute: Compute) -> dict[str, Any]:
    """Return what is recorded of an extraction and decides nothing."""
    packages = ("featkit", "torch", "torchvision", "pillow", "numpy")
    return {
        "data": job.images.name,
        "request": job.request.to_dict(),
        "weights": job.backbone.weights,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": compute.device,
        "batch_size": compute.batch_size,
        "host": platform.node(),
        "versions": {name: version(name) for name in packages},
    }
