"""BatchNorm: fold it into convolutions for inference, and restore its statistics for training."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from featkit.backbones.layers import FeatureExtractor, detach_graph, freeze, trace_module


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """Fold each BatchNorm into the convolution before it; outputs change by rounding only.

    A network that torch.fx cannot trace is returned unchanged.
    """
    if isinstance(module, FeatureExtractor):
        return FeatureExtractor(fold_batchnorm(module.features), module.layer, module.pool)
    try:
        # As ``fuse`` does by itself, without keeping the modules that it makes on the way.
        copied = deepcopy(module)
        traced = fx.GraphModule(copied, trace_module(copied, fx.Tracer()))
        folded = fuse(traced, inplace=True, no_trace=True)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, fx.proxy.TraceError):
        return module
    for each in (copied, traced):  # a layer's network is traced already
        if isinstance(each, fx.GraphModule):
            detach_graph(each)
    assert isinstance(folded, fx.GraphModule)
    return freeze(detach_graph(folded))


def has_statistics(network: nn.Module) -> bool:
    """Return whether all BatchNorms have running statistics; folded ones have mean 0 everywhere."""
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    return all(part.running_mean is not None and bool(part.running_mean.any()) for part in norms)


@torch.no_grad()
def restore_statistics(
    network: nn.Module, batches: Iterable[Tensor], parts: Iterable[nn.Module] | None = None
) -> None:
    """Set running mean and variance of BatchNorms to those of their inputs, in place.

    Weight and bias are adapted, so that outputs in eval mode do not change. Networks with folded
    BatchNorms need this before training: in train mode the statistics of the batch would otherwise
    normalise activations a second time.

    Args:
        network: put into eval mode.
        batches: inputs ``(b, 3, h, w)`` as in training; a few hundred images are enough.
        parts: modules whose BatchNorms are changed; None for the whole network.
    """
    network.eval()
    norms: list[nn.BatchNorm2d] = []
    for part in parts or [network]:
        norms.extend(module for module in part.modules() if isinstance(module, nn.BatchNorm2d))
    # A norm that is in several of the parts must not be counted twice.
    statistics = [_InputStatistics(norm) for norm in dict.fromkeys(norms)]
    for batch in batches:
        network(batch.float())
    for each in statistics:
        each.apply()


class _InputStatistics:
    """Mean and variance per channel of the inputs of one BatchNorm, collected by a hook."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self._norm = norm
        self._sum = self._squares = torch.zeros(norm.num_features, dtype=torch.float64)
        self._count = 0
        self._hook = norm.register_forward_pre_hook(self._collect)

    def _collect(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        values = inputs[0].double()
        self._sum = self._sum + values.sum((0, 2, 3)).cpu()
        self._squares = self._squares + (values**2).sum((0, 2, 3)).cpu()
        self._count += values.numel() // values.shape[1]

    def apply(self) -> None:
        """Remove the hook, and set the BatchNorm's statistics, weight and bias."""
        self._hook.remove()
        norm = self._norm
        mean = self._sum / self._count
        variance = (self._squares / self._count - mean**2).clamp(min=0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # In eval mode the norm computes x * scale + shift. Both are kept; they are only expressed
        # by new statistics.
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * scale
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        norm.bias.copy_(shift + scale * mean)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
