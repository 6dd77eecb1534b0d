"""Request for features: images and network, in the terms of the command line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from featkit.arguments import FLAG, MAX_SEED, Kind, integer, text
from featkit.backbones import load_backbone
from featkit.backbones.base import Backbone
from featkit.backbones.devices import INT8, resolve_precision
from featkit.backbones.saved import KERAS, is_int8, is_path, saved_path
from featkit.backbones.weights import SUFFIXES, split_key
from featkit.embeddings.store import entries
from featkit.errors import CacheError, SpecError
from featkit.images import load_images
from featkit.images.archives import absolute_spec, archives_exist, is_archive_spec
from featkit.images.augment import add_augmented_views
from featkit.images.base import ImageSet
from featkit.images.perturb import parse_perturbation, perturb_images, perturb_split
from featkit.images.remote import is_url
from featkit.images.sources import SOURCES
from featkit.registry import check_names
from featkit.storage import user_path

_SOURCE = {"selects": "source"}
_VARIANT = {"selects": "variant"}
"""Metadata of fields that select images of a source, or what is made of these images."""


DECODINGS = ("full", "scaled")

_KINDS = {
    "split": text("70/15/15"),
    "limit": text("train=500,test=100"),
    "seed": integer(0, MAX_SEED),
    "layer": text("layer4"),
    "resize": text("224"),
    "crop": text("224"),
    "augment": text("basic"),
    "views": integer(0),
    "perturb": text("fog:level=strong"),
    "part": text("test"),
    "group": text("parent"),
    "allow_group_leak": FLAG,
    "decode": text("full"),
}
"""Kinds of the fields; those that are missing are text, such as their default."""


@dataclass(frozen=True)
class Request:
    """Images and the network to extract their features with; recorded in the cache file.

    Attributes:
        data: spec of the images: a name or a path; empty for images that were given from Python.
        split: fractions such as ``70/15/15`` that replace the splits of the source, or None.
        limit: stratified subset such as ``train=5000,test=1000``, or None.
        seed: seed of the split and of the limit.
        intensity_range: grey values that become black and white, such as ``0:4095``, or None.
        backbone: spec of the network, or the path of a saved one.
        weights: ``imagenet``, a torchvision enum name, ``random[:seed]`` or a file.
        layer: dotted layer name, or None for the network's own embedding.
        pool: ``avg``, ``max``, ``catavgmax`` or ``none``.
        resize: ``256`` or ``224x224``, or None for the default of the weights.
        crop: ``224`` or ``none``, or None for the default of the weights.
        precision: ``fp32``, ``bf16``, ``int8``, ``int8-openvino``, or ``auto``: bf16 where the
            hardware supports it, else fp32.
        augment: ``basic``, ``trivial``, ``auto`` or ``rand`` to add augmented views of each train
            image, or None.
        views: number of augmented views of each train image.
        perturb: perturbation of the test images, such as ``gaussian_noise:level=strong``, or None.
        part: ``test`` or ``train`` for the perturbed images of that split alone, see
            ``perturb_split``; None for all images.
        group: how images are grouped, such as ``parent``, see ``load_images``; None for the groups
            of the source.
        allow_group_leak: True to accept splits of the source that separate a group, or None.
        store: ``float32`` or ``float16``, ``gzip`` or ``zstd``, or one of each, see
            ``StorageLayout``.
        decode: ``scaled`` to decode JPEG files of at least four times the size that the network
            needs at a fraction of their size, ``full`` to decode all in full; None for ``scaled``,
            unless more of their features are in the cache for ``full``.

    Raises:
        SpecError: if a field has a value of another type, or ``decode`` an unknown one.
    """

    data: str = field(default="digits", metadata=_SOURCE)
    split: str | None = field(default=None, metadata=_SOURCE)
    limit: str | None = field(default=None, metadata=_SOURCE)
    seed: int = field(default=0, metadata=_SOURCE)
    intensity_range: str | None = field(default=None, metadata=_SOURCE)
    backbone: str = "resnet18"
    weights: str = "imagenet"
    layer: str | None = None
    pool: str = "avg"
    resize: str | int | None = None
    crop: str | int | None = None
    precision: str = "auto"
    augment: str | None = field(default=None, metadata=_VARIANT)
    views: int = field(default=4, metadata=_VARIANT)
    perturb: str | None = field(default=None, metadata=_VARIANT)
    part: str | None = field(default=None, metadata=_VARIANT)
    store: str = "float32"
    group: str | None = field(default=None, metadata=_SOURCE)
    allow_group_leak: bool | None = field(default=None, metadata=_SOURCE)
    decode: str | None = None

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):  # TOML has sizes as integers
            size = getattr(self, name)
            if isinstance(size, int) and not isinstance(size, bool):
                object.__setattr__(self, name, str(size))
        for name, default, kind in _checks():
            value = getattr(self, name)
            if isinstance(value, Path):
                value = str(value)
            if value is None and default is None:
                continue
            object.__setattr__(self, name, kind.check(name, value))
        if self.decode is not None:
            check_names("decode", [self.decode], DECODINGS)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Request:
        """Return the request that ``to_dict`` described; unknown names are ignored."""
        known = [each.name for each in fields(cls)]
        return cls(**{name: values[name] for name in known if name in values})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; paths become absolute.

        Groups and decoding are left out where none were requested, as in earlier versions.
        """
        values = {}
        for name, _, _ in _checks():
            values[name] = _absolute(name, getattr(self, name))
        for name in ("group", "allow_group_leak", "decode"):
            if values[name] is None:
                del values[name]
        return values

    @property
    def absolute(self) -> Request:
        """The same request for a process with another working directory: paths are absolute."""
        return Request.from_dict(self.to_dict())

    def for_device(self, device: str) -> Request:
        """Return the request with ``precision="auto"`` resolved for a device and a network.

        Raises:
            SpecError: if the precision is unknown or not supported by the network.
        """
        if self.backbone.startswith(KERAS) and not is_int8(self.backbone):
            return replace(self, precision=_keras_precision(self.backbone, self.precision))
        if not is_int8(self.backbone):
            return replace(self, precision=resolve_precision(self.precision, device))
        if self.precision in INT8:
            return self
        if self.precision != "auto":
            raise SpecError(
                f"{self.backbone} is an int8 network: leave out --precision {self.precision}"
            )
        return replace(self, precision="int8")

    def file_requests(self) -> list[Request]:
        """Return the requests of the cache files that hold these features.

        That is one file of all unperturbed images and, with a perturbation, one of the perturbed
        test images alone.

        Raises:
            SpecError: if the perturbation is unknown.
        """
        if self.part:
            return [self]
        clean = replace(self, perturb=None)
        perturbation = parse_perturbation(self.perturb or "none")
        if not perturbation:
            return [clean]
        return [clean, clean.perturbed("test", str(perturbation))]

    def perturbed(self, part: str, perturbation: str) -> Request:
        """Return the request of the perturbed images of one split."""
        return replace(self, augment=None, perturb=perturbation, part=part)

    @property
    def images_only(self) -> Request:
        """The request for the same images through the default network."""
        return Request(**{name: getattr(self, name) for name in IMAGE_FIELDS})

    @property
    def source_only(self) -> Request:
        """The request for the same unchanged images of the source through the default network."""
        return Request(**{name: getattr(self, name) for name in SOURCE_FIELDS})

    @property
    def source_exists(self) -> bool:
        """Whether the images can still be read: a name is always known, a path must exist."""
        if is_archive_spec(self.data):
            return archives_exist(self.data)
        return not Path(self.data).is_absolute() or Path(self.data).exists()

    def load_images(self) -> ImageSet:
        """Load the images; raises as ``featkit.images.load_images`` does."""
        images = load_images(
            self.data,
            split=self.split,
            seed=self.seed,
            limit=self.limit,
            intensity_range=self.intensity_range,
            group=self.group,
            allow_group_leak=self.allow_group_leak,
        )
        return self.apply(images)

    def apply(self, images: ImageSet) -> ImageSet:
        """Return images of the source, augmented, perturbed and restricted to one split."""
        if self.part:
            return perturb_split(images, self.perturb or "none", self.part, self.seed)
        if self.augment:
            images = add_augmented_views(images, self.augment, self.views, self.seed)
        return perturb_images(images, self.perturb, self.seed) if self.perturb else images

    def load_backbone(self) -> Backbone:
        """Load the backbone; raises as ``featkit.backbones.load_backbone`` does."""
        return load_backbone(
            self.backbone,
            weights=self.weights,
            layer=self.layer,
            pool=self.pool,
            resize=self.resize,
            crop=self.crop,
        )


@cache
def _checks() -> list[tuple[str, Any, Kind]]:
    """Return name, default value and kind of each field of a request."""
    checks = []
    for each in fields(Request):
        kind = _KINDS.get(each.name, text(str(each.default or "none")))
        checks.append((each.name, each.default, kind))
    return checks


SOURCE_FIELDS = tuple(each.name for each in fields(Request) if each.metadata == _SOURCE)
"""Fields that select images of a data source."""

IMAGE_FIELDS = tuple(each.name for each in fields(Request) if each.metadata)
"""Fields that select images, augmentation and perturbation included."""

REQUEST_FIELDS = tuple(each.name for each in fields(Request) if each.name != "part")
"""Fields that a user can set."""


DEFAULT_CACHE = Path("cache")
"""Default folder of the embeddings cache."""

log = logging.getLogger(__name__)

NO_EARLIER = "the default, since no cache file matches; use --data for other images"
"""Reason for the default images where none were named."""


def resolve(given: Mapping[str, Any], cache: Path) -> tuple[Request, Path | None]:
    """Fill in options that were not given from the newest matching cache file.

    Args:
        given: fields of ``Request``; None for those that were not given.
        cache: folder of the cache files.

    Returns:
        The request, and the file that it was filled in from: None if nothing was missing or no file
            matches.

    Raises:
        CacheError: if neither images nor the folder exist, unless it is the default folder.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if {"data", "backbone"} <= chosen.keys():
        return Request(**chosen), None
    if "data" not in chosen and cache != DEFAULT_CACHE and not cache.is_dir():
        raise CacheError(
            f"cache folder {cache} does not exist, and without --data the images are those of "
            "the newest file in it: correct --cache, or give --data"
        )
    earlier = _earlier_requests(cache, chosen.get("perturb"))
    for request, path in earlier:
        if _agrees(request, chosen):
            return replace(request, **chosen), path
    if earlier and "data" not in chosen:
        request, path = earlier[0]
        return replace(request.images_only, **chosen), path
    return Request(**chosen), None


_FREE = ("seed", "perturb", "decode")


def _agrees(request: Request, chosen: Mapping[str, Any]) -> bool:
    """Return whether a request has the chosen values; those of ``_FREE`` may differ."""
    for name, value in chosen.items():
        if name not in _FREE and getattr(request, name) != _absolute(name, value):
            return False
    return True


def _earlier_requests(cache: Path, perturb: str | None) -> list[tuple[Request, Path]]:
    """Return the requests of cache files of whole image sets, newest first.

    Perturbed images of one split lie in a file of their own, beside that of all images. Such a
    file is never chosen: its images are not those to fit on.

    Args:
        cache: folder of the cache files.
        perturb: perturbation of the files that may be chosen besides unperturbed ones, or None.
    """
    found = []
    good, bad = entries(cache)
    for error in bad:
        log.warning("%s; it is not used", error)
    for entry in good:
        request = Request.from_dict(entry.provenance["request"])
        # Perturbed images are never used unless the user asks for them.
        if request.data and not request.part and request.perturb in (None, perturb):
            found.append((request, entry.path))
    return found


def _keras_precision(backbone: str, precision: str) -> str:
    """Return the precision of a network in Keras, which runs in float32.

    Raises:
        SpecError: if the precision is bfloat16 or unknown.
    """
    precision = "fp32" if precision == "auto" else resolve_precision(precision)
    if precision == "bf16":
        raise SpecError(f"{backbone} runs in float32 or int8: use --precision fp32")
    return precision


def _absolute(name: str, value: Any) -> Any:
    """Return the value of a field; a path in it becomes absolute."""
    if not value:
        return value
    if name == "data" and is_archive_spec(value):
        return absolute_spec(value)
    if name == "data" and is_url(value):
        return value
    if name == "weights":
        file, key = split_key(value)
        if key:
            return f"{user_path(file).resolve()}:{key}"
    if name == "backbone" and value.startswith(KERAS) and is_path(value):
        return f"{KERAS}{user_path(saved_path(value)).resolve()}"
    is_file = (
        # As in ``load_images``, names of data sources take precedence over paths.
        (name == "data" and value.partition(":")[0] not in SOURCES.names())
        or (name == "weights" and Path(value).suffix in SUFFIXES)
        or (name == "backbone" and is_path(value))
    )
    return str(user_path(value).resolve()) if is_file else value
