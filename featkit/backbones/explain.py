"""Feature maps, Grad-CAM and first-layer filters of a network, as NumPy arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featkit.backbones.base import Backbone
from featkit.errors import SpecError

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class _MapSource:
    """The output of a module that is used as feature map.

    Attributes:
        name: dotted name of the module.
        call: which call of it in one forward pass, from 0: torchvision's blocks use one ReLU twice.
    """

    name: str
    call: int


class ActivationMapper:
    """Compute the last feature maps of a network, and class activation maps from gradients.

    The feature maps are the last output ``(b, c, h, w)`` of a module with more than one position,
    before pooling: ``layer4`` of a ResNet.

    Args:
        backbone: the network; it runs in float32, also if its features were extracted in another
            precision.
        device: where it runs.

    Raises:
        SpecError: if no module has feature maps with more than one position, as for images of 32
            pixels in a ResNet.
        WeightsError: if the weights are damaged or belong to another network.
    """

    def __init__(self, backbone: Backbone, device: str = "cpu") -> None:
        self._backbone = backbone
        self._device = torch.device(device)
        self._network = backbone.build().to(self._device)
        self._modules = dict(self._network.named_modules())
        self._source = self._find_source()

    @property
    def layer(self) -> str:
        """Name of the layer whose output the maps are."""
        # A network up to a layer computes the maps in its only child, ``features``.
        return self._backbone.layer if self._source.name == "features" else self._source.name

    def maps(self, pixels: Pixels) -> tuple[Floats, Floats]:
        """Return the feature maps ``(b, c, h, w)`` and the features ``(b, d)`` of images.

        Args:
            pixels: uint8 ``(b, h, w, 3)``, resized and cropped.
        """
        maps, features = self._forward(pixels)
        return _array(maps), _array(features)

    def class_activation_maps(
        self,
        pixels: Pixels,
        score_gradients: Callable[[Floats], Floats],
        baseline: Floats | None = None,
    ) -> tuple[Floats, Floats]:
        """Return signed class activation maps ``(b, h, w)`` and the features ``(b, d)``.

        The weight of each channel is the sum over all positions of the derivative of the score with
        respect to the feature map (Grad-CAM, without its ReLU). With global average pooling this is
        the derivative with respect to the feature, and for a score that is linear in the features
        the mean of the map is the score without its bias (CAM).

        Args:
            pixels: uint8 ``(b, h, w, 3)``, resized and cropped.
            score_gradients: from features ``(b, d)`` to the derivatives ``(b, d)`` of one score per
                image with respect to its features.
            baseline: feature maps ``(c, h, w)`` that are subtracted from those of the images.

        References:
            Zhou et al., "Learning deep features for discriminative localization", CVPR 2016.
            Selvaraju et al., "Grad-CAM", ICCV 2017.
        """
        maps, features = self._forward(pixels)
        gradients = torch.from_numpy(score_gradients(_array(features))).to(features)
        (derivative,) = torch.autograd.grad(features, maps, grad_outputs=gradients)
        weights = derivative.sum(dim=(2, 3), keepdim=True)
        if baseline is not None:
            maps = maps - torch.from_numpy(baseline).to(maps)
        return _array((weights * maps).sum(dim=1)), _array(features)

    def _forward(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """Return the feature maps, a leaf of the graph, and the features computed from them."""
        calls = 0
        captured: list[Tensor] = []

        def capture(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            nonlocal calls
            calls += 1
            if calls != self._source.call + 1:
                return None
            leaf = output.detach().requires_grad_()
            captured.append(leaf)
            # A copy, since a later module may work in place, which a leaf does not permit.
            return leaf.clone()

        handle = self._modules[self._source.name].register_forward_hook(capture)
        try:
            with torch.enable_grad():
                features: Tensor = self._network(self._batch(pixels))
        finally:
            handle.remove()
        return captured[0], features

    def _batch(self, pixels: Pixels) -> Tensor:
        batch = torch.tensor(pixels, device=self._device).permute(0, 3, 1, 2).float()
        normalised: Tensor = self._backbone.preprocess.normalise(batch)
        return normalised

    def _find_source(self) -> _MapSource:
        """Run one image to find the last module output with more than one position."""
        calls: Counter[str] = Counter()
        found: list[_MapSource] = []

        def visit(name: str, output: object) -> None:
            if _is_map(output):
                found.append(_MapSource(name, calls[name]))
            calls[name] += 1

        blank = np.zeros((1, *self._backbone.preprocess.crop, 3), np.uint8)
        with _observed(self._modules, visit), torch.no_grad():
            self._network(self._batch(blank))
        if not found:
            raise SpecError(
                f"no layer of {self._backbone.name} has feature maps with more than one position "
                f"for images of {self._backbone.preprocess.crop} pixels: choose a larger --resize"
            )
        return found[-1]


def stage_maps(backbone: Backbone, pixels: Pixels) -> dict[str, Floats]:
    """Return the feature maps of one image after each stage of a network.

    Args:
        backbone: the network.
        pixels: uint8 ``(h, w, 3)``, resized and cropped.

    Returns:
        ``(c, h, w)`` by the name of the stage, in the order of computation. A stage is the last
        direct child of the network at each resolution: ``relu``, ``layer1``, ..., ``layer4``.
    """
    network = backbone.build()
    root = network
    children = dict(root.named_children())
    while len(children) == 1:  # a network up to a layer is the only child of its extractor
        root = next(iter(children.values()))
        children = dict(root.named_children())
    stages: dict[tuple[int, ...], tuple[str, Floats]] = {}

    def visit(name: str, output: object) -> None:
        if _is_map(output):
            assert isinstance(output, Tensor)
            # A copy, since a later module may work in place.
            stages[tuple(output.shape[2:])] = (name, _array(output[0].clone()))

    # Blocks of a traced network are not called as such; its last module stands for each of them.
    modules = children if not isinstance(root, torch.fx.GraphModule) else _last_modules(root)
    batch = torch.tensor(pixels[None]).permute(0, 3, 1, 2).float()
    with _observed(modules, visit), torch.no_grad():
        network(backbone.preprocess.normalise(batch))
    return dict(stages.values())


def first_layer_filters(backbone: Backbone) -> Floats:
    """Return the kernels of the first convolution, ``(n, h, w, 3)``, as they are applied to RGB.

    Raises:
        SpecError: if the first convolution does not take RGB images.
    """
    for module in backbone.build().modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != 3 or module.groups != 1:
                break
            return _array(module.weight.permute(0, 2, 3, 1))
    raise SpecError(
        f"{backbone.name} has no filters to draw: its first layer is not a convolution of RGB "
        "images"
    )


def _last_modules(root: nn.Module) -> dict[str, nn.Module]:
    """Return, by the name of each top-level block, the module of it that is called last."""
    last: dict[str, nn.Module] = {}
    modules = dict(root.named_modules())
    assert isinstance(root, torch.fx.GraphModule)
    for node in root.graph.nodes:
        if node.op == "call_module":
            target = str(node.target)
            last[target.partition(".")[0]] = modules[target]
    return last


@contextmanager
def _observed(
    modules: dict[str, nn.Module], visit: Callable[[str, object], None]
) -> Iterator[None]:
    """Call ``visit`` with name and output whenever one of the modules has run."""
    handles = []
    for name, module in modules.items():

        def hook(module: nn.Module, inputs: Any, output: object, name: str = name) -> None:
            visit(name, output)

        handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_map(output: object) -> bool:
    """Return whether an output is a feature map ``(b, c, h, w)`` with more than one position."""
    return isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().float().cpu().numpy()
    return array


def resize_maps(maps: Floats, size: Sequence[int]) -> Floats:
    """Resize maps ``(b, h, w)`` to ``(b, *size)`` by bilinear interpolation."""
    resized = nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(maps))[:, None],
        size=tuple(size),
        mode="bilinear",
        align_corners=False,
    )
    return _array(resized[:, 0])
