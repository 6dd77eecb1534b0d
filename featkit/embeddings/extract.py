"""Images and backbones to cache files: each image is read and embedded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from featkit.backbones.base import Backbone
from featkit.backbones.devices import INT8
from featkit.embeddings import lookup, pipeline, store
from featkit.embeddings.base import Embeddings
from featkit.embeddings.calibration import CalibrationTask, calibrate
from featkit.embeddings.journal import Journal, open_journal, remove
from featkit.embeddings.layout import StorageLayout
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import ExtractionPlan, changes, content_keys, plan_extraction, provenance
from featkit.embeddings.request import Request
from featkit.errors import DataError, DecodeError
from featkit.images.base import ImageSet
from featkit.storage import storage_errors

_COPY_ROWS, _COPY_NUMBERS = 1024, 2**24


@dataclass(frozen=True)
class ExtractionResult:
    """What an extraction came to.

    Attributes:
        path: the cache file.
        weights: label of the weights, for people.
        precision: ``fp32``, ``bf16`` or ``int8``.
        hit: whether it was there already.
        embedded: how many images went through the network.
        reused: how many vectors were taken from other files.
        resumed: how many vectors were taken over from an extraction that did not end.
        skipped: names of the images that could not be read.
        changes: since the last file of the same data and network: how many images are ``new``, ``changed``, ``gone``.
    """

    path: Path
    weights: str
    precision: str
    hit: bool
    embedded: int = 0
    reused: int = 0
    resumed: int = 0
    skipped: tuple[str, ...] = ()
    changes: dict[str, int] | None = None


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
    (done,) = run_extractions([request], images, Path(cache), compute or Compute())
    return read_for(images, done.path)


def read_for(images: ImageSet, path: Path) -> Embeddings:
    """Read a cache file with the splits of ``images``: one file serves every seed of a split."""
    embeddings = store.read(path)
    splits = dict(zip(images.ids, images.splits.tolist(), strict=True))
    return replace(embeddings, splits=np.array([splits[name] for name in embeddings.ids], dtype=np.str_))


def run_extractions(
    requests: Sequence[Request],
    images: ImageSet | Sequence[ImageSet],
    cache: Path,
    compute: Compute,
    note: Callable[[str], None] = lambda text: None,
) -> list[ExtractionResult]:
    """Make the cache files of these images through some networks, unless they are there; read each image once.

    What was done is kept when the work is cut short, and taken over by the next extraction through the same network.

    Args:
        requests: the networks.
        images: the images; where requests differ in what is made of them, those of each request. Then rows of the same
            number are read one after the other, so that ``cache_last_row`` decodes an image once for all of them.
        cache: folder of the cache files.
        compute: how the work is done.
        note: told when this has to wait for another process.

    Raises:
        FeatkitError: of the kind that says what cannot be had.
    """
    each = [images] * len(requests) if isinstance(images, ImageSet) else images
    keys = {id(own): content_keys(own, compute) for own in {id(own): own for own in each}.values()}
    jobs = [
        _make_job(request.for_device(compute.device), own, keys[id(own)], cache, compute)
        for request, own in zip(requests, each, strict=True)
    ]
    found = [lookup.find(cache, job.recipe) for job in jobs]
    missing = {job.path: job for job, path in zip(jobs, found, strict=True) if path is None}
    made = _make(sorted(missing.values(), key=lambda job: job.journal), compute, note)
    return [_hit(job, path, compute) if path else made[job.path] for job, path in zip(jobs, found, strict=True)]


def _make_job(request: Request, images: ImageSet, keys: tuple[str, ...], cache: Path, compute: Compute) -> ExtractionPlan:
    """Return the wanted file; an int8 network that is not there yet is calibrated first."""
    job = plan_extraction(request, images, keys, cache)
    if request.precision in INT8 and job.backbone.quantized is None:
        calibrate(CalibrationTask(job.backbone, job.recipe, images, keys), cache, compute)
        job = plan_extraction(request, images, keys, cache)
    return job


def _hit(job: ExtractionPlan, path: Path, compute: Compute) -> ExtractionResult:
    skipped = tuple(store.check(path, job.recipe))
    if skipped and compute.on_error == "fail":
        raise DecodeError(
            f"{len(skipped)} images of {path} cannot be read ({', '.join(skipped[:5])}): mend or remove them, "
            "or go on without them with --on-error skip"
        )
    return ExtractionResult(path, job.backbone.weights, job.recipe.precision, hit=True, skipped=skipped)


@dataclass(frozen=True)
class _Open:
    """A job at work: what is known already, and the journal for what is new, which jobs of one network share."""

    job: ExtractionPlan
    journal: Journal
    known: dict[str, lookup.Place]
    resumed: int

    def has(self, key: str) -> bool:
        return key in self.known or key in self.journal


def _make(jobs: Sequence[ExtractionPlan], compute: Compute, note: Callable[[str], None]) -> dict[Path, ExtractionResult]:
    """Make the files of some jobs, holding their locks; the order of the jobs is that in which locks are taken."""
    done: dict[Path, ExtractionResult] = {}
    with ExitStack() as stack:
        work, journals = [], dict[Path, Journal]()
        for job in jobs:
            if job.journal not in journals:
                with storage_errors(job.path):
                    job.path.parent.mkdir(parents=True, exist_ok=True)
                    waiting = open_journal(job.journal, lambda who: note(f"waiting for {who}"), job.recipe.store)
                    journals[job.journal] = stack.enter_context(waiting)
            journal = journals[job.journal]
            made_meanwhile = lookup.find(job.path.parent, job.recipe)
            if made_meanwhile:
                done[job.path] = _hit(job, made_meanwhile, compute)
            else:
                known = lookup.locate(job.path.parent, job.recipe, job.keys)
                work.append(_Open(job, journal, known, sum(key in journal for key in set(job.keys))))
        failed = _embed_missing(work, compute)
        done.update({each.job.path: _publish(each, compute, rows) for each, rows in zip(work, failed, strict=True)})
        for path in journals:
            remove(path)
    return done


def _embed_missing(work: Sequence[_Open], compute: Compute) -> list[set[int]]:
    """Put the vectors of all images that are not known yet into the journals; return whose rows cannot be read."""
    keys = {id(each.job.images): each.job.keys for each in work}
    sets = {id(each.job.images): each.job.images for each in work}
    step, places = len(sets), {images: place for place, images in enumerate(sets)}
    failed = [{row for row, key in enumerate(each.job.keys) if not key} for each in work]
    wanted: dict[Path, set[int]] = {each.job.journal: set() for each in work}
    for each in work:
        place = places[id(each.job.images)]
        rows = (row for row, key in enumerate(each.job.keys) if key and not each.has(key))
        wanted[each.job.journal].update(row * step + place for row in rows)
    firsts = list({each.job.journal: each for each in work}.values())
    networks = [(each.job.backbone, each.job.request.precision, frozenset(wanted[each.job.journal])) for each in firsts]
    columns = list(keys.values())
    for batch in embed(_interleaved(list(sets.values())), networks, compute) if work else ():
        for each, unread in zip(work, failed, strict=True):
            unread.update(row // step for row in batch.failed if row % step == places[id(each.job.images)])
        for each, output in zip(firsts, batch.outputs, strict=True):
            if output is not None:
                with storage_errors(each.job.path):
                    each.journal.append([columns[row % step][row // step] for row in output[0]], output[1])
    return failed


def _interleaved(sets: Sequence[ImageSet]) -> ImageSet:
    """Return all first images, then all second ones, and so on; only its name and its pixels are of use."""
    return replace(sets[0], load=lambda row: sets[row % len(sets)].load(row // len(sets)))


def embed(
    images: ImageSet, networks: Sequence[tuple[Backbone, str, frozenset[int]]], compute: Compute
) -> Iterator[pipeline.FeatureBatch]:
    """Yield the vectors of images through networks, batch by batch; each image is read once.

    Args:
        images: the images.
        networks: for each, the backbone, the precision and the rows that it is to see.
        compute: how the work is done.
    """
    total = len(frozenset[int]().union(*(rows for _, _, rows in networks)))
    if not total:
        return
    from featkit.backbones.devices import one_thread_per_worker, pick_device
    from featkit.backbones.engines import open_engine

    on_cpu = pick_device(compute.device) == "cpu"
    targets = [
        pipeline.PipelineTarget(
            backbone.preprocess.for_precision(precision),
            open_engine(backbone, precision=precision, device=compute.device, compiled=compute.compiled),
            rows,
        )
        for backbone, precision, rows in networks
    ]
    title = f"{'+'.join(backbone.name for backbone, _, _ in networks)} on {images.name}"
    with (
        one_thread_per_worker() as start,
        tqdm(total=total, desc=title, unit="img", disable=not compute.progress) as bar,
    ):
        for batch in pipeline.run(images.load, targets, compute, on_cpu=on_cpu, start=start):
            yield batch
            bar.update(batch.size)


def _publish(each: _Open, compute: Compute, failed: set[int]) -> ExtractionResult:
    job, images = each.job, each.job.images
    rows = [row for row in range(len(images)) if row not in failed]
    if not rows:
        raise DataError(f"none of the images of {images.name} can be read: look at one of them with an image viewer")
    header = store.Header(
        recipe=job.recipe,
        ids=images.ids,
        keys=job.keys,
        labels=images.labels,
        splits=images.splits,
        classes=images.classes,
        provenance=provenance(job, compute),
    )
    since = changes(job)
    store.write(job.path, header, _gather(each, rows), StorageLayout.parse(job.request.store))
    reused = sum(job.keys[row] in each.known for row in rows)
    return ExtractionResult(
        job.path,
        job.backbone.weights,
        job.recipe.precision,
        hit=False,
        embedded=len(rows) - reused - each.resumed,
        reused=reused,
        resumed=each.resumed,
        skipped=tuple(images.ids[row] for row in sorted(failed)),
        changes=since,
    )


def _gather(each: _Open, rows: list[int]) -> Iterator[store.Block]:
    """Yield the vectors of ``rows``, from wherever they are, a few at a time."""
    first, step = 0, 1
    while first < len(rows):
        part = np.array(rows[first : first + step])
        keys = [each.job.keys[row] for row in part]
        old = [place for place, key in enumerate(keys) if key in each.known]
        new = [place for place, key in enumerate(keys) if key not in each.known]
        pieces = [lookup.read_places([each.known[keys[place]] for place in old])] if old else []
        pieces += [each.journal.read([keys[place] for place in new])] if new else []
        vectors = np.concatenate(pieces)[np.argsort(old + new)]
        yield part, vectors
        first, step = first + step, max(1, min(_COPY_ROWS, _COPY_NUMBERS // vectors.shape[1]))
