"""Features to fit a head on: from the cache, or extracted where they are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.devices import INT8
from featkit.backbones.saved import (
    check_not_trained_on,
    images_trained_on,
    is_int8,
    saved_network,
    short_key,
)
from featkit.blocks import select_rows
from featkit.embeddings import store
from featkit.embeddings.base import Embeddings
from featkit.embeddings.extract import Extractor, read_with_splits, run_extractions
from featkit.embeddings.index import indexed
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys, plan_extraction
from featkit.embeddings.request import IMAGE_FIELDS, NO_EARLIER, Request, resolve
from featkit.embeddings.shards import RunTasks, extract_missing
from featkit.errors import DataError, SpecError, first_names
from featkit.evaluation.audit import near_copies
from featkit.images.augment import is_augmented_view
from featkit.images.base import ImageSet
from featkit.images.files import ImageEntry, from_entries
from featkit.images.folder import list_image_files
from featkit.images.intensity import IntensityRange
from featkit.images.multilabel import multilabel_message
from featkit.runs.splits import refuse_infinite


@dataclass(frozen=True)
class FeatureSet:
    """Features to fit on, and where they come from.

    Attributes:
        request: images and network.
        embeddings: the features, with splits.
        path: the cache file.
        data: name of the images.
        weights: readable label of the weights.
        notes: choices made and images skipped on the way, one line each.
        copies: test images that are copies or near copies of train or val images, if they were
            searched by ``find_copies``.
        image_notes: what was noticed when the images were listed, see ``ImageSet.notes``.
        unknown: features of images of none of the classes, if there are any, by ``load_unknown``.
    """

    request: Request
    embeddings: Embeddings
    path: Path
    data: str
    weights: str
    notes: tuple[str, ...] = ()
    copies: Copies | None = None
    image_notes: tuple[str, ...] = ()
    unknown: FeatureSet | None = None


@dataclass(frozen=True)
class Copies:
    """Test images that are in train or val too; their accuracy is that of memory.

    Attributes:
        identical: ids of test images that are byte-identical with a train or val image.
        near: ids of other test images that have a near copy in train or val, the most similar
            first.
        originals: id of the most similar train or val image of each of ``near``.
        cosines: cosine similarity of each of these pairs.
        n: number of test images.
        folds: number of folds if all images were searched for copies in other folds; 0 for those
            of a test set.
    """

    identical: tuple[str, ...]
    near: tuple[str, ...]
    originals: tuple[str, ...]
    cosines: tuple[float, ...]
    n: int
    folds: int = 0

    @property
    def ids(self) -> frozenset[str]:
        """The ids of all copies."""
        return frozenset((*self.identical, *self.near))

    def warnings(self) -> list[str]:
        """Return a line about identical images, and one about near copies, if there are any."""
        tested, others, identical = "test images", "train or val", "train or val images too"
        if self.folds:
            tested, others = "images", f"another of the {self.folds} folds"
            identical = f"in {others} too"
        lines = []
        if self.identical:
            named = first_names(self.identical)
            lines.append(
                f"{len(self.identical)} of {self.n} {tested} are {identical} "
                f"({named}): see `featkit audit`"
            )
        if self.near:
            pairs = zip(self.near, self.originals, self.cosines, strict=True)
            named = first_names([f"{a} and {b}, cosine {value:.3f}" for a, b, value in pairs], "; ")
            lines.append(
                f"{len(self.near)} of {self.n} {tested} have a near copy in {others} "
                f"({named}): see `featkit audit`; the report has the results without them"
            )
        return lines


def load_features(
    given: Mapping[str, Any],
    cache: Path,
    compute: Compute,
    note: Callable[[str], None] = lambda text: None,
    *,
    run: RunTasks | None = None,
    multilabel: bool = False,
) -> FeatureSet:
    """Load the features that options describe, extracting them if they are not cached.

    Args:
        given: fields of ``Request``; None for what was not given.
        cache: folder of the cache files, or one such file.
        compute: device, batch size, workers, treatment of unreadable images.
        note: called with each choice as soon as it is made, before features are extracted.
        run: extracts missing features in other processes, see ``extract_missing``; None for this
            process.
        multilabel: whether the images may have several labels each.

    Raises:
        FeatkitError: if images, network or cache are not available; StaleCacheError if ``cache`` is
            a file that the given options would not make.
        DataError: if the images have several labels, unless ``multilabel``.
    """
    found = _load(given, cache, compute, note, run)
    if found.embeddings.multilabel and not multilabel:
        raise DataError(multilabel_message(found.data, "this command"))
    return found


def _load(
    given: Mapping[str, Any],
    cache: Path,
    compute: Compute,
    note: Callable[[str], None],
    run: RunTasks | None,
) -> FeatureSet:
    if cache.suffix == ".h5":
        return _load_file(given, cache, compute)
    request, newest = resolve(given, cache)
    request = request.for_device(compute.device)
    if newest and not request.source_exists and not request.perturb:
        _refuse_lost_groups(request, newest)
        text = f"{request.data} not found: using the features in {newest} as they are"
        note(text)
        return replace(_load_file({}, newest, compute), notes=(text,))
    notes = _choices(given, request, newest)
    for text in notes:
        note(text)
    extractor = Extractor(cache, compute, note)
    files = request.file_requests()
    if run is not None:
        extract_missing(files, extractor, run, note)
    done = extractor.extract(files)[0]
    if done.skipped:
        notes.append(f"{len(done.skipped)} images skipped: {', '.join(done.skipped)}")
        note(notes[-1])
    plan = extractor.plan(files[0])
    images = plan.images
    return FeatureSet(
        request=replace(request, decode=plan.request.decode),
        embeddings=extractor.read(request),
        path=done.path,
        data=images.name,
        weights=done.weights,
        notes=tuple(notes),
        image_notes=images.notes,
    )


def load_unknown(
    folder: Path,
    features: FeatureSet,
    compute: Compute,
    note: Callable[[str], None] = lambda text: None,
) -> FeatureSet:
    """Load the features of images of none of the classes, extracting them if they are not cached.

    Args:
        folder: its images are used, wherever below it they are.
        features: of the images with classes; the network is theirs.
        compute: as for ``load_features``.
        note: called with each message.

    Raises:
        FeatkitError: if images or network are not available.
        DataError: if one of the images is an image of ``features`` too, byte for byte, or one that
            the network was trained on, or the network is not that of ``features`` any more.
        SpecError: if the network is quantized for the images of ``features`` alone.
    """
    if features.request.precision in INT8 and not is_int8(features.request.backbone):
        raise SpecError(
            f"--precision {features.request.precision} quantizes the network for the images of "
            f"{features.data}: for --unknown, save it with `featkit quantize` first, or use fp32"
        )
    # Images without a name of their data are never chosen as the newest ones in the cache.
    own = Request()
    source = {name: getattr(own, name) for name in IMAGE_FIELDS if name != "intensity_range"}
    # A file of an earlier version does not say how its images were decoded: in full.
    decode = features.request.decode or "full"
    request = replace(features.request, **{**source, "data": "", "decode": decode})
    images = _unlabelled(folder, features.request.intensity_range)
    (done,) = run_extractions([request], images, features.path.parent, compute, note)
    if done.skipped:
        note(f"{len(done.skipped)} unknown images skipped: {', '.join(done.skipped)}")
    embeddings = store.read(done.path)
    # A recipe is ``scaled`` only if the set has large JPEG files, which one of the two may lack.
    recipe = replace(embeddings.recipe, decode=features.embeddings.recipe.decode)
    if recipe.network != features.embeddings.recipe.network:
        raise DataError(
            f"{features.path} was made by another network than {features.request.backbone} is now: "
            "extract the features again, or leave out --unknown"
        )
    found = FeatureSet(request, embeddings, done.path, str(folder.resolve()), done.weights)
    refuse_trained_on(found, "the evaluation of unknown images", "`featkit fit` without --unknown")
    known = set(cached_keys(features))
    shared = [
        name for name, key in zip(embeddings.ids, cached_keys(found), strict=True) if key in known
    ]
    if shared:
        raise DataError(
            f"{len(shared)} of the {len(embeddings)} unknown images in {folder} are images of "
            f"{features.data} too ({first_names(shared)}): give images of none of the classes"
        )
    return found


def check_unknown(folder: Path) -> None:
    """Check that images of none of the classes are in a folder; raises DataError."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder: --unknown takes a folder of images of none of the classes"
        )


def _unlabelled(folder: Path, intensity_range: str | None) -> ImageSet:
    """Return all images of a folder, wherever they are below it.

    Raises:
        DataError: if it is not a folder, or contains no images.
    """
    check_unknown(folder)
    intensity = IntensityRange.parse(intensity_range) if intensity_range else None
    paths, _ = list_image_files(folder)
    entries = []
    for path in paths:
        name = Path(path).relative_to(folder).as_posix()
        entries.append(ImageEntry(name, path, "unknown", "test"))
    return from_entries(folder.resolve().name, entries, intensity=intensity)


def _refuse_lost_groups(request: Request, path: Path) -> None:
    """Refuse to use a cache file without the groups of its images, which the source defines.

    Raises:
        DataError: if groups were requested, or the images had groups when they were extracted.
    """
    if request.group or store.describe(path).provenance.get("groups"):
        raise DataError(
            f"{request.data} not found, and it defines the groups of the images in {path}, without "
            "which splits and intervals would be wrong: restore it, or use other features"
        )


def _choices(given: Mapping[str, Any], request: Request, newest: Path | None) -> list[str]:
    """Return one line that says which images and network are used, where they were not given."""
    if newest:
        groups = f", groups {request.group}" if request.group else ""
        return [
            f"options taken from {newest}: data {request.data}, backbone {request.backbone}{groups}"
        ]
    chosen = []
    if given.get("data") is None:
        chosen.append(f"data {request.data} ({NO_EARLIER})")
    if given.get("backbone") is None:
        chosen.append(f"backbone {request.backbone} (the default)")
    return [f"using {', '.join(chosen)}"] if chosen else []


def _load_file(given: Mapping[str, Any], path: Path, compute: Compute) -> FeatureSet:
    """Load one cache file; with options, only if they would make the same file."""
    entry = store.describe(path)
    chosen = {name: value for name, value in given.items() if value is not None}
    recorded = Request.from_dict(entry.provenance["request"])
    # Earlier versions decoded all images in full, and did not record it.
    recorded = replace(recorded, decode=recorded.decode or "full")
    if recorded.part:
        raise DataError(
            f"{path} holds the perturbed {recorded.part} images only: give its folder with --cache "
            f"and use --perturb {recorded.perturb}"
        )
    request = replace(recorded, **chosen).for_device(compute.device)
    data, weights = entry.provenance["data"], entry.provenance["weights"]
    if not chosen and not entry.provenance.get("groups"):
        return FeatureSet(request, store.read(path), path, data, weights)
    if not request.source_exists:
        _refuse_lost_groups(request, path)
    if not chosen:
        return FeatureSet(
            request, read_with_splits(path, request.load_images()), path, data, weights
        )
    images = request.load_images()
    with indexed(images, path.parent, rehash=compute.rehash) as images:
        keys = content_keys(images, compute)
    plan = plan_extraction(request, images, keys, path.parent)
    store.check(path, plan.recipe)
    return FeatureSet(request, read_with_splits(path, images), path, data, weights)


def cached_keys(features: FeatureSet) -> tuple[str, ...]:
    """Return the content digest of each image, in the order of ``features.embeddings``.

    Raises:
        CacheError: if the cache file is missing or damaged.
    """
    header = store.read_header(features.path)
    keys = dict(zip(header.ids, header.keys, strict=True))
    return tuple(keys[name] for name in features.embeddings.ids)


def refuse_seen(features: FeatureSet) -> None:
    """Refuse to evaluate a network on images that it was trained on.

    Raises:
        DataError: if test images were used for training the network.
        CacheError: if the cache file is missing or damaged.
    """
    spec = saved_network(features.request.backbone, features.request.weights)
    if spec is None:
        return
    header = store.read_header(features.path)
    embeddings = features.embeddings
    split_of = dict(zip(embeddings.ids, embeddings.splits.tolist(), strict=True))
    test: set[str] = set()
    others: set[str] = set()
    for name, key in zip(header.ids, header.keys, strict=True):
        split = split_of.get(name)
        if split == "test":
            test.add(key)
        elif split is not None:
            others.add(key)
    # A test image that is a train image too, byte for byte, is reported by ``find_copies``.
    check_not_trained_on(spec, features.data, test - others)


def refuse_trained_on(
    features: FeatureSet,
    purpose: str,
    otherwise: str = "`featkit fit`, which evaluates on the test images",
) -> None:
    """Refuse to use a network on any image that it was trained on, whatever its split.

    The features of a network separate the classes of its own training images better than those of
    other images, so that what uses all images would be too optimistic.

    Args:
        features: of all images.
        purpose: what uses them, for the error message, such as ``few-shot episodes``.
        otherwise: what to do with the same images and network, for the error message.

    Raises:
        DataError: if one of the images was used for training the network.
        CacheError: if the cache file is missing or damaged.
    """
    spec = saved_network(features.request.backbone, features.request.weights)
    if spec is None:
        return
    trained_on = images_trained_on(spec)
    names = features.embeddings.ids
    keys = set()
    for name, key in zip(names, cached_keys(features), strict=True):
        if not is_augmented_view(name):
            keys.add(key)
    seen = [key for key in keys if short_key(key) in trained_on]
    if seen:
        raise DataError(
            f"{spec} was trained on {len(seen)} of the {len(keys)} images of {features.data}, "
            f"and {purpose} would use all of them: use images that the network was not trained on "
            f"(--data), another --backbone, or {otherwise}"
        )


def leaks(features: FeatureSet) -> NDArray[np.int64]:
    """Return the rows of test images that are train or val images too, byte for byte.

    Raises:
        CacheError: if the cache file is missing or damaged.
    """
    keys = cached_keys(features)
    is_test = features.embeddings.splits == "test"
    others = {keys[row] for row in np.flatnonzero(~is_test).tolist()}
    found = [row for row in np.flatnonzero(is_test).tolist() if keys[row] in others]
    return np.array(found, np.int64)


def find_copies(features: FeatureSet, progress: Callable[[int, int], None] | None = None) -> Copies:
    """Find test images that are copies or near copies of train or val images.

    Near copies are found by their features, see ``evaluation.audit.near_copies``; those of
    augmented views do not count. Perturbed test images are compared before the perturbation.

    Args:
        features: of all images.
        progress: called with the number of pairs that were compared, and of all pairs.

    Raises:
        CacheError: if the cache file is missing or damaged.
        DataError: if a feature is not finite.
    """
    embeddings = features.embeddings
    refuse_infinite(embeddings)
    ids, splits, x = embeddings.ids, embeddings.splits, embeddings.x
    identical = leaks(features)
    if features.request.perturb:
        clean = store.read(features.path)
        split_of = dict(zip(ids, splits.tolist(), strict=True))
        rows = [row for row, name in enumerate(clean.ids) if name in split_of]
        ids, x = tuple(clean.ids[row] for row in rows), select_rows(clean.x, rows)
        splits = np.array([split_of[name] for name in ids])
    excluded = {embeddings.ids[row] for row in identical}
    kept = np.array([name not in excluded and not is_augmented_view(name) for name in ids], bool)
    rows_kept = np.flatnonzero(kept)
    is_test = splits[rows_kept] == "test"
    found = near_copies(select_rows(x, rows_kept), is_test, progress=progress)
    return Copies(
        identical=tuple(embeddings.ids[row] for row in identical),
        near=tuple(ids[row] for row in rows_kept[found.rows]),
        originals=tuple(ids[row] for row in rows_kept[found.originals]),
        cosines=tuple(found.cosines.tolist()),
        n=int((embeddings.splits == "test").sum()),
    )
