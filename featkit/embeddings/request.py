"""What a person asks for, in the words of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from featkit.backbones import load_backbone
from featkit.backbones.base import Backbone
from featkit.backbones.devices import INT8, resolve_precision
from featkit.backbones.saved import is_int8, is_path
from featkit.backbones.weights import SUFFIXES
from featkit.embeddings.store import entries
from featkit.errors import SpecError
from featkit.images import load_images
from featkit.images.augment import add_augmented_views
from featkit.images.base import ImageSet
from featkit.images.perturb import perturb_images, perturb_split
from featkit.images.sources import SOURCES

_IMAGES = ("data", "split", "limit", "seed", "augment", "views", "perturb")
"""Fields of a request that say which images."""


@dataclass(frozen=True)
class Request:
    """Which images, through which network: kept beside the vectors, so that both can be found again.

    Attributes:
        data: spec of the images: a name or a path; empty where they came from Python.
        split: ``70/15/15``-like fractions that replace the source's own splits, or None.
        limit: ``train=5000,test=1000``-like stratified part, or None.
        seed: of the split and of the limit.
        backbone: spec of the network, or the path of a saved one.
        weights: ``imagenet``, a torchvision enum name, ``random[:seed]`` or a file.
        layer: dotted layer name, or None for the network's own embedding.
        pool: ``avg``, ``max``, ``catavgmax`` or ``none``.
        resize: ``256`` or ``224x224``, or None for what the weights say.
        crop: ``224`` or ``none``, or None for what the weights say.
        precision: ``fp32``, ``bf16``, ``int8``, ``int8-openvino``, or ``auto``: bf16 where the device has it in
            hardware, else fp32.
        augment: ``basic``, ``trivial``, ``auto`` or ``rand`` for augmented views of each train image, or None.
        views: how many views, if any.
        perturb: spec such as ``gaussian_noise:level=strong`` for the test images, or None.
        part: ``test`` or ``train`` for the images of that split alone, perturbed: see ``perturb_split``; None for all.
        store: ``float32`` or ``float16``, ``gzip`` or ``zstd``, or one of each: see ``StorageLayout``.
    """

    data: str = "digits"
    split: str | None = None
    limit: str | None = None
    seed: int = 0
    backbone: str = "resnet18"
    weights: str = "imagenet"
    layer: str | None = None
    pool: str = "avg"
    resize: str | None = None
    crop: str | None = None
    precision: str = "auto"
    augment: str | None = None
    views: int = 4
    perturb: str | None = None
    part: str | None = None
    store: str = "float32"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Request:
        """Read what ``to_dict`` wrote; names that this version does not know are left out."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them; a path becomes absolute, to be found from any folder."""
        return {name: _absolute(name, value) for name, value in asdict(self).items()}

    def for_device(self, device: str) -> Request:
        """Return the request with the precision that ``auto`` means on a device, and for the network.

        Raises:
            SpecError: if the precision is unknown, or not one that the network runs in.
        """
        if is_int8(self.backbone):
            if self.precision not in ("auto", *INT8):
                raise SpecError(f"{self.backbone} is a network in eight bits: leave out --precision {self.precision}")
            return self if self.precision in INT8 else replace(self, precision="int8")
        return replace(self, precision=resolve_precision(self.precision, device))

    def load_images(self) -> ImageSet:
        """Return the images; see ``featkit.images.load_images`` for what is raised."""
        return self.apply(load_images(self.data, split=self.split, seed=self.seed, limit=self.limit))

    def apply(self, images: ImageSet) -> ImageSet:
        """Return what the request makes of its images as they are: augmented, perturbed, those of one split."""
        if self.part:
            return perturb_split(images, self.perturb or "none", self.part, self.seed)
        if self.augment:
            images = add_augmented_views(images, self.augment, self.views, self.seed)
        return perturb_images(images, self.perturb, self.seed) if self.perturb else images

    def load_backbone(self) -> Backbone:
        """Return the backbone; see ``featkit.backbones.load_backbone`` for what is raised."""
        return load_backbone(
            self.backbone,
            weights=self.weights,
            layer=self.layer,
            pool=self.pool,
            resize=self.resize,
            crop=self.crop,
        )


def resolve(given: Mapping[str, Any], cache: Path) -> tuple[Request, Path | None]:
    """Fill in what was not given from the newest cache file that agrees with what was.

    Args:
        given: fields of ``Request``; those that are None were not given.
        cache: folder of the cache files.

    Returns:
        The request, and the file that it was filled in from: None where nothing was missing or none agrees.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if {"data", "backbone"} <= chosen.keys():
        return Request(**chosen), None
    absolute = {name: _absolute(name, value) for name, value in chosen.items()}
    given_perturb = chosen.get("perturb")
    earlier = [(entry, Request.from_dict(entry.provenance["request"])) for entry in entries(cache)[0]]
    # Perturbed images are never what somebody means without saying so.
    earlier = [(entry, request) for entry, request in earlier if request.data and request.perturb == given_perturb]
    for entry, request in earlier:
        if all(asdict(request)[name] == value for name, value in absolute.items() if name != "seed"):
            return replace(request, **chosen), entry.path
    if earlier and "data" not in chosen:
        entry, request = earlier[0]
        same_images = {
            name: getattr(request, name) for name in ("data", "split", "limit", "seed", "augment", "views", "perturb")
        }
        return Request(**{**same_images, **chosen}), entry.path
    return Request(**chosen), None


def _absolute(name: str, value: Any) -> Any:
    """Return the value of a field, a path in it made absolute: names come before paths, as in ``load_images``."""
    path = name == "data" and value and value.partition(":")[0] not in SOURCES.names()
    path = path or (name == "weights" and Path(value).suffix in SUFFIXES) or (name == "backbone" and is_path(value))
    return str(Path(value).expanduser().resolve()) if path else value
