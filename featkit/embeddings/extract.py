"""Extraction: request -> plan -> cache look-up -> embed missing images -> publish the cache file.

``extract_embeddings`` is the whole path for one request, ``Extractor`` for many requests that share
images and networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache as memoize
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from featkit.backbones.base import Backbone
from featkit.backbones.devices import INT8
from featkit.embeddings import pipeline, store
from featkit.embeddings.base import Embeddings
from featkit.embeddings.calibration import calibrate
from featkit.embeddings.index import FileIndex, indexed
from featkit.embeddings.journal import Journal, open_journal
from featkit.embeddings.layout import StorageLayout
from featkit.embeddings.pipeline import Compute, Features
from featkit.embeddings.plan import (
    ExtractionPlan,
    content_keys,
    count_changes,
    make_provenance,
    plan_extraction,
)
from featkit.embeddings.request import Request
from featkit.errors import CacheError, DataError, DecodeError, SpecError, WeightsError, visible
from featkit.images.base import FileKey, ImageSet, KeyedLoad, Pixels, cache_last_row
from featkit.storage import storage_errors

_COPY_ROWS, _COPY_NUMBERS = 1024, 2**24

Note = Callable[[str], None]


@dataclass(frozen=True)
class ExtractionResult:
    """A cache file and how it was obtained.

    Attributes:
        path: the cache file.
        weights: readable label of the weights.
        precision: ``fp32``, ``bf16``, ``int8`` or ``int8-openvino``.
        hit: whether the file was in the cache already.
        embedded: number of images that went through the network.
        reused: number of features copied from other cache files.
        resumed: number of features taken over from an interrupted extraction.
        skipped: names of the images that could not be read.
        changes: numbers of ``new``, ``changed`` and ``removed`` images since the last file of
            the same data and network; None without such a file.
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


def extract_embeddings(
    request: Request,
    cache: Path,
    compute: Compute,
    *,
    images: ImageSet | None = None,
    note: Note = lambda text: None,
) -> Embeddings:
    """Return the embeddings of a data set, from the cache where they are available.

    Args:
        request: images and network.
        cache: folder of the cache files.
        compute: device, batch size, workers, treatment of unreadable images.
        images: images to use instead of those that the request names.
        note: called with a message before waiting for another process.

    Raises:
        FeatkitError: a subclass, if images, network or cache are not available.
    """
    if images is not None:
        (done,) = run_extractions([request], images, cache, compute, note)
        return read_with_splits(done.path, images)
    request = request.for_device(compute.device)
    extractor = Extractor(cache, compute, note)
    extractor.extract(request.file_requests())
    return extractor.read(request)


def read_with_splits(path: Path, images: ImageSet) -> Embeddings:
    """Read a cache file with splits and groups of ``images``: one file serves every split.

    Whether classes are sets of labels is a property of the source too: a folder may have a name
    with a semicolon.
    """
    embeddings = store.read(path)
    row_of = {name: row for row, name in enumerate(images.ids)}
    rows = np.array([row_of[name] for name in embeddings.ids], np.int64)
    splits = images.splits[rows].astype(np.str_)
    groups = np.array(images.groups, np.str_)[rows] if images.groups else None
    return replace(embeddings, splits=splits, groups=groups, multilabel=images.multilabel)


def run_extractions(
    requests: Sequence[Request],
    images: ImageSet,
    cache: Path,
    compute: Compute,
    note: Note = lambda text: None,
) -> list[ExtractionResult]:
    """Extract features of the same images with several networks; each image is read once.

    An interrupted extraction is resumed by the next one with the same network.

    Args:
        requests: the networks.
        images: the images.
        cache: folder of the cache files.
        compute: device, batch size, workers, treatment of unreadable images.
        note: called with a message before waiting for another process.

    Raises:
        FeatkitError: a subclass, if images, network or cache are not available.
    """
    with indexed(images, cache, rehash=compute.rehash) as images:
        keys = content_keys(images, compute)
        plans = []
        for request in requests:
            plans.append(plan_extraction(request.for_device(compute.device), images, keys, cache))
        return execute_plans(plans, compute, note)


class Extractor:
    """Extract features for many requests: images are loaded and hashed once, files are made once.

    Args:
        cache: folder of the cache files.
        compute: device, batch size, workers, treatment of unreadable images.
        note: called with a message before waiting for another process.

    Attributes:
        compute: as given.
    """

    def __init__(self, cache: Path, compute: Compute, note: Note = lambda text: None) -> None:
        self._cache = cache
        self.compute = compute
        self._note = note
        self._plans: dict[Request, ExtractionPlan] = {}
        self._errors: dict[Request, Exception] = {}
        self._indexes: list[FileIndex] = []
        self._load_source = memoize(self._load_source_and_keys)
        self._load_images = memoize(self._load_images_and_keys)

    def plan(self, request: Request) -> ExtractionPlan:
        """Return the plan of a request's cache file; nothing is extracted.

        Raises:
            Exception: the error that planning or extracting raised before, or raises now.
        """
        if request in self._errors:
            raise self._errors[request]
        if request in self._plans:
            return self._plans[request]
        try:
            images, keys = self._load_images(request.images_only)
            plan = plan_extraction(
                request.for_device(self.compute.device), images, keys, self._cache
            )
        except Exception as error:
            self._errors[request] = error
            raise
        # A plan whose int8 network is not calibrated yet is not stored: extracting another request
        # may calibrate the network, and the next plan then contains it.
        if plan.calibration is None:
            self._plans[request] = plan
        return plan

    def find_error(self, requests: Iterable[Request]) -> Exception | None:
        """Return the error of the first request that cannot be extracted, None if all can."""
        for request in requests:
            try:
                self.plan(request)
            except Exception as error:
                return error
        return None

    def available_plans(self, requests: Iterable[Request]) -> list[ExtractionPlan]:
        """Return the plans of all requests without an error, each cache file once."""
        plans: dict[Path, ExtractionPlan] = {}
        for request in requests:
            if self.find_error([request]) is None:
                plan = self.plan(request)
                plans[plan.path] = plan
        return list(plans.values())

    def missing_plans(self, requests: Iterable[Request]) -> list[ExtractionPlan]:
        """Return the plans without an error whose cache file does not exist yet."""
        plans = self.available_plans(requests)
        return [plan for plan in plans if plan.find() is None]

    def extract(self, requests: Iterable[Request]) -> list[ExtractionResult]:
        """Extract features for requests; return the results in the order of the requests.

        Raises:
            Exception: the first error; no later request is extracted then.
        """
        requests = list(requests)
        results: dict[Request, ExtractionResult] = {}
        for group in group_by_images(requests):
            plans = [self.plan(request) for request in group]
            done = execute_plans(plans, self.compute, self._note)
            results.update(zip(group, done, strict=True))
        # Not before: the folder may be new, and stays absent if nothing can be extracted.
        for index in self._indexes:
            index.save()
        return [results[request] for request in requests]

    def extract_independently(self, requests: Iterable[Request]) -> None:
        """Extract features for many requests; an error in one does not stop the others.

        ``plan`` and ``path`` raise the error of a request that failed.
        """
        possible = [request for request in requests if self.find_error([request]) is None]
        for group in group_by_images(possible):
            if not self._try_to_extract(group) and len(group) > 1:
                # Extract each alone, to find out which of them fails.
                for request in group:
                    self._try_to_extract([request])

    def remember_error(self, request: Request, error: Exception) -> None:
        """Let ``plan`` and ``path`` raise the error of a request that was extracted elsewhere."""
        self._errors[request] = error

    def _try_to_extract(self, group: list[Request]) -> bool:
        """Return whether requests were extracted; remember the error of a single one."""
        try:
            self.extract(group)
        except Exception as error:
            if len(group) == 1:
                self._errors[group[0]] = error
            return False
        return True

    def path(self, request: Request) -> Path:
        """Return the cache file of a request.

        Raises:
            CacheError: if it does not exist.
        """
        path = store.find(self._cache, self.plan(request).recipe)
        if path is None:
            raise CacheError(
                f"features of {request.data} with {request.backbone} not found in {self._cache}: "
                "extract again"
            )
        return path

    def read(self, request: Request) -> Embeddings:
        """Read the features of a request from its cache files, with the splits of its images.

        Raises:
            CacheError: if one of the files does not exist or is damaged.
        """
        whole, *perturbed = request.file_requests()
        embeddings = read_with_splits(self.path(whole), self.plan(whole).images)
        for test in perturbed:
            embeddings = embeddings.replace_test(store.read(self.path(test)))
        return embeddings

    def _load_images_and_keys(self, request: Request) -> tuple[ImageSet, tuple[str, ...]]:
        images = request.apply(self._load_source(request.source_only))
        return images, content_keys(images, self.compute)

    def _load_source_and_keys(self, request: Request) -> ImageSet:
        """Load images so that each is hashed once, and decoded once for all derived from it."""
        images = request.load_images()
        index = FileIndex.of(images, self._cache, rehash=self.compute.rehash)
        if index is not None:
            self._indexes.append(index)
            images = index.apply(images)
        # Not the remembered keys for ``with_key``: they may be those of an image that was replaced.
        key = images.key
        if isinstance(key, FileKey):
            remembered: Callable[[int], str] = replace(key, read=memoize(key.read))
        else:
            remembered = memoize(key)
        return replace(images, load=_remember_last(images), key=remembered)


def _remember_last(images: ImageSet) -> KeyedLoad:
    """Return the load of images that decodes the same image once if it is asked for twice."""

    def scaled(edge: int) -> KeyedLoad:
        return _remember_last(images.decoded_for(edge))

    return KeyedLoad(
        cache_last_row(images.load), cache_last_row(images.load_with_key), memoize(scaled)
    )


def group_by_images(requests: Iterable[Request]) -> list[list[Request]]:
    """Group requests whose images are decoded together, whole image sets first.

    An int8 network is calibrated on a whole set; perturbed images of one split then go through the
    same network.
    """
    groups: dict[tuple[str, Request], list[Request]] = {}
    for request in dict.fromkeys(requests):
        groups.setdefault((request.part or "", request.source_only), []).append(request)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]


def execute_plans(
    plans: Sequence[ExtractionPlan], compute: Compute, note: Note = lambda text: None
) -> list[ExtractionResult]:
    """Make the cache files of plans unless they exist; return the results in the same order.

    Rows with the same number are read one after the other across image sets, so that
    ``cache_last_row`` decodes an image once for itself and its perturbed copies.

    Raises:
        FeatkitError: a subclass, if images, network or cache are not available.
    """
    results: dict[Path, ExtractionResult] = {}
    missing: dict[Path, ExtractionPlan] = {}
    ready = []
    for plan in plans:
        ready.append(plan if plan.calibration is None else _calibrate(plan, compute))
    for plan in ready:
        existing = plan.find()
        if existing:
            results[plan.path] = _hit(plan, existing, compute)
        else:
            missing[plan.path] = plan
    if missing:
        results.update(_make_files(list(missing.values()), compute, note))
    return [results[plan.path] for plan in ready]


def _calibrate(plan: ExtractionPlan, compute: Compute) -> ExtractionPlan:
    """Calibrate the int8 network that a plan waits for; return the final plan."""
    # Another plan may have calibrated the same network meanwhile.
    plan = plan_extraction(plan.request, plan.images, plan.keys, plan.cache)
    if plan.calibration is None:
        return plan
    calibrate(plan.calibration, plan.cache, compute)
    return plan_extraction(plan.request, plan.images, plan.keys, plan.cache)


def _hit(plan: ExtractionPlan, path: Path, compute: Compute) -> ExtractionResult:
    skipped = tuple(store.check(path, plan.recipe))
    if skipped and compute.on_error == "fail":
        raise DecodeError(
            f"{len(skipped)} images of {path} cannot be read ({', '.join(skipped[:5])}): "
            "fix or remove them, or continue without them with --on-error skip"
        )
    return ExtractionResult(
        path, plan.backbone.weights, plan.recipe.precision, hit=True, skipped=skipped
    )


@dataclass(frozen=True)
class OpenPlan:
    """A plan in execution.

    Attributes:
        plan: the plan.
        journal: the open journal, shared by all plans with the same network.
        cached: where features of its images are in other cache files, by image key.
        resumed: keys of images whose features only an interrupted extraction left, in the journal.
    """

    plan: ExtractionPlan
    journal: Journal
    cached: dict[str, store.StoredRow]
    resumed: frozenset[str]

    def has_features(self, key: str) -> bool:
        """Return whether the features of an image are in a cache file or in the journal."""
        return key in self.cached or key in self.journal


@dataclass(frozen=True)
class PendingImage:
    """An image that must be read once, and the journals that need its features."""

    images: ImageSet
    row: int
    key: str
    journals: list[Journal]

    @property
    def name(self) -> str:
        """Name of the image."""
        return self.images.ids[self.row]

    def load(self) -> Pixels:
        """Read the image: uint8 RGB ``(h, w, 3)``.

        Raises:
            DataError: if it is not the image any more whose key was computed before.
        """
        return self.images.load_unchanged(self.row, self.key)


def _make_files(
    plans: Sequence[ExtractionPlan], compute: Compute, note: Note
) -> dict[Path, ExtractionResult]:
    """Make cache files under the locks of their journals; return the results by ``plan.path``."""
    results: dict[Path, ExtractionResult] = {}
    with ExitStack() as stack:
        opened: list[OpenPlan] = []
        journals: dict[Path, Journal] = {}
        # All processes take locks in the same order, so that no two wait for each other.
        for plan in sorted(plans, key=lambda plan: plan.journal):
            if plan.journal not in journals:
                with storage_errors(plan.path):
                    plan.cache.mkdir(parents=True, exist_ok=True)
                    context = open_journal(
                        plan.journal, lambda owner: note(f"waiting for {owner}"), plan.recipe.store
                    )
                    journals[plan.journal] = stack.enter_context(context)
            made_meanwhile = plan.find()
            if made_meanwhile:
                results[plan.path] = _hit(plan, made_meanwhile, compute)
                continue
            journal = journals[plan.journal]
            cached = plan.locate_cached()
            resumed = {key for key in plan.keys if key in journal and key not in cached}
            opened.append(OpenPlan(plan, journal, cached, frozenset(resumed)))
        try:
            engines = embed_pending(pending_images(opened), opened, compute)
            for each in opened:
                engine = engines.get(each.plan.journal)
                results[each.plan.path] = _publish(each, compute, engine)
        except KeyboardInterrupt as interrupt:
            count = sum(map(len, journals.values()))
            if count:
                cache = opened[0].plan.cache
                interrupt.add_note(f"the features of {count:,} images are kept in {cache}")
            raise
        for journal in journals.values():
            journal.discard()
    return results


def pending_images(opened: Sequence[OpenPlan]) -> list[PendingImage]:
    """List the images whose features are not cached yet, in reading order.

    Rows with the same number follow each other across image sets, so that an image and its
    perturbed copies are decoded once. Images with the same content are read once for networks that
    need them in the same size.
    """
    pending: dict[tuple[str, int | None], PendingImage] = {}
    longest = max((len(each.plan.keys) for each in opened), default=0)
    for row in range(longest):
        for each in opened:
            key = each.plan.keys[row] if row < len(each.plan.keys) else ""
            if not key or each.has_features(key):
                continue
            image = PendingImage(each.plan.images, row, key, journals=[])
            image = pending.setdefault((key, each.plan.decoding_of(key)), image)
            if each.journal not in image.journals:
                image.journals.append(each.journal)
    return list(pending.values())


def embed_pending(
    pending: Sequence[PendingImage], opened: Sequence[OpenPlan], compute: Compute
) -> dict[Path, str]:
    """Embed images batch by batch and append the features to the journals that need them.

    Images that cannot be read are left out with ``compute.on_error`` ``skip``.

    Returns:
        What ran each network, by the file of its journal; empty if no image was embedded.

    Raises:
        DecodeError: for the first image that cannot be read, with ``compute.on_error`` ``fail``.
        StorageError: if the disk is full.
    """
    if not pending:
        return {}
    networks: dict[Path, OpenPlan] = {}
    for each in opened:
        networks.setdefault(each.plan.journal, each)
    passes = []
    for each in networks.values():
        rows = frozenset(row for row, image in enumerate(pending) if each.journal in image.journals)
        passes.append((each.plan.backbone, each.plan.request.precision, rows))

    def load(row: int) -> Pixels:
        return pending[row].load()

    names = tuple(image.name for image in pending)
    images = replace(opened[0].plan.images, ids=names, load=load)
    engines: dict[Path, str] = {}
    for number, batch in enumerate(embed(images, passes, compute)):
        if number == 0:
            _refuse_changed_weights(networks.values())
            engines = dict(zip(networks, batch.engines, strict=True))
        _append_batch(batch, pending, networks.values())
    return engines


def _append_batch(
    batch: pipeline.FeatureBatch, pending: Sequence[PendingImage], networks: Iterable[OpenPlan]
) -> None:
    """Append the features of a batch to the journal of each network."""
    for each, output in zip(networks, batch.outputs, strict=True):
        if output is None:
            continue
        rows_done, features = output
        with storage_errors(each.plan.path):
            each.journal.append([pending[row].key for row in rows_done], features)


def _refuse_changed_weights(networks: Iterable[OpenPlan]) -> None:
    """Refuse networks whose weights were replaced before they were read; call after reading.

    Raises:
        WeightsError: if the digest is not that of the recipe any more.
    """
    for each in networks:
        if each.plan.backbone.weights_changed():
            raise WeightsError(
                f"the weights of {each.plan.backbone.name} were changed while they were read: "
                "extract again"
            )


def embed(
    images: ImageSet, networks: Sequence[tuple[Backbone, str, frozenset[int]]], compute: Compute
) -> Iterator[pipeline.FeatureBatch]:
    """Yield features of images through networks, batch by batch; each image is read once.

    Args:
        images: the images.
        networks: for each network the backbone, the precision and the rows of the images to embed.
        compute: device, batch size, workers, treatment of unreadable images.

    Raises:
        DataError: if a feature is not finite; the message names the image and the layer.
    """
    total = len(frozenset[int]().union(*(rows for _, _, rows in networks)))
    if not total:
        return
    from featkit.backbones.devices import device_for, one_thread_per_worker
    from featkit.backbones.engines import Workload, open_engine

    on_cpu = device_for([precision for _, precision, _ in networks], compute.device) == "cpu"
    targets = []
    engines = []
    for backbone, precision, rows in networks:
        preprocess = backbone.preprocess.for_precision(precision)
        engine = open_engine(
            backbone,
            precision=precision,
            device=compute.device,
            compiled=compute.compiled,
            engine=compute.engine,
            workload=Workload(len(rows), min(compute.threads, max(1, len(rows)))),
        )
        engines.append(engine.name)
        target = pipeline.PipelineTarget(preprocess, engine, rows)
        if precision in INT8:
            from featkit.backbones.int8 import check_on_this_machine

            load_pixels = partial(_first_pixels, images, target)
            check_on_this_machine(engine, backbone, precision, load_pixels)
        targets.append(target)
    title = f"{'+'.join(backbone.name for backbone, _, _ in networks)} on {images.name}"
    done = 0
    with (
        one_thread_per_worker() as start,
        tqdm(total=total, desc=visible(title), unit="img", disable=not compute.progress) as bar,
    ):
        for batch in pipeline.run(images.load, targets, compute, on_cpu=on_cpu, start=start):
            for (backbone, precision, _), output in zip(networks, batch.outputs, strict=True):
                if output is not None:
                    refuse_not_finite(images, backbone, precision, output)
            yield replace(batch, engines=tuple(engines))
            done += batch.size
            bar.update(batch.size)
            if compute.on_batch is not None:
                compute.on_batch(done, total)


def _first_pixels(images: ImageSet, target: pipeline.PipelineTarget, most: int) -> Pixels:
    """Return the first readable images of a network, preprocessed: uint8 ``(n, h, w, 3)``."""
    pixels: list[Pixels] = []
    for row in sorted(target.rows):
        if len(pixels) == most:
            break
        # Errors are reported by the extraction itself.
        with suppress(DecodeError):
            pixels.append(target.preprocess(images.load(row)))
    return np.stack(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8)


def refuse_not_finite(
    images: ImageSet, backbone: Backbone, precision: str, output: tuple[pipeline.Rows, Features]
) -> None:
    """Refuse features that are NaN or infinite.

    Args:
        images: the images.
        backbone: the network.
        precision: its precision.
        output: rows ``(b,)`` and their features ``(b, d)``.

    Raises:
        DataError: naming the first such image, and the first layer with such an output.
    """
    rows, features = output
    wrong = rows[~np.isfinite(features).all(axis=1)]
    if not len(wrong):
        return
    row = int(wrong[0])
    where = f"the features of {images.ids[row]} with {backbone.name} are not finite"
    if precision in INT8:
        raise DataError(f"{where}: use --precision fp32 and check the weights")
    from featkit.backbones.layers import first_non_finite_layer

    pixels = backbone.preprocess.for_precision(precision)(images.load(row))
    try:
        layer = first_non_finite_layer(backbone, np.stack([pixels]))
    except SpecError as error:  # a network that torch cannot run, such as Keras's own
        raise DataError(f"{where}: check the weights or use other ones") from error
    if layer is None:
        raise DataError(f"{where} in {precision}, but are in fp32: use --precision fp32")
    raise DataError(f"{where}, first in layer {layer}: check the weights or use other ones")


def _publish(each: OpenPlan, compute: Compute, engine: str | None) -> ExtractionResult:
    """Write the cache file of a plan whose readable images are all embedded."""
    plan, images = each.plan, each.plan.images
    rows, skipped = [], []
    for row, key in enumerate(plan.keys):
        if key and each.has_features(key):
            rows.append(row)
        else:
            skipped.append(images.ids[row])
    if not rows:
        raise DataError(
            f"none of the images of {images.name} can be read: open one with an image viewer"
        )
    header = store.Header(
        recipe=plan.recipe,
        ids=images.ids,
        keys=plan.keys,
        labels=images.labels,
        splits=images.splits,
        classes=images.classes,
        provenance=make_provenance(plan, compute, engine),
        positions=None if plan.part is None else plan.part.positions,
    )
    changes = count_changes(plan)
    layout = StorageLayout.parse(plan.request.store)
    store.write(plan.path, header, _gather_features(each, rows), layout)
    reused = sum(plan.keys[row] in each.cached for row in rows)
    resumed = sum(plan.keys[row] in each.resumed for row in rows)
    return ExtractionResult(
        plan.path,
        plan.backbone.weights,
        plan.recipe.precision,
        hit=False,
        embedded=len(rows) - reused - resumed,
        reused=reused,
        resumed=resumed,
        skipped=tuple(skipped),
        changes=changes,
    )


def _gather_features(each: OpenPlan, rows: list[int]) -> Iterator[store.Block]:
    """Yield the features of ``rows`` in blocks, from other cache files and the journal."""
    first, step = 0, 1
    with store.open_places() as read_cached:
        while first < len(rows):
            block = rows[first : first + step]
            features = _read_features(each, [each.plan.keys[row] for row in block], read_cached)
            yield np.array(block), features
            first += step
            # The first block has one row, which gives the width of the features.
            step = max(1, min(_COPY_ROWS, _COPY_NUMBERS // features.shape[1]))


def _read_features(
    each: OpenPlan,
    keys: list[str],
    read_cached: Callable[[Sequence[store.StoredRow]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Return the features ``(len(keys), d)`` of images, from other cache files and the journal."""
    in_cache = np.array([key in each.cached for key in keys])
    cached = [each.cached[key] for key in keys if key in each.cached]
    new = [key for key in keys if key not in each.cached]
    if not cached:
        return each.journal.read(new)
    from_cache = read_cached(cached)
    features = np.empty((len(keys), from_cache.shape[1]), np.float32)
    features[in_cache] = from_cache
    if new:
        features[~in_cache] = each.journal.read(new)
    return features
