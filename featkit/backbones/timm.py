"""Networks of the timm library (Wightman 2019), which is an optional dependency."""

from __future__ import annotations

import difflib
import math
from functools import partial
from typing import TYPE_CHECKING, Any

from featkit.backbones.base import Backbone, Preprocess
from featkit.backbones.weights import Weights, file_weights, random_weights
from featkit.errors import SpecError, WeightsError
from featkit.extras import require
from featkit.registry import unknown

if TYPE_CHECKING:
    from torch import nn

DEFAULT_LAYER = "pooled"
"""The network's own embedding: the input of its classifier."""


def timm_backbone(model: str, *, weights: str, layer: str | None, pool: str) -> Backbone:
    """Return a network of timm, such as ``resnet10t`` or ``vit_small_patch16_224.augreg_in1k``.

    Args:
        model: timm's name.
        weights: ``imagenet`` for timm's pretrained weights, ``random[:seed]`` or a file.
        layer: dotted name, or None for the network's own embedding.
        pool: as in ``load_backbone``; for the network's own embedding ``avg`` means the pooling
            that the network was trained with, and the others are done by timm.

    Raises:
        SpecError: if timm has no such network, or featkit does not support its preprocessing.
        WeightsError: if its weights cannot be found, read or downloaded.
        MissingExtraError: if timm is not installed.
    """
    preprocess = _preprocess(model)
    found = _find_weights(model, weights)
    layer = DEFAULT_LAYER if layer is None else layer
    return Backbone(
        name=f"timm:{model}",
        weights=found.label,
        digest=found.digest,
        layer=layer,
        pool=pool,
        preprocess=preprocess,
        build=partial(_build, model, found, layer, pool),
    )


def make_network(model: str, *, seed: int = 0, **options: Any) -> Any:
    """Build a network of timm without its classifier; random weights are drawn from the seed.

    Raises:
        SpecError: if timm has no such network.
    """
    from featkit.backbones.state_dict import seeded

    _config(model)
    with seeded(seed):
        return _timm().create_model(model, num_classes=0, **options)


def input_size(model: str) -> tuple[int, int]:
    """Return the height and width in pixels of the images that a network expects."""
    return _preprocess(model).crop


def _timm() -> Any:
    return require("timm", "timm")


def _config(model: str) -> Any:
    """Return timm's configuration of a network and its pretrained weights."""
    timm = _timm()
    if not timm.is_model(model):
        nearest = difflib.get_close_matches(model, timm.list_models(), n=8, cutoff=0.3)
        raise unknown("network of timm (the most similar names are listed)", model, nearest)
    try:
        return timm.get_pretrained_cfg(model)
    except (RuntimeError, ValueError) as error:
        tags = timm.list_pretrained(f"{model.partition('.')[0]}.*")
        raise unknown("network of timm", model, tags) from error


def _preprocess(model: str) -> Preprocess:
    config = _timm().data.resolve_data_config(pretrained_cfg=_config(model).to_dict())
    _, height, width = config["input_size"]
    squash = config["crop_mode"] == "squash"
    square_center = config["crop_mode"] == "center" and height == width
    if not squash and not square_center:
        raise SpecError(
            f"timm:{model} expects {height}x{width} images with crop mode {config['crop_mode']}, "
            "which featkit does not support: choose another network"
        )
    # Rounded down as in timm.data.create_transform.
    edges = math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])
    return Preprocess(
        resize=edges if squash else edges[0],
        crop=(height, width),
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )


def _find_weights(model: str, text: str) -> Weights:
    if text != "imagenet":
        return random_weights(text) or file_weights(text, f"weights of timm:{model}", ["imagenet"])
    from featkit.backbones.state_dict import digest_state

    # timm does not say in which file its weights are, so the tensors are digested.
    return Weights(
        f"timm's own {_config(model).tag or model}", digest_state(_pretrained(model).state_dict())
    )


def _pretrained(model: str, **options: Any) -> Any:
    try:
        return make_network(model, pretrained=True, **options)
    except (
        Exception
    ) as error:  # timm downloads in several ways, each with its own types of exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"cannot load timm's weights of {model} ({reason})",
            fixes=[
                "connect to the network, or copy them into timm's cache",
                "give a file with --weights FILE",
                "use untrained weights with --weights random",
            ],
        ) from error


def _build(model: str, found: Weights, layer: str, pool: str) -> nn.Module:
    from featkit.backbones.layers import extract_layer, freeze

    options: dict[str, Any] = {}
    if layer == DEFAULT_LAYER and pool != "avg":
        options = {"global_pool": pool}
        _check_options(model, options)
    network: nn.Module = freeze(_load(model, found, options))
    if layer != DEFAULT_LAYER:
        if getattr(network, "output_fmt", "NCHW") != "NCHW":
            raise SpecError(
                f"feature maps of timm:{model} have memory layout {network.output_fmt}, "
                "and featkit pools NCHW: remove --layer"
            )
        network = extract_layer(network, f"timm:{model}", layer, pool)
    if _config(model).fixed_input_size:
        network.register_forward_pre_hook(partial(_check_size, model))
    return network


def _check_options(model: str, options: dict[str, Any]) -> None:
    """Raise SpecError if the network does not support a pooling, before any weights are loaded."""
    import torch

    try:
        with torch.device("meta"):
            make_network(model, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise SpecError(
            f"timm:{model} does not support pooling {options['global_pool']}: remove --pool"
        ) from error


def _check_size(model: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
    found, expected = tuple(inputs[0].shape[2:]), input_size(model)
    if found != expected:
        raise SpecError(
            f"timm:{model} expects images of {expected} pixels, not {found}: "
            "remove --resize and --crop"
        )


def _load(model: str, found: Weights, options: dict[str, Any]) -> Any:
    """Return the network with its weights."""
    is_pretrained = found.path is None and not found.digest.startswith("random:")
    if is_pretrained:
        return _pretrained(model, **options)
    network = make_network(model, seed=found.seed, **options)
    if found.path:
        from featkit.backbones.state_dict import load_weights

        classifiers = _config(model).classifier or ()
        if isinstance(classifiers, str):
            classifiers = (classifiers,)
        ignore = tuple(f"{name}." for name in classifiers)
        name = f"timm:{model}"
        load_weights(network, found.path, network_name=name, ignore=ignore, key=found.key)
    return network
