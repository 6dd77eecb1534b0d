"""What there is to choose from. This module imports torch only when layers are listed."""

from __future__ import annotations

from featkit.backbones.load import BACKBONES
from featkit.backbones.resnet import SIZES
from featkit.backbones.weights import FILES
from featkit.registry import Spec, unknown


def list_models() -> list[tuple[str, str, str, str]]:
    """Return, for each backbone, its name, embedding width, number of parameters and named weights, as text."""
    rows = [
        (name, str(width), f"{parameters:,}", ", ".join(FILES[name])) for name, (width, parameters) in SIZES.items()
    ]
    rows.append(("timm:NAME", "of NAME", "of NAME", "imagenet, where timm has them"))
    plugins = [name for name in BACKBONES.names() if name not in (*SIZES, "timm")]
    return rows + [(name, "of the plug-in", "of the plug-in", "of the plug-in") for name in plugins]


def list_layers(name: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return the layers of a network in order, with the shape of their output (no batch) for one image.

    The image has 224 x 224 pixels, or what a timm network is made for.

    Raises:
        SpecError: if the name is not one of featkit's own networks.
        MissingExtraError: if timm is asked for and not installed.
    """
    spec = Spec.parse(name)
    if name not in SIZES and not (spec.name == "timm" and spec.argument):
        raise unknown("backbone", name, [*SIZES, "timm:NAME"])
    import torch
    import torchvision

    from featkit.backbones.layers import freeze, layer_shapes
    from featkit.backbones.timm import input_size, make_network

    with torch.device("meta"):
        if spec.name == "timm":
            network, size = make_network(str(spec.argument)), input_size(str(spec.argument))
        else:
            network, size = torchvision.models.get_model(name, weights=None), (224, 224)
    return layer_shapes(freeze(network), name, size)
