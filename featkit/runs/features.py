"""The vectors that a study works on: found in the cache, or made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.saved import check_not_trained_on, is_path
from featkit.embeddings import store
from featkit.embeddings.base import Embeddings
from featkit.embeddings.extract import read_for, run_extractions
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys, plan
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.request import Request, resolve
from featkit.images.perturb import parse_perturbation
from featkit.storage import digest


@dataclass(frozen=True)
class FeatureSet:
    """Vectors to fit on, and where they come from.

    Attributes:
        request: which images through which network.
        embeddings: the vectors, with splits.
        path: the cache file.
        data: name of the images.
        weights: label of the weights, for people.
        notes: what was chosen or left out on the way, one line each.
    """

    request: Request
    embeddings: Embeddings
    path: Path
    data: str
    weights: str
    notes: tuple[str, ...] = ()


def load_features(given: Mapping[str, Any], cache: Path, compute: Compute) -> FeatureSet:
    """Find or make the vectors that some options ask for.

    Args:
        given: fields of ``Request``; None for what was not given.
        cache: folder of the cache files, or one such file.
        compute: how to extract where that is needed.

    Raises:
        FeatkitError: of the kind that says what cannot be had; StaleCacheError if ``cache`` is a file that the given
            options would not make.
    """
    if cache.suffix == ".h5":
        return _from_file(given, cache, compute)
    request, newest = resolve(given, cache)
    request = request.for_device(compute.device)
    if newest and not _there(request):
        note = f"{request.data} is gone: taking the vectors in {newest} as they are"
        return replace(_from_file({}, newest, compute), notes=(note,))
    images = replace(request, perturb=None).load_images()
    (done,) = run_extractions([replace(request, perturb=None)], images, cache, compute)
    taken = f"what was not given is taken from {newest}: data {request.data}, backbone {request.backbone}"
    notes = [taken] if newest else []
    notes += [f"{len(done.skipped)} images left out: {', '.join(done.skipped)}"] if done.skipped else []
    source = FeatureSet(request, read_for(images, done.path), done.path, images.name, done.weights, tuple(notes))
    if not parse_perturbation(request.perturb or "none"):
        return source
    part = replace(request, part="test")
    (side,) = run_extractions([part], part.apply(images), cache, compute)
    return on_test(source, store.read(side.path), request)


def on_test(source: FeatureSet, test: Embeddings, request: Request) -> FeatureSet:
    """Return a source with perturbed test images, made as ``request`` says, in the place of those as they are."""
    kept = source.embeddings.take(np.flatnonzero(source.embeddings.splits != "test"))
    return replace(source, request=request, embeddings=_joined(kept, test, source.embeddings.recipe))


def with_train(source: FeatureSet, views: Embeddings) -> FeatureSet:
    """Return a source with perturbed views of its train images after everything else."""
    return replace(source, embeddings=_joined(source.embeddings, views, source.embeddings.recipe))


def _joined(first: Embeddings, second: Embeddings, clean: Recipe) -> Embeddings:
    """Return the rows of both; the recipe is that of the clean images, with the digests of both and what was done."""
    images = digest([clean.fingerprint, second.recipe.fingerprint])
    return Embeddings(
        x=np.concatenate([first.x, second.x]),
        y=np.concatenate([first.y, second.y]),
        ids=first.ids + second.ids,
        classes=first.classes,
        splits=np.concatenate([first.splits, second.splits]),
        recipe=replace(clean, images=images, perturb=second.recipe.perturb),
    )


def _there(request: Request) -> bool:
    """Return whether the images can still be read; names are looked up, paths must exist."""
    return not Path(request.data).is_absolute() or Path(request.data).exists()


def _from_file(given: Mapping[str, Any], path: Path, compute: Compute) -> FeatureSet:
    entry = store.describe(path)
    chosen = {name: value for name, value in given.items() if value is not None}
    request = replace(Request.from_dict(entry.provenance["request"]), **chosen).for_device(compute.device)
    data, weights = entry.provenance["data"], entry.provenance["weights"]
    if not chosen:
        return FeatureSet(request, store.read(path), path, data, weights)
    images = request.load_images()
    _, recipe = plan(request, images, content_keys(images, compute), path.parent)
    store.check(path, recipe)
    return FeatureSet(request, read_for(images, path), path, data, weights)


def cached_keys(source: FeatureSet) -> tuple[str, ...]:
    """Return the digest of each image's content as it is on disk, in the order of ``source.embeddings``.

    Raises:
        CacheError: if the cache file is gone or damaged.
    """
    header = store.read_header(source.path)
    keys = dict(zip(header.ids, header.keys, strict=True))
    return tuple(keys[name] for name in source.embeddings.ids)


def refuse_seen(source: FeatureSet) -> None:
    """Make sure that a network that featkit trained is not judged on images that it learned from.

    Raises:
        DataError: if it would be.
        CacheError: if the cache file is gone or damaged.
    """
    if not is_path(source.request.backbone):
        return
    header = store.read_header(source.path)
    splits = dict(zip(source.embeddings.ids, source.embeddings.splits.tolist(), strict=True))
    parts = [(key, splits.get(name)) for name, key in zip(header.ids, header.keys, strict=True)]
    test = {key for key, split in parts if split == "test"} - {key for key, split in parts if split in ("train", "val")}
    check_not_trained_on(source.request.backbone, source.data, test)


def leaks(source: FeatureSet) -> NDArray[np.int64]:
    """Return the rows of test images that are train or val images too, byte for byte.

    Raises:
        CacheError: if the cache file is gone or damaged.
    """
    keys, judged = np.array(cached_keys(source)), source.embeddings.splits == "test"
    return np.flatnonzero(judged & np.isin(keys, keys[~judged]))


def leak_warning(source: FeatureSet) -> str:
    """Say which test images are train or val images too; nothing if none is."""
    embeddings, twice = source.embeddings, leaks(source)
    if not len(twice):
        return ""
    named = ", ".join(embeddings.ids[row] for row in twice[:3]) + (", ..." if len(twice) > 3 else "")
    count = int((embeddings.splits == "test").sum())
    return f"{len(twice)} of {count} test images are train or val images too ({named}): see `featkit audit`"
