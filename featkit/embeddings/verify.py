"""Whether a cache file is still what it was, still true of the images on disk, and why another would not be a hit."""

from __future__ import annotations

from pathlib import Path

from featkit.embeddings import lookup, store
from featkit.embeddings.calibration import garbage
from featkit.embeddings.journal import in_use, remove
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import ExtractionPlan, content_keys, differing, images_digest, labels_digest
from featkit.embeddings.recipe import listed
from featkit.embeddings.request import Request
from featkit.errors import CacheError, FeatkitError

_ROWS = 4096


def verify(path: Path, compute: Compute) -> list[str]:
    """Return what is wrong with a cache file, one line each; nothing if all is well.

    Checks the checksum of every vector, names, contents and labels against the recipe, the recipe against the file's
    name, and the contents against the images on disk, where these can be found.
    """
    try:
        header = store.read_header(path)
        problems = [f"{path}: the vector of {name} is damaged" for name in _damaged(path)]
    except CacheError as error:
        return [str(error)]
    recipe = header.recipe
    if not path.stem.endswith(recipe.fingerprint[:12]):
        problems.append(f"{path}: the recipe in it is not the one in its name")
    if images_digest(header.ids, header.keys) != recipe.images:
        problems.append(f"{path}: the names or keys of the images are not those of the recipe")
    if labels_digest(header.classes, header.labels) != recipe.labels:
        problems.append(f"{path}: the labels or classes are not those of the recipe")
    return problems + [f"{path}: {line}" for line in _images_now(header, compute)]


def _damaged(path: Path) -> list[str]:
    names = []
    with store.open_file(path) as file:
        valid, sums, ids = file["valid"][:], file["checksums"][:], file["ids"].asstr()[:]
        for first in range(0, len(ids), _ROWS):
            part = slice(first, first + _ROWS)
            wrong = valid[part] & (store.row_checksums(file["embeddings"][part]) != sums[part])
            names += ids[part][wrong].tolist()
    return names


def _images_now(header: store.Header, compute: Compute) -> list[str]:
    request = Request.from_dict(header.provenance["request"])
    if not request.data:
        return []
    try:
        images = request.load_images()
        now = content_keys(images, compute)
    except FeatkitError as error:
        return [f"the images cannot be compared: {error}"]
    found = differing(header.ids, header.keys, images.ids, now)
    return [f"since it was made, {name} is {what}" for what, names in found.items() for name in names]


def explain(job: ExtractionPlan) -> str:
    """Say whether a cache file would be a hit, and if not, in which fields the nearest one differs."""
    cache = job.path.parent
    hit = lookup.find(cache, job.recipe)
    if hit:
        return f"hit: {hit}"
    nearest = min(store.entries(cache)[0], key=lambda entry: len(entry.recipe.differences(job.recipe)), default=None)
    if nearest is None:
        return f"no hit: there is no embeddings file in {cache}"
    missing = len(set(job.keys) - lookup.locate(cache, job.recipe, job.keys).keys())
    why = listed(nearest.recipe.differences(job.recipe))
    count = f"{missing:,} of {len(job.keys):,} images would be embedded"
    return f"no hit: {count}; the nearest file, {nearest.path}, differs in {why}"


def collect_garbage(cache: Path) -> tuple[list[Path], list[str]]:
    """Remove what extractions that did not end left behind, and int8 networks that no file refers to.

    Returns:
        What was removed, and who is still at work; then the int8 networks stay.
    """
    removed, busy = [], []
    for path in sorted(cache.glob(".*.partial")):
        owner = in_use(path)
        if owner:
            busy.append(owner)
        else:
            remove(path)
            removed.append(path)
    for path in [] if busy else garbage(cache):
        path.unlink(missing_ok=True)
        removed.append(path)
    return removed, busy
