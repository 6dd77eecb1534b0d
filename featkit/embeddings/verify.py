"""Checks of cache files: damage, changed images, and why a request is not a cache hit."""

from __future__ import annotations

from dataclasses import replace
from itertools import compress
from pathlib import Path

from featkit.embeddings import store
from featkit.embeddings.calibration import unused_networks
from featkit.embeddings.journal import lock_of
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import (
    ExtractionPlan,
    compare_images,
    content_keys,
)
from featkit.embeddings.recipe import describe_differences
from featkit.embeddings.request import Request
from featkit.embeddings.validation import SHARDS
from featkit.errors import CacheError, FeatkitError
from featkit.images.augment import original_id
from featkit.images.base import ImageSet
from featkit.storage import lock_owner

_ROWS = 4096


def verify(path: Path, compute: Compute) -> list[str]:
    """Check a cache file; return its problems, one line each.

    Checks the checksum of every feature vector, names, contents and labels against the recipe, the
    recipe against the file's name, and the contents against the images on disk, if these are found.
    """
    try:
        header = store.read_header(path)
        problems = [f"{path}: the features of {name} are damaged" for name in _damaged_images(path)]
    except CacheError as error:
        return [str(error)]
    recipe = header.recipe
    if not path.stem.endswith(recipe.fingerprint[:12]):
        problems.append(f"{path}: the file name does not match the recipe")
    for change in _changed_images(header, compute):
        problems.append(f"{path}: {change}")
    return problems


def _damaged_images(path: Path) -> list[str]:
    """Return the names of images whose features do not match their checksums."""
    names: list[str] = []
    with store.open_file(path) as file:
        ids = file.columns["ids"]
        for first in range(0, file.rows, _ROWS):
            block = slice(first, first + _ROWS)
            names += compress(ids[block], ~file.read_intact(block)[1])
    return names


def _changed_images(header: store.Header, compute: Compute) -> list[str]:
    """Return how the images on disk differ from those of a cache file, one line each."""
    request = Request.from_dict(header.provenance["request"])
    if not request.data:
        return []
    try:
        # A training adds views that its request does not name: only their originals are compared.
        images = replace(request, augment=None).load_images()
        keys = content_keys(images, compute)
    except FeatkitError as error:
        return [f"the images cannot be compared: {error}"]
    before = _original_images(header)
    changes = compare_images(list(before), list(before.values()), images.ids, keys)
    changes["new"] = _expected_images(header, images, changes["new"])
    lines = []
    for kind, names in changes.items():
        for name in names:
            lines.append(f"{name} is {kind} since the file was made")
    return lines


def _original_images(header: store.Header) -> dict[str, str]:
    """Return the content digest of each image of a cache file by name, without augmented views."""
    names = set(header.ids)
    found = {}
    for name, key in zip(header.ids, header.keys, strict=True):
        original = original_id(name)
        if original == name or original not in names:
            found[name] = key
    return found


def _expected_images(header: store.Header, images: ImageSet, new: list[str]) -> list[str]:
    """Return those of the new images that the file would contain if it were extracted again."""
    if header.positions is not None:
        return []  # images of other shards
    if "test" in header.splits:
        return new
    # Every image source has test images: this file is that of a training, which never reads them.
    test = {images.ids[row] for row in images.rows("test")}
    return [name for name in new if name not in test]


def explain(plan: ExtractionPlan) -> str:
    """Return whether a cache file exists, and if not, in which fields the nearest file differs."""
    hit = store.find(plan.cache, plan.recipe)
    if hit:
        return f"hit: {hit}"
    entries = store.entries(plan.cache)[0]
    if not entries:
        return f"miss: there is no embeddings file in {plan.cache}"
    nearest = min(entries, key=lambda entry: len(entry.recipe.differences(plan.recipe)))
    cached = plan.locate_cached()
    missing = len(set(plan.keys) - cached.keys())
    differences = describe_differences(nearest.recipe.differences(plan.recipe))
    return (
        f"miss: {missing:,} of {len(plan.keys):,} images must be embedded; "
        f"the nearest file, {nearest.path}, differs in {differences}"
    )


def collect_garbage(cache: Path) -> tuple[list[Path], list[str]]:
    """Remove the files of interrupted extractions, and int8 networks that no cache file refers to.

    Returns:
        The removed files, and the processes that are still extracting; int8 networks are then kept.
    """
    busy = []
    for lock in _hidden_files(cache, "lock"):
        owner = lock_owner(lock)  # removes the lock file of a dead process
        if owner:
            busy.append(owner)
    removed = []
    for partial in _hidden_files(cache, "partial"):
        # The HDF5 files of running extractions have no lock of their own.
        if partial.name.endswith(".h5.partial") and busy:
            continue
        if not lock_owner(lock_of(partial)):
            partial.unlink(missing_ok=True)
            removed.append(partial)
    for path in [] if busy else unused_networks(cache):
        path.unlink(missing_ok=True)
        removed.append(path)
    return removed, busy


def _hidden_files(cache: Path, suffix: str) -> list[Path]:
    """Return the files of extractions that run or were interrupted, those of shards too."""
    return sorted([*cache.glob(f".*.{suffix}"), *cache.glob(f"{SHARDS}/*/.*.{suffix}")])
