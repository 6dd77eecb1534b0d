"""Recovery of a pruned network: all of it is trained on, as `featkit finetune --mode full` does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.training.finetune import How, Watch, finetune
from featkit.training.prepare import Prepared, prepare
from featkit.training.settings import Settings
from featkit.training.wanted import Wanted

if TYPE_CHECKING:
    from torch import nn


def recovery(
    request: Request, settings: Settings, cache: Path, compute: Compute, watch: Watch
) -> tuple[Prepared, Callable[[nn.Module], nn.Module]]:
    """Return what decides the training, and what trains a changed network; its classifier is thrown away.

    Args:
        request: the images, and the network before it was changed.
        settings: of the training; its mode is ``full``.
        cache: folder of the cache files.
        compute: how the work is done.
        watch: who is told.

    Raises:
        FeatkitError: of the kind that says what cannot be had.
    """
    wanted = Wanted(request, replace(settings, mode="full"), augment="light", val=0.0, cache=cache)
    prepared = prepare(wanted, compute)

    def recover(module: nn.Module) -> nn.Module:
        backbone = replace(prepared.backbone, build=lambda: copy.deepcopy(module))
        return finetune(replace(prepared, backbone=backbone), How(compute, watch=watch)).network

    return prepared, recover
