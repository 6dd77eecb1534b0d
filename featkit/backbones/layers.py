"""Any layer of a network as an embedding."""

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
    """Return the network in eval mode, without gradients."""
    return network.eval().requires_grad_(False)


def pool_map(features: Tensor, pool: str) -> Tensor:
    """Pool feature maps ``(b, c, h, w)`` to ``(b, c)``, ``(b, 2 c)`` for ``catavgmax``, or ``(b, c h w)`` for ``none``.

    Vectors pass.
    """
    if features.ndim == 2:
        return features
    if pool == "none":
        return features.flatten(1)
    if pool == "catavgmax":
        return torch.cat([pool_map(features, "avg"), pool_map(features, "max")], dim=1)
    return features.mean((2, 3)) if pool == "avg" else features.amax((2, 3))


class FeatureExtractor(nn.Module):
    """A network up to one layer, whose output is pooled."""

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
            raise SpecError(f"layer {self.layer} gives {shape}, neither vectors nor feature maps: choose another layer")
        return pool_map(features, self.pool)


def cut(network: nn.Module, name: str, layer: str, pool: str) -> nn.Module:
    """Return the part of a network up to a layer; what lies beyond is not computed.

    Raises:
        SpecError: if the layer is unknown, or the network cannot be traced.
    """
    graph, ends = _trace(network, name)
    if layer not in ends:
        blocks = [block for block, _ in network.named_children() if block in ends]
        near = difflib.get_close_matches(layer, ends, n=5)
        named = list(dict.fromkeys([*blocks, *near]))
        raise unknown(f"layer of {name} (all by `featkit models --layers {name}`)", layer, named)
    graph.erase_node(graph.output_node())
    graph.output(ends[layer])
    features = fx.GraphModule(network, graph)
    features.graph.eliminate_dead_code()
    features.delete_all_unused_submodules()
    features.recompile()
    return freeze(FeatureExtractor(features, layer, pool))


def layer_shapes(network: nn.Module, name: str, size: tuple[int, int]) -> list[tuple[str, tuple[int, ...]]]:
    """Return each layer with its output for one image of that size: no numbers are computed.

    Args:
        network: on the meta device, in eval mode.
        name: for the error.
        size: ``(height, width)`` of the image in pixels.

    Raises:
        SpecError: if the network cannot be traced.
    """
    graph, ends = _trace(network, name)
    ShapeProp(fx.GraphModule(network, graph)).propagate(torch.empty(1, 3, *size, device="meta"))
    found = {layer: end.meta.get("tensor_meta") for layer, end in ends.items()}
    return [(layer, tuple(meta.shape[1:])) for layer, meta in found.items() if isinstance(meta, TensorMetadata)]


def _trace(network: nn.Module, name: str) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """Return what a network computes, and for each layer the operation it ends in, in the order of computing.

    A block such as ``layer1.0`` ends in its last operation. A module that is used several times has a number after
    the first: ``layer1.0.relu``, ``layer1.0.relu_1``.
    """
    tracer = NodePathTracer()
    try:
        graph = tracer.trace(network)
    except Exception as error:  # torch.fx gives up on a network in many ways
        reason = (str(error).splitlines() or [""])[0]
        raise SpecError(f"{name} has no layers that can be taken ({reason}): leave --layer out") from error
    ends: dict[str, fx.Node] = {}
    for node, path in tracer.node_to_qualname.items():
        if node.op in ("placeholder", "output"):
            continue
        parts = path.split(".")
        for depth in range(len(parts), 0, -1):
            # Taken out and put back, so that a block stands where it ends.
            block = ".".join(parts[:depth])
            ends.pop(block, None)
            ends[block] = node
    return graph, ends
