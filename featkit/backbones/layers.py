"""Extract the output of any layer of a network."""

from __future__ import annotations

import difflib
import re
import shlex
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from featkit.backbones.base import Backbone
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
        kind = f"layer of {name} (all by `featkit models --layers {shlex.quote(name)}`)"
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
    return freeze(FeatureExtractor(detach_graph(features), layer, pool))


def detach_graph(module: fx.GraphModule) -> fx.GraphModule:
    """Let a traced module be freed as soon as nothing uses it; its graph must not change any more.

    Module and graph refer to each other, so that the weights of each network that was opened would
    otherwise stay in memory until Python's garbage collector runs, which is seldom: it counts
    objects and not their size.
    """
    module.graph.owning_module = None
    return module


def trace_module(module: nn.Module, tracer: fx.Tracer) -> fx.Graph:
    """Return the graph of a module; the tracer does not keep the module alive.

    A function inside of ``Tracer.trace`` refers to itself and to the tracer.
    """
    try:
        return tracer.trace(module)
    finally:
        vars(tracer).clear()


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


@torch.no_grad()
def first_non_finite_layer(backbone: Backbone, pixels: NDArray[np.uint8]) -> str | None:
    """Return the first layer whose output has a NaN or an infinite value, None if there is none.

    The network is built again and run in float32 on the CPU. The result is None if float32 is
    finite: then a lower precision or another device is the cause.

    Args:
        backbone: the network.
        pixels: images, uint8 ``(b, h, w, 3)``, as ``backbone.preprocess`` returns them.

    Returns:
        The name of the layer as listed by ``featkit models --layers``; of a network that cannot be
        traced, the name of the module. ``pooling`` if only the pooled output is not finite.

    Raises:
        SpecError: if the network exists in int8 only.
        WeightsError: if the weights cannot be read.
    """
    network = backbone.build().to(torch.float32)
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32)
    batch = backbone.preprocess.normalise(batch)
    features = network.features if isinstance(network, FeatureExtractor) else network
    try:
        graph, layers = _trace(features, backbone.name)
    except SpecError:
        layer = _first_non_finite_module(features, batch)
    else:
        interpreter = _NonFiniteFinder(fx.GraphModule(features, graph), layers)
        interpreter.run(batch)
        layer = interpreter.found
    if layer is None and not _is_finite(network(batch)):
        return "pooling"
    return layer


class _NonFiniteFinder(fx.Interpreter):
    """Run a traced network, and remember the first operation whose output is not finite.

    Args:
        module: the network.
        layers: the last operation of each layer, from ``_trace``.
    """

    def __init__(self, module: fx.GraphModule, layers: dict[str, fx.Node]) -> None:
        super().__init__(module)
        # A block is listed with its last operation: keep the longest name, that of the operation.
        self._names: dict[str, str] = {}
        for name, node in layers.items():
            self._names[node.name] = max(name, self._names.get(node.name, ""), key=len)
        self.found: str | None = None

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        # Constants such as weights have no layer: what uses them is named.
        if self.found is None and n.name in self._names and not _is_finite(output):
            self.found = self._names[n.name]
        return output


def _first_non_finite_module(network: nn.Module, batch: Tensor) -> str | None:
    """Return the first module, in the order of computation, whose output is not finite."""
    found: list[str] = []
    handles = []
    for name, module in network.named_modules():

        def check(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            if not found and not _is_finite(output):
                found.append(name or "output")

        handles.append(module.register_forward_hook(check))
    try:
        network(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _is_finite(output: Any) -> bool:
    """Return whether all values of a tensor, or of the tensors in a tuple or list, are finite."""
    if isinstance(output, tuple | list):
        return all(_is_finite(part) for part in output)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return True
    return bool(torch.isfinite(output).all())


class LayerTracer(fx.Tracer):
    """Trace a network, and name each operation by the module that computes it, as torchvision does.

    The name of a leaf module is its path. The name of another operation is the path of its module
    and the operation, such as ``layer1.0.add``. An operation that repeats a name gets a number.

    Attributes:
        paths: name of each operation, in the order of computation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.paths: dict[fx.Node, str] = {}
        self._module = ""
        self._used: Counter[str] = Counter()

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace a module, and remember that its operations belong to it."""
        caller = self._module
        self._module = self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._module = caller

    def create_proxy(self, kind: str, *args: Any, **kwargs: Any) -> fx.Proxy:
        """Add an operation to the graph, and give it a name."""
        proxy = super().create_proxy(kind, *args, **kwargs)
        path = self._module
        if kind != "call_module":
            path = f"{path}.{proxy.node}" if path else str(proxy.node)
        # torch.fx numbers operations of the whole network; these numbers count within a module.
        path = re.sub(r"_[0-9]+$", "", path)
        number = self._used[path]
        self._used[path] += 1
        self.paths[proxy.node] = f"{path}_{number}" if number else path
        return proxy


def _trace(network: nn.Module, name: str) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """Trace a network; return its graph, and the last operation of each layer in that order.

    Layers are named as in torchvision: a module that is used several times has a number from the
    second time on (``layer1.0.relu``, ``layer1.0.relu_1``). The output of a block such as
    ``layer1.0`` is that of its last operation.

    torchvision's ``get_graph_node_names`` gives no blocks and no shapes, the shapes by
    ``create_feature_extractor`` would take quadratic time (19 s for the layers of DenseNet-121
    instead of 3 s), and importing it takes as long as importing torch.
    """
    tracer = LayerTracer()
    paths = tracer.paths
    try:
        graph = trace_module(network, tracer)
    except Exception as error:  # torch.fx raises many types of exception
        reason = (str(error).splitlines() or [""])[0]
        raise SpecError(f"cannot trace the layers of {name} ({reason}): remove --layer") from error
    layers: dict[str, fx.Node] = {}
    for node, path in paths.items():
        if node.op in ("placeholder", "output"):
            continue
        parts = path.split(".")
        for depth in range(len(parts), 0, -1):
            # Moved to the end, so that a block is listed at the position of its last operation.
            block = ".".join(parts[:depth])
            layers.pop(block, None)
            layers[block] = node
    return graph, layers
