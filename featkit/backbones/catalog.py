"""List the available networks and their layers. Imports torch only to list layers."""

from __future__ import annotations

from featkit.backbones.keras import NETWORKS
from featkit.backbones.load import BACKBONES
from featkit.backbones.resnet import SIZES
from featkit.backbones.saved import torch_spec
from featkit.backbones.weights import FILES
from featkit.registry import Spec, unknown


def list_models() -> list[tuple[str, str, str, str]]:
    """Return name, embedding width, number of parameters and weights of each backbone, as text."""
    rows = []
    for name, (width, parameters) in SIZES.items():
        rows.append((name, str(width), f"{parameters:,}", ", ".join(FILES[name])))
    rows.append(
        ("keras:NAME", "as NAME", "as NAME", f"those of NAME, in TensorFlow: {', '.join(SIZES)}")
    )
    for name in NETWORKS:
        if name not in SIZES:
            rows.append((f"keras:{name}", "2048", "23.6 million", "imagenet, those of Keras"))
    rows.append(("timm:NAME", "see timm", "see timm", "imagenet, if timm has them"))
    for name in BACKBONES.names():
        if name not in (*SIZES, "timm", "keras"):
            rows.append((name, "see plug-in", "see plug-in", "see plug-in"))
    return rows


def list_layers(name: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return the layers of a network in the order of computation, with the shapes of their outputs.

    Shapes are those for one image, without the batch dimension. The image has 224 x 224 pixels, or
    the size that a timm network expects.

    Raises:
        SpecError: if the name is not that of a ResNet or a timm network.
        MissingExtraError: if it is a timm network and timm is not installed.
    """
    name = torch_spec(name)  # layers have the same names in Keras
    spec = Spec.parse(name)
    if name not in SIZES and not (spec.name == "timm" and spec.argument):
        raise unknown("backbone", name, [*SIZES, "timm:NAME", "keras:NAME"])
    import torch

    from featkit.backbones.layers import freeze, layer_shapes
    from featkit.backbones.resnet_modules import make_resnet
    from featkit.backbones.timm import input_size, make_network

    # On the meta device there are shapes and no numbers, so that this takes no memory and little
    # time.
    with torch.device("meta"):
        if spec.name == "timm":
            network, size = make_network(str(spec.argument)), input_size(str(spec.argument))
        else:
            network = make_resnet(name, classes=1000, residual=True, norm=True, small=False)
            size = (224, 224)
    return layer_shapes(freeze(network), name, size)
