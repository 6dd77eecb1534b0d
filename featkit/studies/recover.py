"""Retrain a pruned network: all layers, as ``featkit finetune --mode full`` does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.heads.linear import LinearHead
from featkit.runs.features import load_features
from featkit.training.config import TrainingConfig
from featkit.training.distill import DistillationConfig, distill, teacher_of
from featkit.training.finetune import Weights, finetune
from featkit.training.loop import ExecutionConfig, TrainingCallbacks
from featkit.training.prepare import prepare

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class RecoveryConfig:
    """Settings of the retraining of a pruned network.

    Attributes:
        epochs: number of epochs.
        lr: peak learning rate.
        distill: whether the unpruned network is the teacher, through its outputs and embeddings of
            five fixed views of each image; otherwise the network is trained on labels only, on new
            views in each epoch.
    """

    epochs: int
    lr: float = 0.005
    distill: bool = False


@dataclass(frozen=True)
class Recovery:
    """Retrains pruned networks.

    Attributes:
        text: readable description; part of the name of the pruned network.
        trained_on: prefixes of the content digests of the images that it trains on.
        train: a network to the retrained network; weights that were pruned to zero stay zero.
    """

    text: str
    trained_on: tuple[str, ...]
    train: Callable[[nn.Module], nn.Module]


def make_recovery(
    request: Request,
    recovery: RecoveryConfig,
    cache: Path,
    compute: Compute,
    callbacks: TrainingCallbacks | None = None,
) -> Recovery:
    """Prepare the retraining of networks that are pruned from the network of ``request``.

    The classifier is initialised with a linear head on the embeddings of the unpruned network, and
    passed on from one network to the next. A randomly initialised one would distort the features
    first (Kumar et al., "Fine-tuning can distort pretrained features and underperform
    out-of-distribution", ICLR 2022).

    Args:
        request: the images, and the network before pruning.
        recovery: length, learning rate and kind of the retraining.
        cache: folder of the cache files.
        compute: how the embeddings of the unpruned network are extracted, and the device.
        callbacks: called during training.

    Raises:
        DataError: if the images are too few or unlabelled.
        SpecError: if a setting is out of range.
    """
    config = TrainingConfig(
        mode="full",
        epochs=recovery.epochs,
        lr=recovery.lr,
        seed=request.seed,
        augment="light",
        val=0.0,
        request=request,
        cache=cache,
    )
    distillation = DistillationConfig(loss="logits+features") if recovery.distill else None
    prepared = prepare(config, compute, extra=distillation.to_json() if distillation else "")
    classes = prepared.images.classes
    features = load_features(request.to_dict(), cache, compute)
    train = features.embeddings.part("train")
    head = LinearHead(scale="standard").fit(train.x, train.y)
    width = features.embeddings.x.shape[1]
    teacher = None
    if distillation:
        teacher = teacher_of(features.request, head, features.embeddings.classes, classes)
    execution = ExecutionConfig(compute, callbacks=callbacks or TrainingCallbacks())
    classifier = _classifier_weights(head, len(classes))

    def retrain(module: nn.Module) -> nn.Module:
        nonlocal classifier
        backbone = replace(prepared.backbone, build=lambda: copy.deepcopy(module))
        initial = replace(prepared, backbone=backbone)
        if distillation and teacher:
            result = distill(
                initial, teacher, width, distillation, execution, classifier=classifier
            )
        else:
            result = finetune(initial, execution, classifier)
        classifier = result.coef, result.intercept
        return result.network

    # The text is part of the digest that names the pruned network: changing it would rename
    # networks.
    distilled = ", distilled" if distillation else ""
    text = f"then {recovery.epochs} epochs at {recovery.lr:g}{distilled} ({prepared.id[:8]})"
    return Recovery(text, prepared.trained_on, retrain)


def _classifier_weights(head: LinearHead, classes: int) -> Weights:
    """Return weights ``(k, d)`` and biases ``(k,)``; unknown classes get a low bias."""
    coef, intercept = head.to_weights()
    weight = np.zeros((classes, coef.shape[1]), np.float32)
    bias = np.full(classes, intercept.min(), np.float32)
    weight[head.classes_], bias[head.classes_] = coef, intercept
    return weight, bias
