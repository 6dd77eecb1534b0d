"""torchvision's ResNets. Imports torch only when a network is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from featkit.backbones.base import Backbone, Preprocess
from featkit.backbones.weights import Weights, find_weights
from featkit.registry import Spec, Value, unknown

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

SIZES = {
    "resnet18": (512, 11_689_512),
    "resnet34": (512, 21_797_672),
    "resnet50": (2048, 25_557_032),
    "resnet101": (2048, 44_549_160),
    "resnet152": (2048, 60_192_808),
}
"""Width of the embedding, and number of parameters including the classifier of 1000 classes."""

DEFAULT_LAYER = "avgpool"

_OPTION_VALUES: dict[str, tuple[Value, ...]] = {
    "residual": (True, False),
    "norm": ("batch", "none"),
    "stem": ("imagenet", "small"),
}
"""Options of a ResNet and their values; the first value is torchvision's."""

_SMALL_STEM_PIXELS = 32
"""Edge of the images that the small stem is made for: those of CIFAR."""


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the layers of a ResNet.

    Attributes:
        network: ``resnet18``, ...
        residual: whether blocks have skip connections.
        norm: whether there are BatchNorms.
        small: whether the first convolution is 3 x 3 without stride and there is no max pooling.
        widths: number of output channels of pruned convolutions, by name.
    """

    network: str
    residual: bool = True
    norm: bool = True
    small: bool = False
    widths: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_spec(cls, spec: Spec, widths: Mapping[str, int] | None = None) -> Architecture:
        """Return the architecture of a spec."""
        return cls(
            spec.name,
            residual=bool(spec.options.get("residual", True)),
            norm=spec.options.get("norm", "batch") == "batch",
            small=spec.options.get("stem") == "small",
            widths=widths or {},
        )


def resnet_backbone(
    network: str,
    *,
    weights: str,
    layer: str | None,
    pool: str,
    residual: bool = True,
    norm: str = "batch",
    stem: str = "imagenet",
) -> Backbone:
    """Return one of torchvision's ResNets (He et al. 2016) or a variant of it.

    Args:
        network: ``resnet18``, ...
        weights: as in ``load_backbone``.
        layer: as in ``load_backbone``.
        pool: as in ``load_backbone``.
        residual: whether blocks have skip connections.
        norm: ``batch``, or ``none`` for no BatchNorm (a spec reads ``none`` as None).
        stem: ``imagenet``, or ``small``: a 3 x 3 convolution without stride and no max pooling, for
            images of 32 pixels.

    Raises:
        SpecError: if an option has an unknown value.
        WeightsError: if the weights cannot be found, read or downloaded.
    """
    options: dict[str, Value] = {
        "residual": residual,
        "norm": "none" if norm is None else norm,
        "stem": stem,
    }
    for option, value in options.items():
        if value not in _OPTION_VALUES[option]:
            known = [str(each).lower() for each in _OPTION_VALUES[option]]
            raise unknown(f"{option} of {network}", str(value), known)
    found = find_weights(network, weights)
    layer = DEFAULT_LAYER if layer is None else layer
    preprocess = Preprocess(resize=found.resize)
    if stem == "small":
        preprocess = Preprocess(
            resize=_SMALL_STEM_PIXELS, crop=(_SMALL_STEM_PIXELS, _SMALL_STEM_PIXELS)
        )
    # Default options are left out of the name, so that a network has one name and one entry in the
    # cache.
    changed = {name: value for name, value in options.items() if value != _OPTION_VALUES[name][0]}
    spec = Spec(network, options=changed)
    return Backbone(
        name=str(spec),
        weights=found.label,
        digest=found.digest,
        layer=layer,
        pool=pool,
        preprocess=preprocess,
        build=partial(_build, spec, found, layer, pool),
    )


resnet18 = partial(resnet_backbone, "resnet18")
resnet34 = partial(resnet_backbone, "resnet34")
resnet50 = partial(resnet_backbone, "resnet50")
resnet101 = partial(resnet_backbone, "resnet101")
resnet152 = partial(resnet_backbone, "resnet152")


def _build(spec: Spec, found: Weights, layer: str, pool: str) -> nn.Module:
    """Build the network with its weights; the classifier is kept only if it is the embedding."""
    from torch import nn

    from featkit.backbones.resnet_modules import make_resnet
    from featkit.backbones.state_dict import load_weights, seeded

    needs_classifier = layer == "fc"
    with seeded(found.seed):
        module = make_resnet(
            spec.name,
            classes=1000,
            residual=bool(spec.options.get("residual", True)),
            norm="norm" not in spec.options,
            small="stem" in spec.options,
        )
    if found.path:
        name, path = str(spec), found.path
        state = load_weights(module, path, network_name=name, ignore=("fc.",), key=found.key)
        if needs_classifier:
            _fill_classifier(module, spec, found, state, path)
    if not needs_classifier:
        module.fc = nn.Identity()
    return truncate(module, spec.name, layer, pool)


def _fill_classifier(
    module: nn.Module, spec: Spec, found: Weights, state: Mapping[str, Tensor], path: Path
) -> None:
    """Give a network the classifier of a state dict, which may have any number of classes."""
    from torch import nn

    from featkit.backbones.state_dict import fill, seeded

    weight = state.get("fc.weight")
    classes = len(weight) if weight is not None and weight.ndim else 1000
    with seeded(found.seed):
        module.fc = nn.Linear(SIZES[spec.name][0], classes)
    filled = module.state_dict()
    filled = {name: tensor for name, tensor in filled.items() if not name.startswith("fc.")}
    filled |= {name: tensor for name, tensor in state.items() if name.startswith("fc.")}
    fill(module, filled, network_name=str(spec), path=path, ignore=())


def truncate(module: nn.Module, network: str, layer: str, pool: str) -> nn.Module:
    """Return a ResNet up to a layer, whose output is pooled; in eval mode, without gradients.

    Raises:
        SpecError: if the layer is unknown.
    """
    from featkit.backbones.layers import extract_layer, freeze

    freeze(module)
    if (layer, pool) == (DEFAULT_LAYER, "avg"):
        return module
    return extract_layer(module, network, "layer4" if layer == DEFAULT_LAYER else layer, pool)
