"""Load a backbone by name or path: torchvision's, timm's, those of plug-ins, and saved networks.

torch is imported only when a network is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from featkit.arguments import SIZE, checked, one_of, text
from featkit.backbones.base import Backbone, Preprocess, QuantizedNetwork
from featkit.backbones.devices import refuse_int8
from featkit.backbones.saved import (
    INT8_CARD,
    INT8_FILE,
    KERAS,
    NetworkDescription,
    is_int8,
    is_path,
    network_file,
    read_description,
    read_int8_description,
    saved_path,
)
from featkit.backbones.weights import digest_file
from featkit.errors import SpecError
from featkit.registry import Registry, Spec, unknown
from featkit.storage import user_path

if TYPE_CHECKING:
    from torch import nn

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
        "keras": "featkit.backbones.keras:keras_backbone",
    },
)
"""Factories ``(*, weights: str, layer: str | None, pool: str) -> Backbone``, by name."""


@checked(
    spec=one_of(text("resnet18"), Path),
    weights=one_of(text("imagenet"), Path),
    layer=text("layer4"),
    pool=text("avg"),
    resize=SIZE,
    crop=SIZE,
)
def load_backbone(
    spec: str | Path,
    *,
    weights: str | Path = "imagenet",
    layer: str | None = None,
    pool: str = "avg",
    resize: str | int | None = None,
    crop: str | int | None = None,
) -> Backbone:
    """Load a backbone; its weights are located, its network is not built yet.

    Args:
        spec: ``resnet50``, ``resnet18:residual=false``, ``timm:NAME``, ``keras:resnet50``,
            ``keras:applications/resnet50``, the name of a plug-in, or the path of a saved network:
            a run directory of ``finetune``, ``distill``, ``prune`` or ``quantize``. A saved network
            runs in torch, and in Keras as ``keras:PATH``.
        weights: ``imagenet``, ``IMAGENET1K_V1``, ``IMAGENET1K_V2``, ``random[:seed]``, a file, or
            ``FILE:KEY`` for one of several state dicts in a file.
            For torchvision's networks ``imagenet`` means IMAGENET1K_V1: its features give better
            linear classifiers than those of V2.
        layer: dotted name of the layer whose output is the embedding; None for the output of global
            pooling.
        pool: ``avg``, ``max``, ``catavgmax`` (average and maximum concatenated: twice the width),
            or ``none`` (the flattened feature map).
        resize: ``256`` (shorter edge in pixels) or ``224x224`` (height x width, aspect ratio
            ignored); None for the size that belongs to the weights.
        crop: ``224``, or ``none`` to keep the whole image after ``resize="HxW"``; None for the size
            that belongs to the weights.

    Raises:
        SpecError: if a name or a value is unknown.
        WeightsError: if the weights cannot be found, read or downloaded.
        StorageError: if downloaded weights cannot be written.
        MissingExtraError: if the backbone needs a package that is not installed.
    """
    spec, weights = str(spec), str(weights)
    resize, crop = _as_text(resize), _as_text(crop)
    if pool not in POOLS:
        raise unknown("pool", pool, list(POOLS))
    if is_int8(spec):
        if spec.startswith(KERAS):
            raise SpecError(
                f"{saved_path(spec)} is an int8 network, which Keras does not run: remove {KERAS}"
            )
        if resize is not None or crop is not None:
            raise SpecError(f"{spec} was quantized for one image size: remove --resize and --crop")
        return _load_int8(spec, weights=weights, layer=layer, pool=pool)
    if is_path(spec):
        backbone = _load_saved(spec, weights=weights, layer=layer, pool=pool)
    else:
        backbone = BACKBONES.make(spec, weights=weights, layer=layer, pool=pool)
        if not isinstance(backbone, Backbone):
            raise SpecError(
                f"plug-in backbone {spec!r} returned {type(backbone).__name__}, "
                "not a featkit Backbone: fix its factory function"
            )
    reload = partial(
        load_backbone,
        spec,
        weights=weights,
        layer=layer,
        pool=pool,
        resize=resize,
        crop=crop,
    )
    preprocess = override(backbone.preprocess, resize, crop)
    return replace(backbone, preprocess=preprocess, reload=reload)


def _as_text(size: str | int | None) -> str | None:
    return None if size is None else str(size)


def _load_saved(spec: str, *, weights: str, layer: str | None, pool: str) -> Backbone:
    """Load a network that ``save_network`` wrote."""
    file = network_file(spec)
    if weights != "imagenet":
        raise SpecError(f"backbone {spec} has its own weights: remove --weights {weights}")
    description = read_description(file)
    base = load_backbone(description.base, weights="random", layer=layer, pool=pool)
    backbone = replace(
        base,
        name=description.name,
        weights=description.label,
        digest=digest_file(file),
        preprocess=description.preprocess,
        build=partial(_build_saved, file, description, base.layer, pool),
    )
    return _saved_in_keras(backbone, file, description) if spec.startswith(KERAS) else backbone


def _saved_in_keras(backbone: Backbone, file: Path, description: NetworkDescription) -> Backbone:
    """Return a saved ResNet that runs in Keras.

    Raises:
        SpecError: if it is of another kind, or its layer is the classifier.
    """
    from featkit.backbones.keras import in_keras
    from featkit.backbones.resnet import DEFAULT_LAYER, SIZES, Architecture

    base = Spec.parse(description.base)
    if base.name not in SIZES:
        raise SpecError(
            f"{file} is a network {description.base}, which cannot be converted to Keras: "
            f"remove {KERAS}"
        )
    if backbone.layer == "fc":
        raise SpecError(f"{file} has no layer fc, its classifier is the head of the run: remove it")
    whole = partial(_build_saved, file, description, DEFAULT_LAYER, "avg")
    return in_keras(backbone, whole, Architecture.from_spec(base, description.widths))


def _build_saved(file: Path, description: NetworkDescription, layer: str, pool: str) -> nn.Module:
    from featkit.backbones.resnet import truncate
    from featkit.backbones.resnet_modules import narrow
    from featkit.backbones.state_dict import fill, read_state

    module = load_backbone(description.base, weights="random").build()
    narrow(module, description.widths)
    fill(module, read_state(file), network_name=description.name, path=file, ignore=())
    return truncate(module, description.name, layer, pool)


def _load_int8(spec: str, *, weights: str, layer: str | None, pool: str) -> Backbone:
    """Load a network that ``featkit quantize`` wrote; it runs with int8 precision only."""
    description = read_int8_description(spec)
    if (
        weights != "imagenet"
        or layer not in (None, description.layer)
        or pool not in ("avg", description.pool)
    ):
        raise SpecError(
            f"{spec} was quantized with its weights, layer {description.layer} "
            f"and pool {description.pool}: remove --weights, --layer and --pool"
        )
    if not description.record:
        _refuse_unrecorded(spec)
    folder = user_path(spec).absolute()

    def build() -> nn.Module:
        raise SpecError(f"{spec} is an int8 network: use --precision int8")

    return Backbone(
        name=description.name,
        weights=description.label,
        digest=digest_file(folder / INT8_CARD),
        layer=description.layer,
        pool=description.pool,
        preprocess=description.preprocess,
        build=build,
        quantized=QuantizedNetwork(folder / INT8_FILE, description.sha256),
    )


def _refuse_unrecorded(spec: str) -> None:
    """Refuse a network that featkit 0.1 quantized, on a processor whose int8 products saturate.

    Its features in a cache may have been extracted here with wrong sums, which nothing records.
    """
    from featkit.backbones.int8 import products_saturate

    if products_saturate():
        refuse_int8(
            f"{spec} was quantized by featkit 0.1, whose int8 features are wrong on x86 processors "
            "without VNNI such as this one: quantize it again"
        )


def override(preprocess: Preprocess, resize: str | None, crop: str | None) -> Preprocess:
    """Return the preprocessing with another size, another crop, or both.

    Raises:
        SpecError: if a text is malformed, the crop is larger than the resized image, or
            ``crop="none"`` would give images of different sizes.
    """
    if resize is not None:
        preprocess = _with_resize(preprocess, _parse_resize(resize))
    if crop is None:
        return preprocess
    size = preprocess.resize
    if crop == "none":
        if not isinstance(size, tuple):
            raise SpecError(
                "crop none gives images of different sizes: use it with --resize HEIGHTxWIDTH"
            )
        return replace(preprocess, crop=size)
    edge = _parse_pixels(crop, "crop", "N or none")
    shorter = min(size) if isinstance(size, tuple) else size
    if edge > shorter:
        raise SpecError(
            f"crop {edge} is larger than the shorter edge of the resized image, {shorter}: lower it"
        )
    return replace(preprocess, crop=(edge, edge))


def _with_resize(preprocess: Preprocess, size: int | tuple[int, int]) -> Preprocess:
    if isinstance(size, tuple):
        return replace(preprocess, resize=size, crop=size)
    # A crop larger than the resized image would add a black border.
    height, width = preprocess.crop
    return replace(preprocess, resize=size, crop=(min(height, size), min(width, size)))


def _parse_resize(text: str) -> int | tuple[int, int]:
    form = "N or HEIGHTxWIDTH"
    height, x, width = text.partition("x")
    if not x:
        return _parse_pixels(text, "resize", form)
    return (
        _parse_pixels(height, "resize", form, whole=text),
        _parse_pixels(width, "resize", form, whole=text),
    )


def _parse_pixels(text: str, option: str, form: str, *, whole: str | None = None) -> int:
    if not re.fullmatch("[1-9][0-9]{0,3}", text):
        raise SpecError(f"{option} {whole or text!r} is not {form}, in pixels from 1 to 9999")
    return int(text)
