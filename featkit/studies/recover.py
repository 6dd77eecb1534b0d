"""Recovery of a pruned network: all of it is trained on, as `featkit finetune --mode full` does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.heads.linear import LinearHead
from featkit.studies.source import open_source
from featkit.training.finetune import How, Watch, Weights, finetune
from featkit.training.prepare import Prepared, prepare
from featkit.training.settings import Settings
from featkit.training.wanted import Wanted

if TYPE_CHECKING:
    from torch import nn


def recovery(
    request: Request, settings: Settings, cache: Path, compute: Compute, watch: Watch
) -> tuple[Prepared, Callable[[nn.Module], nn.Module]]:
    """Return what decides the training, and what trains one changed network after the other.

    The classifier begins as a linear head on the vectors of the network before it was changed, and goes on from
    network to network: one drawn at random would first teach the network to forget (Kumar et al., "Fine-tuning can
    distort pretrained features and underperform out-of-distribution", ICLR 2022).

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
    classifier = _linear_head(request, len(prepared.images.classes), cache, compute)

    def recover(module: nn.Module) -> nn.Module:
        nonlocal classifier
        backbone = replace(prepared.backbone, build=lambda: copy.deepcopy(module))
        trained = finetune(replace(prepared, backbone=backbone), How(compute, watch=watch), classifier)
        classifier = trained.coef, trained.intercept
        return trained.network

    return prepared, recover


def _linear_head(request: Request, classes: int, cache: Path, compute: Compute) -> Weights:
    """Return the weights of a linear head on the vectors of the train images; a class that has none is unlikely."""
    train = open_source(request.to_dict(), cache, compute).embeddings.part("train")
    head = LinearHead(scale="standard").fit(train.x, train.y)
    coef, intercept = head.to_weights()
    weight = np.zeros((classes, coef.shape[1]), np.float32)
    bias = np.full(classes, intercept.min(), np.float32)
    weight[head.classes_], bias[head.classes_] = coef, intercept
    return weight, bias
