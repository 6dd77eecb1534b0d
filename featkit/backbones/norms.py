"""BatchNorms that were folded into scale and shift: given statistics again, so that they can be trained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def has_statistics(network: nn.Module) -> bool:
    """Return whether all BatchNorms have seen images; the mean of those that were folded is 0 everywhere."""
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    return all(part.running_mean is not None and bool(part.running_mean.any()) for part in norms)


@torch.no_grad()
def restore_statistics(network: nn.Module, batches: Iterable[Tensor], parts: Iterable[nn.Module] | None = None) -> None:
    """Give BatchNorms the mean and variance of what they see, in place.

    Scale and shift change with them, so that in eval mode the network is the same function as before. Without this,
    the statistics of the first batch would normalise what the scale has normalised already.

    Args:
        network: put into eval mode.
        batches: inputs as in training; a few hundred images are enough.
        parts: of the network, whose norms are meant; None for all of it.
    """
    network.eval()
    norms = [norm for part in parts or [network] for norm in part.modules() if isinstance(norm, nn.BatchNorm2d)]
    seen = {norm: _Moments(norm) for norm in norms}
    for batch in batches:
        network(batch.float())
    for moments in seen.values():
        moments.put()


class _Moments:
    """Sums over what one BatchNorm is given."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self._norm = norm
        self._sum = self._squares = torch.zeros(norm.num_features, dtype=torch.float64)
        self._count = 0
        self._hook = norm.register_forward_pre_hook(self._see)

    def _see(self, _: nn.Module, given: tuple[Tensor]) -> None:
        values = given[0].double()
        self._sum = self._sum + values.sum((0, 2, 3)).cpu()
        self._squares = self._squares + (values**2).sum((0, 2, 3)).cpu()
        self._count += values.numel() // values.shape[1]

    def put(self) -> None:
        self._hook.remove()
        norm = self._norm
        mean = self._sum / self._count
        variance = (self._squares / self._count - mean**2).clamp(min=0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * scale
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        norm.bias.copy_(shift + scale * mean)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
