"""Plan of an extraction: the cache file to make and everything that decides its content."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from featkit.backbones.base import Backbone
from featkit.backbones.devices import INT8, instruction_set
from featkit.embeddings import store
from featkit.embeddings.calibration import (
    CalibratedNetwork,
    CalibrationTask,
    find_calibrated,
    seen_in_test,
)
from featkit.embeddings.layout import StorageLayout
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.recipe import Part, Recipe
from featkit.embeddings.request import Request
from featkit.embeddings.validation import (
    images_digest,
    is_folder_name,
    labels_digest,
    splits_digest,
)
from featkit.errors import CacheError, DecodeError
from featkit.extras import package_version
from featkit.images.base import FileKey, ImageSet, SizedKey
from featkit.images.decode import reduction
from featkit.images.perturb import parse_perturbation
from featkit.parallel import in_threads
from featkit.storage import safe_name

log = logging.getLogger("featkit")

_KEYS_AT_ONCE = 64


@dataclass(frozen=True)
class ExtractionPlan:
    """One cache file to make.

    Attributes:
        request: the images and the network as requested, with a definite precision and decoding.
        images, keys: the images and their content digests.
        backbone: the network; for int8 with the quantized network, unless that is not calibrated
            yet.
        recipe: everything that decides the features.
        path: the cache file.
        journal: the file that keeps the features until the cache file is complete.
        calibration: the int8 network that must be calibrated first, or None. Until then
            ``recipe.calibration`` is ``none``, which no cache file of an int8 network has; make the
            plan again after calibrating.
        part: what a shard holds; None for a cache file of all images.
        reuse: cache files that features may be copied from; None for all in the folder.
        large: content digests of the images that ``scaled`` decodes at a fraction of their size.
    """

    request: Request
    images: ImageSet
    backbone: Backbone
    recipe: Recipe
    keys: tuple[str, ...]
    path: Path
    journal: Path
    calibration: CalibrationTask | None = None
    part: Part | None = None
    reuse: tuple[Path, ...] | None = None
    large: frozenset[str] = frozenset()

    @property
    def cache(self) -> Path:
        """Folder of the cache files."""
        return self.path.parent

    def find(self) -> Path | None:
        """Return the cache file if it exists, under whatever data set name; None otherwise."""
        if self.part is not None:
            # A part of another cut may have the same images.
            return self.path if self.path.exists() else None
        return store.find(self.cache, self.recipe)

    def locate_cached(self) -> dict[str, store.StoredRow]:
        """Find the features of the images in other cache files, by image key."""
        if self.reuse is None:
            return store.locate(self.cache, self.recipe, self.keys, self.large)
        return store.locate_in(self.reuse, self.recipe, self.keys, self.large)

    def decoding_of(self, key: str) -> int | None:
        """Return the shorter edge that an image is decoded for, see ``decode.decode``."""
        scaled = self.recipe.decode == "scaled" and key in self.large
        return self.backbone.preprocess.edge if scaled else None


def plan_extraction(
    request: Request, images: ImageSet, keys: tuple[str, ...], cache: Path
) -> ExtractionPlan:
    """Plan the cache file of a request; no image is decoded and no network built.

    If the request does not say how large JPEG files are decoded, they are decoded at a fraction of
    their size, unless the cache has more features of these images decoded in full: files of earlier
    versions stay valid, and images can be added to them.

    Args:
        request: with a definite precision, see ``Request.for_device``.
        images: the images.
        keys: their content digests.
        cache: folder of the cache files.

    Raises:
        FeatkitError: if the backbone or its weights are not available.
    """
    backbone = request.load_backbone()
    large = large_images(images, keys, backbone.preprocess.edge)

    def plan(decode: str) -> ExtractionPlan:
        scaled = bool(large) and decode == "scaled"
        asked = replace(request, decode=decode)
        planned = _plan(asked, images, keys, cache, backbone, scaled=scaled)
        return replace(planned, large=large)

    if request.decode is not None or not large:
        return plan(request.decode or "scaled")
    full, scaled = plan("full"), plan("scaled")
    if _has_more(full, scaled):
        log.info(
            "%d JPEG files are decoded in full, as in the cache; --decode scaled is faster",
            len(large),
            extra={"once": True},
        )
        return full
    return scaled


def large_images(images: ImageSet, keys: Sequence[str], edge: int) -> frozenset[str]:
    """Return the content digests of JPEG files that are decoded at a fraction for ``edge``."""
    if not isinstance(images.key, FileKey | SizedKey):
        return frozenset()
    jpeg_edge = images.key.jpeg_edge
    return frozenset(
        key for row, key in enumerate(keys) if key and reduction(jpeg_edge(row), edge) > 1
    )


def _has_more(full: ExtractionPlan, scaled: ExtractionPlan) -> bool:
    """Return whether more features are in the cache for ``full`` than for ``scaled``."""
    if scaled.find() or full.find():
        return scaled.find() is None
    return len(full.locate_cached()) > len(scaled.locate_cached())


def _plan(
    request: Request,
    images: ImageSet,
    keys: tuple[str, ...],
    cache: Path,
    backbone: Backbone,
    *,
    scaled: bool,
) -> ExtractionPlan:
    """Return the plan for one way of decoding, without its large images."""
    if scaled:
        images = images.decoded_for(backbone.preprocess.edge)
    dtype = StorageLayout.parse(request.store).dtype
    pending = None
    calibration = "none"
    if request.precision in INT8:
        if backbone.quantized is None:
            task = CalibrationTask(backbone, images, keys, dtype)
            known = find_calibrated(task, request.to_dict()["data"], cache)
            if known is None:
                pending = task
            else:
                backbone = replace(backbone, quantized=known.file)
                _note_calibration(known, task)
        calibration = backbone.quantized.digest if backbone.quantized else "none"
    recipe = make_recipe(
        images,
        keys,
        backbone,
        request.precision,
        perturb=str(parse_perturbation(request.perturb or "none")),
        calibration=calibration,
        store=dtype,
        decode="scaled" if scaled else "full",
    )
    stem = safe_name(f"{images.name}-{backbone.name}")
    return ExtractionPlan(
        request=request,
        images=images,
        backbone=backbone,
        recipe=recipe,
        keys=keys,
        path=cache / f"{stem}-{recipe.fingerprint[:12]}.h5",
        journal=cache / f".{stem}-{recipe.network[:12]}.partial",
        calibration=pending,
    )


def _note_calibration(known: CalibratedNetwork, task: CalibrationTask) -> None:
    """Tell that an int8 network was calibrated on images that are test images by now."""
    count = seen_in_test(known, task)
    if count:
        log.warning(
            "%d of the %d images on which the int8 network of %s was calibrated, without their "
            "labels, are test images of this split: use another --cache to calibrate on its train "
            "images",
            count,
            len(known.keys),
            task.images.name,
            extra={"once": True},
        )


def make_recipe(
    images: ImageSet,
    keys: tuple[str, ...],
    backbone: Backbone,
    precision: str,
    *,
    perturb: str = "none",
    calibration: str = "none",
    store: str = "float32",
    decode: str = "full",
) -> Recipe:
    """Return the recipe of images through a backbone; arguments as the fields of ``Recipe``."""
    return Recipe(
        images=images_digest(images.ids, keys),
        labels=labels_digest(images.classes, images.labels),
        split=splits_digest(images.splits) if images.split == "own" else "none",
        perturb=perturb,
        backbone=backbone.name,
        weights=backbone.digest,
        layer=backbone.layer,
        pool=backbone.pool,
        preprocess=asdict(backbone.preprocess),
        precision=precision,
        calibration=calibration,
        store=store,
        intensity=images.intensity,
        decode=decode,
    )


def content_keys(images: ImageSet, compute: Compute) -> tuple[str, ...]:
    """Return the SHA-256 of each image's bytes, in order; empty for skipped unreadable images.

    Raises:
        DecodeError: for the first image whose bytes cannot be read, unless ``compute.on_error`` is
            ``skip``.
    """

    def read_key(row: int) -> str:
        try:
            return images.key(row)
        except DecodeError:
            if compute.on_error == "skip":
                return ""
            raise

    def read_keys(start: int) -> list[str]:
        stop = min(start + _KEYS_AT_ONCE, len(images))
        return [read_key(row) for row in range(start, stop)]

    starts = range(0, len(images), _KEYS_AT_ONCE)
    return tuple(chain.from_iterable(in_threads(read_keys, starts, compute.threads)))


def count_changes(plan: ExtractionPlan) -> dict[str, int] | None:
    """Count the images that changed since the newest file of the same data and network, if any."""
    requested = plan.request.to_dict()
    if not requested["data"] or plan.part is not None:
        return None
    for entry in store.entries(plan.cache)[0]:
        recorded = entry.provenance["request"]
        same_data = all(
            recorded.get(name) == requested[name] for name in ("data", "perturb", "part")
        )
        if same_data and entry.recipe.same_network(plan.recipe):
            try:
                before = store.read_header(entry.path)
            except CacheError:  # a damaged file of the past is no reason to stop
                continue
            changed = compare_images(before.ids, before.keys, plan.images.ids, plan.keys)
            return {kind: len(names) for kind, names in changed.items()}
    return None


def compare_images(
    names: Sequence[str], keys: Sequence[str], names_now: Sequence[str], keys_now: Sequence[str]
) -> dict[str, list[str]]:
    """Return the names of ``new``, ``changed`` and ``removed`` images, without renamed ones."""
    before = dict(zip(names, keys, strict=True))
    now = dict(zip(names_now, keys_now, strict=True))
    keys_before, keys_after = set(keys), set(keys_now)
    changes: dict[str, list[str]] = {"new": [], "changed": [], "removed": []}
    for name, key in now.items():
        if key not in keys_before:
            changes["changed" if name in before else "new"].append(name)
    for name, key in before.items():
        if key not in keys_after and name not in now:
            changes["removed"].append(name)
    return changes


def make_provenance(
    plan: ExtractionPlan, compute: Compute, engine: str | None = None
) -> dict[str, Any]:
    """Return what is recorded about an extraction without being part of its recipe.

    Args:
        plan: the extraction.
        compute: its options.
        engine: what ran the network; None if all features were cached.
    """
    packages = ("featkit", "torch", "torchvision", "pillow", "numpy")
    runtimes = [engine] if engine in ("onnxruntime", "openvino") else []
    name = plan.images.name
    shard = {} if plan.part is None else {"shard": plan.part.to_dict()}
    # Their number only: the groups themselves are read from the source, as the splits are.
    groups = {"groups": len(set(plan.images.groups))} if plan.images.groups else {}
    labels = {store.MULTILABEL: True} if plan.images.multilabel else {}
    return {
        **shard,
        **groups,
        **labels,
        "data": name if is_folder_name(name) else safe_name(name),
        "request": plan.request.to_dict(),
        "weights": plan.backbone.weights,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": compute.device,
        **({} if engine is None else {"engine": engine}),
        "batch_size": compute.batch_size,
        "host": platform.node(),
        "instruction_set": instruction_set(),
        "versions": {name: package_version(name) for name in [*packages, *runtimes]},
    }
