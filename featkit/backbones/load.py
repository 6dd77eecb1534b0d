"""A backbone by name: featkit's own, timm's, and those of plug-ins. This module never imports torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from featkit.backbones.base import Backbone, Preprocess
from featkit.backbones.saved import is_path, open_saved
from featkit.backbones.saved_int8 import is_int8, open_int8
from featkit.errors import SpecError
from featkit.registry import Registry, unknown

POOLS = ("avg", "max", "catavgmax", "none")

BACKBONES: Registry[Callable[..., Backbone]] = Registry(
    "backbone",
    "featkit.backbones",
    {
        "resnet18": "featkit.backbones.resnet:resnet18",
        "resnet34": "featkit.backbones.resnet:resnet34",
        "resnet50": "featkit.backbones.resnet:resnet50",
        "resnet101": "featkit.backbones.resnet:resnet101",
        "resnet152": "featkit.backbones.resnet:resnet152",
        "timm": "featkit.backbones.timm:timm_backbone",
    },
)
"""Factories ``(*, weights: str, layer: str | None, pool: str) -> Backbone``, by name."""


def load_backbone(
    spec: str,
    *,
    weights: str = "imagenet",
    layer: str | None = None,
    pool: str = "avg",
    resize: str | None = None,
    crop: str | None = None,
) -> Backbone:
    """Return a backbone with its weights found, and its network not yet built.

    Args:
        spec: ``resnet50``, ``resnet18:residual=false``, ``timm:NAME``, the name of a plug-in, or the path of a network
            that featkit saved: a run directory of ``finetune``, ``distill``, ``prune`` or ``quantize``.
        weights: ``imagenet`` (for torchvision's networks IMAGENET1K_V1, whose features serve a linear classifier
            better than V2's), ``IMAGENET1K_V1``, ``IMAGENET1K_V2``, ``random[:seed]``, or a file.
        layer: dotted name of the layer to take, or None for the embedding after global pooling.
        pool: ``avg``, ``max``, ``catavgmax`` (average and maximum side by side: twice the width), or ``none``: the
            whole map as one long vector.
        resize: ``256`` (shorter edge) or ``224x224`` (height x width, squashed), or None for what the weights say.
        crop: ``224``, ``none`` for the whole of a squashed image, or None for what the weights say.

    Raises:
        SpecError: if a name or a value is unknown.
        WeightsError: if the weights cannot be found, read or downloaded.
        StorageError: if downloaded weights cannot be written.
        MissingExtraError: if the backbone needs a package that is not installed.
    """
    if pool not in POOLS:
        raise unknown("pool", pool, list(POOLS))
    if is_int8(spec):
        if resize is not None or crop is not None:
            raise SpecError(f"{spec} was quantized for images of one size: leave out --resize and --crop")
        return open_int8(spec, weights=weights, layer=layer, pool=pool)
    if is_path(spec):
        saved = open_saved(spec, weights=weights, layer=layer, pool=pool)
        return replace(saved, preprocess=override(saved.preprocess, resize, crop))
    backbone = BACKBONES.make(spec, weights=weights, layer=layer, pool=pool)
    if not isinstance(backbone, Backbone):
        raise SpecError(
            f"plug-in backbone {spec!r} returned {type(backbone).__name__}, not a featkit Backbone: mend it"
        )
    return replace(backbone, preprocess=override(backbone.preprocess, resize, crop))


def override(preprocess: Preprocess, resize: str | None, crop: str | None) -> Preprocess:
    """Return the preprocessing with another size, another crop, or both.

    Raises:
        SpecError: if a text is malformed, the crop is larger than the resized image, or ``none`` would leave
            images of different sizes.
    """
    if resize is not None:
        preprocess = _resized(preprocess, _parse_resize(resize))
    if crop is None:
        return preprocess
    size = preprocess.resize
    if crop == "none":
        if not isinstance(size, tuple):
            raise SpecError("crop none leaves images of different sizes: give --resize HEIGHTxWIDTH with it")
        return replace(preprocess, crop=size)
    edge, shorter = _pixels(crop, "crop", "N or none"), min(size) if isinstance(size, tuple) else size
    if edge > shorter:
        raise SpecError(f"crop {edge} is larger than the image, whose shorter edge is resized to {shorter}: lower it")
    return replace(preprocess, crop=(edge, edge))


def _resized(preprocess: Preprocess, size: int | tuple[int, int]) -> Preprocess:
    """Squash to a size and keep all of it, or shrink the crop to what a shorter edge leaves."""
    if isinstance(size, tuple):
        return replace(preprocess, resize=size, crop=size)
    height, width = preprocess.crop
    return replace(preprocess, resize=size, crop=(min(height, size), min(width, size)))


def _parse_resize(text: str) -> int | tuple[int, int]:
    edges = [_pixels(part, "resize", "N or HEIGHTxWIDTH", whole=text) for part in text.split("x", 1)]
    return (edges[0], edges[1]) if len(edges) == 2 else edges[0]


def _pixels(text: str, option: str, form: str, *, whole: str | None = None) -> int:
    if not re.fullmatch("[1-9][0-9]{0,3}", text):
        raise SpecError(f"{option} {whole or text!r} is not {form}, in pixels from 1 to 9999")
    return int(text)
