"""Extract the output of any layer of a network."""

from __future__ import annotations

import difflib
from typing import TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torchvision.models.feature_extraction import NodePathTracer

from featkit.errors import SpecError
from featkit.registry import unknown

N = TypeVar("N", bound=nn.Module)


def freeze(network: N) -> N:
    """Put a network into eval mode and turn its gradients off; return it."""
    return network.eval().requires_grad_(False)


def pool_map(features: Tensor, pool: str) -> Tensor:
    """Pool feature maps ``(b, c, h, w)``; two-dimensional features are returned unchanged.

    Returns:
        ``(b, c)`` for ``avg`` and ``max``, ``(b, 2 c)`` for ``catavgmax``, ``(b, c h w)`` for
        ``none``.
    """
    if features.ndim == 2:
        return features
    if pool == "none":
        return features.flatten(1)
    if pool == "catavgmax":
        return torch.cat([pool_map(features, "avg"), pool_map(features, "max")], dim=1)
    return features.mean((2, 3)) if pool == "avg" else features.amax((2, 3))


class FeatureExtractor(nn.Module):
    """A network up to one layer, whose output is pooled.

    Args:
        features: module that computes the output of the layer.
        layer: name of the layer, for the error message.
        pool: see ``pool_map``.
    """

    def __init__(self, features: nn.Module, layer: str, pool: str) -> None:
        super().__init__()
        self.features = features
        self.layer = layer
        self.pool = pool

    def forward(self, batch: Tensor) -> Tensor:
        """Return ``(b, d)`` for ``(b, 3, h, w)``."""
        features = self.features(batch)
        if not isinstance(features, Tensor) or features.ndim not in (2, 4):
            shape = tuple(getattr(features, "shape", ()))
            raise SpecError(
                f"output of layer {self.layer} has shape {shape}, which is neither (b, d) nor "
                "(b, c, h, w): choose another layer"
            )
        return pool_map(features, self.pool)


def extract_layer(network: nn.Module, name: str, layer: str, pool: str) -> FeatureExtractor:
    """Return the part of a network up to a layer; later layers are not computed.

    Args:
        network: in eval mode.
        name: name of the network, for error messages.
        layer: dotted name, such as ``layer3`` or ``layer3.0.relu_1``.
        pool: see ``pool_map``.

    Raises:
        SpecError: if the layer is unknown, or the network cannot be traced.
    """
    graph, layers = _trace(network, name)
    if layer not in layers:
        blocks = [block for block, _ in network.named_children() if block in layers]
        suggestions = [*blocks, *difflib.get_close_matches(layer, layers, n=5)]
        kind = f"layer of {name} (all by `featkit models --layers {name}`)"
        raise unknown(kind, layer, list(dict.fromkeys(suggestions)))
    # Not torchvision's create_feature_extractor: it also traces the network in train mode, where
    # some networks compute something else (LeViT), and a copy of its result is in train mode, so
    # that BatchNorm cannot be folded into it.
    graph.erase_node(graph.output_node())
    graph.output(layers[layer])
    features = fx.GraphModule(network, graph)
    features.graph.eliminate_dead_code()
    features.delete_all_unused_submodules()
    features.recompile()
    return freeze(FeatureExtractor(features, layer, pool))


def layer_shapes(
    network: nn.Module, name: str, size: tuple[int, int]
) -> list[tuple[str, tuple[int, ...]]]:
    """List the layers of a network in the order of computation, with their output for one image.

    Args:
        network: on the meta device, so that nothing is computed; in eval mode.
        name: name of the network, for the error message.
        size: ``(height, width)`` of the image in pixels.

    Raises:
        SpecError: if the network cannot be traced.
    """
    graph, layers = _trace(network, name)
    ShapeProp(fx.GraphModule(network, graph)).propagate(torch.empty(1, 3, *size, device="meta"))
    shapes = []
    for layer, operation in layers.items():
        output = operation.meta.get("tensor_meta")
        if isinstance(output, TensorMetadata):
            shapes.append((layer, tuple(output.shape[1:])))
    return shapes


def _trace(network: nn.Module, name: str) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """Trace a network; return its graph, and the last operation of each layer in that order.

    Layers are named as in torchvision: a module that is used several times has a number from the
    second time on (``layer1.0.relu``, ``layer1.0.relu_1``). The output of a block such as
    ``layer1.0`` is that of its last operation.

    torchvision's ``get_graph_node_names`` gives no blocks and no shapes; the shapes by
    ``create_feature_extractor`` would take quadratic time (19 s for the layers of DenseNet-121
    instead of 3 s).
    """
    tracer = NodePathTracer()
    try:
        graph = tracer.trace(network)
    except Exception as error:  # torch.fx raises many types of exception
        reason = (str(error).splitlines() or [""])[0]
        raise SpecError(f"cannot trace the layers of {name} ({reason}): remove --layer") from error
    layers: dict[str, fx.Node] = {}
    for node, path in tracer.node_to_qualname.items():
        if node.op in ("placeholder", "output"):
            continue
        parts = path.split(".")
        for depth in range(len(parts), 0, -1):
            # Moved to the end, so that a block is listed at the position of its last operation.
            block = ".".join(parts[:depth])
            layers.pop(block, None)
            layers[block] = node
    return graph, layers
