"""Extraction in parts: shards, which any number of machines make, and merging them into one file.

A shard is a cache file of a part of the images, made by the same code with the same recipe and the
same checksums. The part of an image follows from its name alone, so that a task lists all images
but reads only its own, and an image stays in its part when others are added. Shards lie in
``<cache>/shards/<data>-<backbone>-<12 hex>/``; merged they give the file that one machine would
have made, row for row, with the same fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from featkit.backbones.devices import INT8
from featkit.embeddings import store
from featkit.embeddings.extract import ExtractionResult, Extractor, execute_plans, group_by_images
from featkit.embeddings.layout import StorageLayout
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import ExtractionPlan, content_keys, plan_extraction
from featkit.embeddings.recipe import Part, Recipe, describe_differences
from featkit.embeddings.request import Request
from featkit.embeddings.validation import (
    SHARDS,
    images_digest,
    labels_digest,
    splits_digest,
)
from featkit.errors import CacheError, FeatkitError, RunError, SpecError, visible
from featkit.images.augment import original_id
from featkit.images.base import ImageSet
from featkit.storage import SequenceDigest, locked, storage_errors

MOST_SHARDS = 100_000
_COLUMN_ROWS = 2**18
_BLOCK_NUMBERS = 2**25
"""Rows of columns, and numbers of features, that a merge holds in memory."""

Note = Callable[[str], None]


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of an image set.

    Attributes:
        number: from 1 to ``count``.
        count: number of parts.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse ``17/1000``.

        Raises:
            SpecError: if it is not the number of a part and the number of parts.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count <= MOST_SHARDS:
            raise SpecError(
                f"shard {text!r} is not a part such as 17/1000: from 1 to the number of parts, "
                f"at most {MOST_SHARDS:,}"
            )
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def stem(self) -> str:
        """Begin of the file name."""
        return f"{self.number:0{len(str(self.count))}d}-of-{self.count}"


def parts_of(names: Iterable[str], count: int) -> NDArray[np.int64]:
    """Return the part ``(n,)`` of each image, from 0 to ``count - 1``, by the SHA-256 of its name.

    Augmented views are in the part of their image, so that it is decoded once for all.
    """
    parts = []
    for name in names:
        digest = hashlib.sha256(original_id(name).encode("utf-8", "surrogatepass")).digest()
        parts.append((int.from_bytes(digest[:8], "big") * count) >> 64)
    return np.array(parts, dtype=np.int64)


@dataclass(frozen=True)
class Cut:
    """An image set that is cut into parts.

    Attributes:
        images: the whole set.
        parts: part of each image, from 0.
        sizes: number of images of each part.
        names: digest of the names of all images.
    """

    images: ImageSet
    parts: NDArray[np.int64]
    sizes: tuple[int, ...]
    names: str

    @classmethod
    def of(cls, images: ImageSet, count: int) -> Cut:
        """Cut images into ``count`` parts; none of them is read."""
        parts = parts_of(images.ids, count)
        sizes = tuple(np.bincount(parts, minlength=count).tolist())
        return cls(images, parts, sizes, images_digest(images.ids, ()))

    def rows(self, shard: Shard) -> NDArray[np.int64]:
        """Return the rows of the images of one part, increasing."""
        return np.flatnonzero(self.parts == shard.number - 1)

    def part(self, shard: Shard) -> ImageSet:
        """Return the images of one part."""
        return self.images.take(self.rows(shard))


def extract_shard(
    requests: Iterable[Request],
    shard: Shard,
    cache: Path,
    compute: Compute,
    *,
    note: Note = lambda text: None,
    job: str = "",
) -> list[ExtractionResult | None]:
    """Extract the features of one part of the images of each request.

    A shard that exists is not computed again, and an interrupted one is resumed. Features are
    reused from cache files, and from the same part of an earlier extraction whose images were
    others.

    Args:
        requests: images and networks, see ``Request.file_requests``.
        shard: which part.
        cache: folder of the cache files; shards are written to its folder ``shards``.
        compute: device, batch size, workers, treatment of unreadable images.
        note: called with a message before waiting for another process.
        job: name of what this is a task of: tasks of one job that run one after the other in the
            same process list the images once.

    Returns:
        The result of each request; None if the part has no images.

    Raises:
        SpecError: for an int8 network that must be calibrated first.
        FeatkitError: if images, network or cache are not available.
    """
    results: dict[Request, ExtractionResult | None] = {}
    requested = [request.for_device(compute.device) for request in requests]
    for group in group_by_images(requested):
        results.update(dict.fromkeys(group))
        plans = _plan_group(group, shard, cache, compute, job=job)
        done = execute_plans(list(plans.values()), compute, note)
        results.update(zip(plans, done, strict=True))
        for plan in plans.values():
            _remove_superseded(plan.path, shard)
    return [results[request] for request in requested]


def _plan_group(
    group: Sequence[Request], shard: Shard, cache: Path, compute: Compute, *, job: str
) -> dict[Request, ExtractionPlan]:
    """Return the plans of one part of requests of the same images; none if it has no images.

    Files are read once for all networks.
    """
    plans = {}
    parts: dict[Request, tuple[ImageSet, tuple[str, ...]]] = {}
    for request in group:
        listed = request.images_only
        cut = _cut(listed, shard.count, job)
        if not cut.sizes[shard.number - 1]:
            continue
        if listed not in parts:
            images = cut.part(shard)
            parts[listed] = images, content_keys(images, compute)
        plans[request] = plan_shard(request, shard, cut, *parts[listed], cache=cache)
    return plans


def _cut(request: Request, count: int, job: str) -> Cut:
    return _remembered_cut(request, count, job) if job else Cut.of(request.load_images(), count)


@lru_cache(maxsize=4)
def _remembered_cut(request: Request, count: int, job: str) -> Cut:
    return Cut.of(request.load_images(), count)


def plan_shard(
    request: Request,
    shard: Shard,
    cut: Cut,
    part: ImageSet,
    keys: tuple[str, ...],
    *,
    cache: Path,
) -> ExtractionPlan:
    """Plan the file of one part.

    Args:
        request: with a definite precision.
        shard: which part.
        cut: the whole image set.
        part: the images of the part; the same object as ``keys`` was computed from, since it knows
            the sizes of their files.
        keys: content digests of the images of the part.
        cache: folder of the cache files.

    Raises:
        SpecError: for an int8 network that must be calibrated first.
        FeatkitError: if the backbone or its weights are not available.
    """
    if request.precision in INT8 and request.load_backbone().quantized is None:
        raise SpecError(
            f"shards cannot use {request.precision} of {request.backbone}, which is calibrated on "
            "all train images: make the network once with `featkit quantize`, and give its run "
            "directory with --backbone"
        )
    # Not what the cache has more of, which may change from one shard to the next.
    decode = request.decode or "scaled"
    plan = plan_extraction(replace(request, decode=decode), part, keys, cache)
    images = cut.images
    whole = replace(
        plan.recipe,
        images=cut.names,
        labels=labels_digest(images.classes, images.labels),
        split=splits_digest(images.splits) if images.split == "own" else "none",
        decode=decode,  # as requested: whether another part has a large image is not known
    )
    stem = plan.path.stem.rpartition("-")[0]
    folder = cache / SHARDS / f"{stem}-{whole.fingerprint[:12]}"
    # The same part of an extraction of other images: an image stays in its part when others are
    # added.
    earlier = sorted((cache / SHARDS).glob(f"{stem}-*/{shard.stem}-*.h5"))
    return replace(
        plan,
        path=folder / f"{shard.stem}-{plan.recipe.fingerprint[:12]}.h5",
        journal=folder / f".{shard.stem}.partial",
        part=Part(shard.number, shard.count, cut.sizes, whole, cut.rows(shard)),
        reuse=(*earlier, *sorted(cache.glob("*.h5"))),
    )


def _remove_superseded(path: Path, shard: Shard) -> None:
    """Remove the shard of the same images as they were before some of them changed."""
    for other in path.parent.glob(f"{shard.stem}-*.h5"):
        if other != path:
            other.unlink(missing_ok=True)


# Many processes -----------------------------------------------------------------------------------

IMAGES_PER_SHARD = 512
_USUAL_SHARDS = 1000


class Finished(Protocol):
    """A task that was run elsewhere."""

    @property
    def index(self) -> int:
        """Position in the sequence of tasks."""

    @property
    def result(self) -> Any:
        """Return value of the function."""

    @property
    def worker_died(self) -> bool:
        """Whether the process that ran the task died."""


RunTasks = Callable[[Callable[[Any], Any], Sequence[Any]], Generator[Finished, None, None]]
"""Runs a function on tasks in other processes, as executors of ``featkit.ablation`` do."""


@dataclass(frozen=True)
class ShardTask:
    """A shard to extract, with the arguments of ``extract_shard``."""

    requests: tuple[Request, ...]
    shard: Shard
    cache: Path
    compute: Compute
    job: str


@dataclass(frozen=True)
class ShardOutcome:
    """What became of a task: the result for each request and the number of images, or the error."""

    results: tuple[ExtractionResult | None, ...] = ()
    images: int = 0
    error: FeatkitError | None = None


def run_shard_task(task: ShardTask) -> ShardOutcome:
    """Extract a shard; return its files, or the error that the user can fix."""
    try:
        results = extract_shard(task.requests, task.shard, task.cache, task.compute, job=task.job)
        cut = _remembered_cut(task.requests[0].images_only, task.shard.count, task.job)
        return ShardOutcome(tuple(results), cut.sizes[task.shard.number - 1])
    except FeatkitError as error:
        return ShardOutcome(error=error)


@dataclass(frozen=True)
class Counted:
    """Number of images of a request, or the error of listing them."""

    images: int = 0
    error: FeatkitError | None = None


def count_images(request: Request) -> Counted:
    """Return the number of images of a request; a worker lists them, not the client."""
    try:
        return Counted(len(request.load_images()))
    except FeatkitError as error:
        return Counted(error=error)


def extract_in_parallel(
    requests: Sequence[Request],
    cache: Path,
    compute: Compute,
    run: RunTasks,
    *,
    note: Note = lambda text: None,
) -> list[ExtractionResult]:
    """Extract features in many processes, one shard per task, and merge the shards.

    Finished shards are kept until they are merged: when it is interrupted, only the others are
    extracted again. This process lists and reads no images.

    Args:
        requests: images and networks with a definite precision, see ``Request.file_requests``.
        cache: folder of the cache files, which all processes share.
        compute: device, batch size, workers of each process, treatment of unreadable images.
        run: runs a function on tasks in other processes.
        note: called with a message before waiting for another process.

    Raises:
        RunError: if a shard killed the processes that extracted it.
        FeatkitError: the first error of a shard; those that are finished are kept.
    """
    job, results = uuid.uuid4().hex, {}
    absolute = [request.absolute for request in requests]
    for group in group_by_images(absolute):
        networks = tuple(group)
        total = _count(networks, run)
        count = max(1, min(_USUAL_SHARDS, -(-total // IMAGES_PER_SHARD)))
        quiet = replace(compute, progress=False)
        tasks = []
        for number in range(1, count + 1):
            shard = Shard(number, count)
            tasks.append(ShardTask(networks, shard, cache.absolute(), quiet, job))
        outcomes = _run_shards(tasks, run, total, progress=compute.progress)
        for place, request in enumerate(networks):
            parts = [outcome.results[place] for outcome in outcomes]
            results[request] = _merge_results(
                [part for part in parts if part], cache, compute, note
            )
    return [results[request] for request in absolute]


def extract_missing(
    requests: Sequence[Request],
    extractor: Extractor,
    run: RunTasks,
    note: Note = lambda text: None,
) -> None:
    """Extract the missing features of requests in many processes.

    ``extractor`` finds them then, and raises the error of a request that failed. It calibrates
    int8 networks and extracts with them, since that takes all train images.

    Args:
        requests: images and networks.
        extractor: plans the cache files.
        run: runs a function on tasks in other processes.
        note: called with a message before waiting for another process.
    """
    missing = {plan.path for plan in extractor.missing_plans(requests)}
    for request in dict.fromkeys(requests):
        if extractor.find_error([request]) is not None:
            continue
        plan = extractor.plan(request)
        if plan.path not in missing or plan.request.precision in INT8:
            continue
        try:
            extract_in_parallel([plan.request], plan.cache, extractor.compute, run, note=note)
        except FeatkitError as error:
            extractor.remember_error(request, error)


def _count(requests: Sequence[Request], run: RunTasks) -> int:
    """Return the largest number of images of requests."""
    tasks = sorted({request.images_only for request in requests}, key=str)
    counts: list[int] = []
    with closing(run(count_images, tasks)) as finished:
        for each in finished:
            _refuse_death(each, f"listing the images of {tasks[each.index].data}")
            if each.result.error is not None:
                raise each.result.error
            counts.append(each.result.images)
    return max(counts)


def _run_shards(
    tasks: Sequence[ShardTask], run: RunTasks, total: int, *, progress: bool
) -> list[ShardOutcome]:
    """Run tasks; return their outcomes in the same order."""
    outcomes: dict[int, ShardOutcome] = {}
    title = f"{tasks[0].requests[0].backbone} on {tasks[0].requests[0].data}"
    with (
        tqdm(total=total, desc=visible(title), unit="img", disable=not progress) as bar,
        closing(run(run_shard_task, tasks)) as finished,
    ):
        try:
            for each in finished:
                _refuse_death(each, f"extracting shard {tasks[each.index].shard}")
                if each.result.error is not None:
                    raise each.result.error
                outcomes[each.index] = each.result
                bar.update(each.result.images)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"{len(outcomes)} of {len(tasks)} shards are finished and kept")
            raise
    return [outcomes[index] for index in range(len(tasks))]


def _refuse_death(finished: Finished, what: str) -> None:
    if finished.worker_died:
        raise RunError(
            f"{what} ended several workers: they were killed or ran out of memory; lower "
            "--batch-size or give the workers more memory; finished shards are kept"
        )


def _merge_results(
    parts: Sequence[ExtractionResult], cache: Path, compute: Compute, note: Note
) -> ExtractionResult:
    """Merge the shards of one network, remove them, and return the result of the whole."""
    merged = merge_shards(
        [part.path for part in parts], cache, progress=compute.progress, note=note
    )
    remove_shards(merged.shards)
    skipped: list[str] = []
    for part in parts:
        skipped += part.skipped
    return ExtractionResult(
        path=merged.path,
        weights=parts[0].weights,
        precision=parts[0].precision,
        hit=merged.hit,
        embedded=sum(part.embedded for part in parts),
        reused=sum(part.reused for part in parts),
        resumed=sum(part.resumed for part in parts),
        skipped=tuple(skipped),
    )


# Merging ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardFile:
    """A shard that was checked.

    Attributes:
        path: the file.
        recipe: of its own images.
        part: what it holds, without the positions of its images.
        classes: class names.
        width, dtype: of the features.
        rounding: largest rounding error of a stored number.
        provenance: recorded, not hashed.
    """

    path: Path
    recipe: Recipe
    part: Part
    classes: tuple[str, ...]
    width: int
    dtype: str
    rounding: float
    provenance: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Number of images."""
        return self.part.sizes[self.part.number - 1]


@dataclass(frozen=True)
class MergedFile:
    """A cache file that was merged from shards.

    Attributes:
        path: the file.
        rows: number of images.
        invalid: number of images that could not be read.
        shards: the files that it was merged from.
        hit: whether the cache had the file already.
    """

    path: Path
    rows: int
    invalid: int
    shards: tuple[Path, ...]
    hit: bool = False


def find_shards(cache: Path) -> list[list[Path]]:
    """Return the shards below a cache folder, those of the same extraction and cut together."""

    def group(path: Path) -> tuple[str, str]:
        return path.parent.name, path.name.split("-")[2]

    files = [path for path in (cache / SHARDS).glob("*/*-of-*-*.h5") if path.name[0] != "."]
    return [list(found) for _, found in groupby(sorted(files, key=group), key=group)]


def merge_shards(
    files: Sequence[Path],
    cache: Path,
    *,
    virtual: bool = False,
    progress: bool = False,
    note: Note = lambda text: None,
) -> MergedFile:
    """Merge all shards of an extraction into one cache file; the shards are kept.

    The file has the rows, the order and the fingerprint of an extraction on one machine. Memory
    does not grow with the number of images.

    Args:
        files: the shards, in any order.
        cache: folder of the merged file.
        virtual: whether the file only refers to the features in the shards, which must be below
            ``cache``: it is made at once and takes no space, but needs the shards.
        progress: whether to show a progress bar on stderr.
        note: called with a message before waiting for another process.

    Raises:
        CacheError: if a shard is damaged, missing, or of another extraction, or two overlap.
        StorageError: if the disk is full or cannot be written.
    """
    shards = _check_shards([_open_shard(path) for path in sorted(files)])
    whole = shards[0].part.whole
    if virtual:
        _check_below(shards, cache)
    stem = f"{shards[0].path.parent.name}"
    if not stem.endswith(whole.fingerprint[:12]):  # moved by the user
        stem = f"{shards[0].provenance['data']}-{whole.fingerprint[:12]}"
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with (
        locked(cache / f".{stem}.lock", on_wait=lambda owner: note(f"waiting for {owner}")),
        store.new_file(cache / f"{stem}.h5") as new,
        tqdm(
            total=shards[0].part.total,
            desc=visible(f"merging {stem}"),
            unit="img",
            disable=not progress,
        ) as bar,
    ):
        merge = _Merge(shards, new, lambda count: bar.update(count))
        if virtual:
            merge.create_virtual(cache)
        else:
            merge.create()
        recipe, attributes = merge.columns(write=not virtual)
        new.path = cache / f"{stem.rpartition('-')[0]}-{recipe.fingerprint[:12]}.h5"
        existing = store.find(cache, recipe)
        if existing is not None:
            store.check(existing, recipe)
            new.discard()
            new.path = existing
        elif not virtual:
            merge.features()
        new.complete(attributes)
    paths = tuple(shard.path for shard in shards)
    hit = existing is not None
    return MergedFile(new.path, shards[0].part.total, merge.invalid, paths, hit)


def remove_shards(files: Iterable[Path]) -> None:
    """Remove shards that were merged, and their folders if nothing else is in them."""
    folders = set()
    for path in files:
        path.unlink(missing_ok=True)
        folders.add(path.parent)
    for folder in folders:
        with suppress(OSError):  # a task of another extraction writes to it
            folder.rmdir()


def _open_shard(path: Path) -> ShardFile:
    """Check a shard: structure, attributes and columns; features are checked when they are copied.

    Raises:
        CacheError: if it is damaged or not a shard.
    """
    with store.open_file(path) as file:
        part = file.part
        if part is None:
            raise CacheError(
                f"{path} is not a shard: give files that `featkit extract --shard` has made"
            )
        if file.recipe.labels != labels_digest(file.classes, file.columns["labels"]):
            raise CacheError(f"{path} is damaged: extract shard {part.name} again")
        return ShardFile(
            path=path,
            recipe=file.recipe,
            part=replace(part, positions=np.empty(0, np.int64)),
            classes=file.classes,
            width=file.width,
            dtype=file.dtype.name,
            rounding=file.rounding,
            provenance=file.provenance,
        )


def _check_shards(shards: Sequence[ShardFile]) -> list[ShardFile]:
    """Return the shards in the order of their numbers, each once.

    Raises:
        CacheError: unless they are all shards of one extraction.
    """
    if not shards:
        raise CacheError("no shards were given: make them with `featkit extract --shard 1/4`")
    first = shards[0]
    by_number: dict[int, ShardFile] = {}
    for shard in shards:
        _check_same_extraction(first, shard)
        other = by_number.setdefault(shard.part.number, shard)
        if other.recipe != shard.recipe:
            raise CacheError(
                f"{other.path} and {shard.path} are both shard {shard.part.name}, of images that "
                "changed in between: remove the older one"
            )
    missing = []
    for number, size in enumerate(first.part.sizes, 1):
        if size and number not in by_number:
            missing.append(number)
    if missing:
        listed = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise CacheError(
            f"{len(missing)} of {first.part.count} shards beside {first.path} are missing "
            f"({listed}): extract them with --shard {missing[0]}/{first.part.count}, with the "
            "same options"
        )
    return [by_number[number] for number in sorted(by_number)]


def _check_same_extraction(first: ShardFile, shard: ShardFile) -> None:
    names = f"{first.path} and {shard.path}"
    if shard.part.whole != first.part.whole:
        fields = first.part.whole.differences(shard.part.whole)
        raise CacheError(
            f"{names} are shards of different extractions "
            f"({describe_differences(fields)}): merge them separately"
        )
    if shard.part.count != first.part.count:
        raise CacheError(
            f"{names} overlap, as they are parts of {first.part.count} and of "
            f"{shard.part.count}: extract all with the same number of shards"
        )
    same = (first.part.sizes, first.classes, first.width, first.dtype)
    if same != (shard.part.sizes, shard.classes, shard.width, shard.dtype):
        raise CacheError(f"{names} do not fit together: extract both again")


def _check_below(shards: Iterable[ShardFile], cache: Path) -> None:
    for shard in shards:
        if shard.path.absolute().parent.parent != (cache / SHARDS).absolute():
            raise CacheError(
                f"a virtual file refers to shards below {cache / SHARDS}, and {shard.path} is not "
                "there: move it, or merge without --virtual"
            )


class _Merge:
    """Merges shards in the order of the image set, some rows at a time.

    Attributes:
        invalid: number of images that could not be read.
    """

    def __init__(
        self, shards: Sequence[ShardFile], new: store.NewFile, progress: Callable[[int], object]
    ) -> None:
        self.invalid = 0
        self._shards = shards
        self._new = new
        self._progress = progress
        self._total = shards[0].part.total
        self._width = shards[0].width

    def create(self) -> None:
        """Create the datasets of a file in the order of the image set."""
        store_format = self._shards[0].provenance["request"].get("store", "float32")
        layout = StorageLayout.parse(store_format)
        self._new.create(self._total, self._width, replace(layout, dtype=self._shards[0].dtype))

    def create_virtual(self, cache: Path) -> None:
        """Create and fill the datasets of a virtual file, whose rows are in the order of shards."""
        sources = []
        for shard in self._shards:
            path = shard.path.absolute().relative_to(cache.absolute())
            sources.append((path.as_posix(), shard.rows))
        self._new.create_virtual(sources, self._width, self._shards[0].dtype)
        first = 0
        for shard in self._shards:
            with store.open_file(shard.path) as file:
                rows = slice(0, shard.rows)
                block = file.read_block(rows, _COLUMNS)
                self._new.write_block(first, {**block, "order": file.read_positions(rows)})
            first += shard.rows

    def columns(self, *, write: bool) -> tuple[Recipe, dict[str, Any]]:
        """Check the columns against the recipe of the whole, write them; return the attributes.

        Raises:
            CacheError: if they do not match.
        """
        names, images, labels, splits = (SequenceDigest() for _ in range(4))
        valid = hashlib.sha256()
        shard = self._shards[0]
        labels.update(shard.classes)
        for first, block in self._blocks(("ids",), _COLUMN_ROWS):
            _update(names, block["ids"])
            _update(images, block["ids"])
            if write:
                self._new.write_block(first, block)
        rest = tuple(name for name in _COLUMNS if name != "ids")
        for first, block in self._blocks(rest, _COLUMN_ROWS):
            _update(images, block["keys"])
            _update(labels, block["labels"])
            _update(splits, block["splits"])
            valid.update(block["valid"].tobytes())
            self.invalid += int(np.count_nonzero(~block["valid"]))
            if write:
                self._new.write_block(first, block)
        whole = shard.part.whole
        same_splits = whole.split in ("none", splits.hexdigest())
        if (names.hexdigest(), labels.hexdigest()) != (whole.images, whole.labels) or not (
            same_splits
        ):
            raise CacheError(
                f"the shards beside {shard.path} do not have the images of the whole set in their "
                "order: extract them again"
            )
        scaled = any(each.recipe.decode == "scaled" for each in self._shards)
        recipe = replace(whole, images=images.hexdigest(), decode="scaled" if scaled else "full")
        provenance = {
            **shard.provenance,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        del provenance["shard"]
        attributes = {
            "recipe": recipe.to_json(),
            "classes": json.dumps(list(shard.classes)),
            "provenance": json.dumps({**provenance, "shards": shard.part.count}),
            "rounding": max(each.rounding for each in self._shards),
            "columns": json.dumps({"splits": splits.hexdigest(), "valid": valid.hexdigest()}),
        }
        return recipe, attributes

    def features(self) -> None:
        """Copy the features, which are checked against their checksums.

        Raises:
            CacheError: if some are damaged.
        """
        rows = max(1, _BLOCK_NUMBERS // self._width)
        for first, block in self._blocks(("valid", "checksums", "embeddings"), rows):
            self._new.write_block(first, {"embeddings": block["embeddings"]})
            self._progress(len(block["embeddings"]))

    def _blocks(
        self, names: Sequence[str], rows: int
    ) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        """Yield datasets in the order of the image set: first row, and values of some rows.

        Raises:
            CacheError: if two shards overlap.
        """
        done = [0] * len(self._shards)
        for first in range(0, self._total, rows):
            last = min(first + rows, self._total)
            block: dict[str, NDArray[Any]] = {}
            filled = np.zeros(last - first, bool)
            for index, shard in enumerate(self._shards):
                if done[index] == shard.rows:
                    continue
                with store.open_file(shard.path) as file:
                    places = _positions_before(file, done[index], last)
                    if not len(places):
                        continue
                    source = slice(done[index], done[index] + len(places))
                    found = file.read_block(source, names)
                done[index] += len(places)
                if filled[places - first].any():
                    raise CacheError(
                        f"{shard.path} overlaps another shard: extract shard {shard.part.name} "
                        "again"
                    )
                filled[places - first] = True
                _put(block, found, places - first, last - first)
            yield first, block


_COLUMNS = ("ids", "labels", "keys", "splits", "valid", "checksums")


def _update(digest: SequenceDigest, values: NDArray[Any]) -> None:
    """Append values as text, some at a time: as text they take several times the memory."""
    for first in range(0, len(values), _TEXT_ROWS):
        digest.update(values[first : first + _TEXT_ROWS].astype(np.str_).tolist())


_TEXT_ROWS = 4096


def _positions_before(file: store.CacheFile, start: int, last: int) -> NDArray[np.int64]:
    """Return the positions of a shard from row ``start`` on that are smaller than ``last``."""
    size = 1024
    while True:
        positions = file.read_positions(slice(start, start + size))
        if start + size >= file.rows or (len(positions) and positions[-1] >= last):
            return positions[: int(np.searchsorted(positions, last))]
        size *= 4


def _put(
    block: dict[str, NDArray[Any]],
    found: Mapping[str, NDArray[Any]],
    places: NDArray[np.int64],
    rows: int,
) -> None:
    """Copy values of a shard to their places in a block of some rows."""
    for name, values in found.items():
        if name not in block:
            # Fewer bytes than as text: 64 in place of 256 for a key.
            kind: Any = {"ids": object, "keys": "S64", "splits": "S5"}.get(name, values.dtype)
            block[name] = np.zeros((rows, *values.shape[1:]), kind)
        block[name][places] = values
