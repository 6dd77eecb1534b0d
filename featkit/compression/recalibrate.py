"""BatchNorm recalibration: recovery of a pruned network without gradients and labels."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from featkit.backbones.layers import freeze


def recalibrate_batchnorm(module: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Return the network with the means and variances of its BatchNorms re-estimated.

    Args:
        module: a pruned network; unchanged.
        batches: normalised training images ``(b, 3, h, w)``.
    """
    recalibrated = copy.deepcopy(module)
    for part in recalibrated.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # plain mean over all batches instead of a moving average
            part.train()
    with torch.no_grad():
        for batch in batches:
            recalibrated(batch)
    return freeze(recalibrated)
