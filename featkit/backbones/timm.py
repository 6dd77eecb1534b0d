"""Networks of the timm library (Wightman 2019), which is an extra."""

from __future__ import annotations

import difflib
import math
from functools import partial
from typing import TYPE_CHECKING, Any

from featkit.backbones.base import Backbone, Preprocess
from featkit.backbones.weights import Weights, file_weights, random_weights
from featkit.errors import MissingExtraError, SpecError, WeightsError
from featkit.registry import unknown

if TYPE_CHECKING:
    from torch import nn

DEFAULT_LAYER = "pooled"
"""The network's own embedding: what it would give to its classifier."""


def timm_backbone(model: str, *, weights: str, layer: str | None, pool: str) -> Backbone:
    """Return a network of timm's, such as ``resnet10t`` or ``vit_small_patch16_224.augreg_in1k``.

    ``avg`` stands for the pooling that the network was trained with, whatever it is; the others are timm's own too.

    Raises:
        SpecError: if timm has no such network, or preprocesses for it in a way that featkit cannot.
        WeightsError: if its weights cannot be had.
        MissingExtraError: if timm is not installed.
    """
    preprocess = _preprocess(model)
    found = _find(model, weights)
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
    """Return a network of timm's without its classifier; random weights are drawn from the seed.

    Raises:
        SpecError: if timm has no such network, or it cannot be made with these options.
    """
    from featkit.backbones.state_dict import seeded

    _config(model)
    with seeded(seed):
        return _timm().create_model(model, num_classes=0, **options)


def input_size(model: str) -> tuple[int, int]:
    """Return the height and width in pixels of the images that a network is made for."""
    return _preprocess(model).crop


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", "timm") from error
    return timm


def _config(model: str) -> Any:
    timm = _timm()
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=8, cutoff=0.3)
        raise unknown("network of timm (the nearest are listed)", model, near)
    try:
        return timm.get_pretrained_cfg(model)
    except (RuntimeError, ValueError) as error:
        tags = timm.list_pretrained(f"{model.partition('.')[0]}.*")
        raise unknown("network of timm", model, tags) from error


def _preprocess(model: str) -> Preprocess:
    config = _timm().data.resolve_data_config(pretrained_cfg=_config(model).to_dict())
    _, height, width = config["input_size"]
    if config["crop_mode"] not in ("center", "squash") or (config["crop_mode"] == "center" and height != width):
        raise SpecError(f"timm:{model} takes {height}x{width} by {config['crop_mode']}: featkit cannot, choose another")
    edges = math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])
    return Preprocess(
        resize=edges if config["crop_mode"] == "squash" else edges[0],
        crop=(height, width),
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )


def _find(model: str, text: str) -> Weights:
    if text != "imagenet":
        return random_weights(text) or file_weights(text, f"weights of timm:{model}", ["imagenet"])
    from featkit.backbones.state_dict import digest_state

    return Weights(f"timm's own {_config(model).tag or model}", digest_state(_pretrained(model).state_dict()))


def _pretrained(model: str, **options: Any) -> Any:
    try:
        return make_network(model, pretrained=True, **options)
    except Exception as error:  # timm fetches in several ways, each with errors of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"timm's weights of {model} cannot be had ({reason}): give a file with --weights FILE, "
            "or try without training with --weights random"
        ) from error


def _build(model: str, found: Weights, layer: str, pool: str) -> nn.Module:
    from featkit.backbones.layers import extract_layer, freeze

    own_pool: dict[str, Any] = {"global_pool": pool} if layer == DEFAULT_LAYER and pool != "avg" else {}
    if own_pool:
        _check_pool(model, own_pool)
    network: nn.Module = freeze(_load(model, found, own_pool))
    if layer != DEFAULT_LAYER:
        if getattr(network, "output_fmt", "NCHW") != "NCHW":
            raise SpecError(f"timm:{model} keeps its maps in another order than featkit's: leave --layer out")
        network = extract_layer(network, f"timm:{model}", layer, pool)
    if _config(model).fixed_input_size:
        network.register_forward_pre_hook(partial(_check_size, model))
    return network


def _check_pool(model: str, options: dict[str, Any]) -> None:
    import torch

    try:
        with torch.device("meta"):
            make_network(model, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise SpecError(f"timm:{model} cannot be pooled by {options['global_pool']}: leave --pool out") from error


def _check_size(model: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
    found, needed = tuple(inputs[0].shape[2:]), input_size(model)
    if found != needed:
        raise SpecError(f"timm:{model} takes {needed} pixels, not {found}: leave --resize and --crop out")


def _load(model: str, found: Weights, options: dict[str, Any]) -> Any:
    if found.path is None and not found.digest.startswith("random:"):
        return _pretrained(model, **options)
    network = make_network(model, seed=found.seed, **options)
    if found.path:
        from featkit.backbones.state_dict import fill, read_state

        classifier = _config(model).classifier or ()
        names = (classifier,) if isinstance(classifier, str) else classifier
        fill(
            network,
            read_state(found.path),
            network_name=f"timm:{model}",
            path=found.path,
            ignore=tuple(f"{name}." for name in names),
        )
    return network
