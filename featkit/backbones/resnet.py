"""torchvision's ResNets. This module imports torch only when a network is built."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from featkit.backbones.base import Backbone, Preprocess
from featkit.backbones.weights import Weights, find_weights

if TYPE_CHECKING:
    from torch import nn

SIZES = {
    "resnet18": (512, 11_689_512),
    "resnet34": (512, 21_797_672),
    "resnet50": (2048, 25_557_032),
    "resnet101": (2048, 44_549_160),
    "resnet152": (2048, 60_192_808),
}
"""Width of the embedding, and number of parameters with the classifier of 1000 classes."""

DEFAULT_LAYER = "avgpool"


def _resnet(network: str, *, weights: str, layer: str | None, pool: str) -> Backbone:
    """Return one of torchvision's ResNets (He et al. 2016)."""
    found = find_weights(network, weights)
    layer = DEFAULT_LAYER if layer is None else layer
    return Backbone(
        name=network,
        weights=found.label,
        digest=found.digest,
        layer=layer,
        pool=pool,
        preprocess=Preprocess(resize=found.resize),
        build=partial(_build, network, found, layer, pool),
    )


resnet18 = partial(_resnet, "resnet18")
resnet34 = partial(_resnet, "resnet34")
resnet50 = partial(_resnet, "resnet50")
resnet101 = partial(_resnet, "resnet101")
resnet152 = partial(_resnet, "resnet152")


def _build(network: str, found: Weights, layer: str, pool: str) -> nn.Module:
    from torch import nn

    from featkit.backbones.layers import cut, frozen

    module = _load(network, found, needs_classifier=layer == "fc")
    if (layer, pool) == (DEFAULT_LAYER, "avg"):
        module.fc = nn.Identity()
        return frozen(module)
    return cut(frozen(module), network, "layer4" if layer == DEFAULT_LAYER else layer, pool)


def _load(network: str, found: Weights, *, needs_classifier: bool) -> nn.Module:
    """Return the whole network; its classifier is as wide as the file's, or untrained where nobody looks at it."""
    import torchvision

    from featkit.backbones.states import fill, read_state, seeded

    state = read_state(found.path) if found.path else {}
    weight = state.get("fc.weight") if needs_classifier else None
    classes = len(weight) if weight is not None and weight.ndim else 1000
    with seeded(found.seed):
        module: nn.Module = torchvision.models.get_model(network, weights=None, num_classes=classes)
    if found.path:
        fill(module, state, network_name=network, path=found.path, ignore=() if needs_classifier else ("fc.",))
    return module
