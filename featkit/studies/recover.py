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
from featkit.runs.features import FeatureSet, load_features
from featkit.training.config import TrainingConfig
from featkit.training.distill import DistillationConfig, distill, teacher_of
from featkit.training.finetune import ExecutionConfig, TrainingCallbacks, Weights, finetune
from featkit.training.prepare import PreparedTraining, prepare

if TYPE_CHECKING:
    from torch import nn


def recovery(
    request: Request,
    config: TrainingConfig,
    cache: Path,
    compute: Compute,
    callbacks: TrainingCallbacks,
    *,
    distillation: DistillationConfig | None = None,
) -> tuple[PreparedTraining, Callable[[nn.Module], nn.Module]]:
    """Return what decides the training, and what trains one changed network after the other.

    The classifier begins as a linear head on the vectors of the network before it was changed, and goes on from
    network to network: one drawn at random would first teach the network to forget (Kumar et al., "Fine-tuning can
    distort pretrained features and underperform out-of-distribution", ICLR 2022).

    Args:
        request: the images, and the network before it was changed.
        config: of the training; its mode is ``full``.
        cache: folder of the cache files.
        compute: how the work is done.
        callbacks: told about progress.
        distillation: how the network before it was changed teaches, with that linear head, on fixed views of each
            image; None for labels alone, on new views in each epoch.

    Raises:
        FeatkitError: of the kind that says what cannot be had.
    """
    config = replace(config, request=request, mode="full", augment="light", val=0.0, cache=cache)
    prepared = prepare(config, compute, extra=distillation.to_json() if distillation else "")
    source = load_features(request.to_dict(), cache, compute)
    head, names = _linear_head(source), source.embeddings.classes
    classifier = _weights(head, len(prepared.images.classes))
    width = source.embeddings.x.shape[1]
    teacher = teacher_of(source.request, head, names, prepared.images.classes) if distillation else None

    def recover(module: nn.Module) -> nn.Module:
        nonlocal classifier
        backbone = replace(prepared.backbone, build=lambda: copy.deepcopy(module))
        begun, execution = replace(prepared, backbone=backbone), ExecutionConfig(compute, callbacks=callbacks)
        if distillation and teacher:
            trained = distill(begun, teacher, width, distillation, execution, classifier=classifier)
        else:
            trained = finetune(begun, execution, classifier)
        classifier = trained.coef, trained.intercept
        return trained.network

    return prepared, recover


def _linear_head(source: FeatureSet) -> LinearHead:
    train = source.embeddings.part("train")
    return LinearHead(scale="standard").fit(train.x, train.y)


def _weights(head: LinearHead, classes: int) -> Weights:
    """Return the weights of a head for all classes; one that it does not know is unlikely."""
    coef, intercept = head.to_weights()
    weight = np.zeros((classes, coef.shape[1]), np.float32)
    bias = np.full(classes, intercept.min(), np.float32)
    weight[head.classes_], bias[head.classes_] = coef, intercept
    return weight, bias
