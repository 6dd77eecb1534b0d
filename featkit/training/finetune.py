"""Fine-tuning and training from scratch: a request and settings to a trained network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featkit.backbones.batchnorm import has_statistics, restore_statistics
from featkit.backbones.devices import pick_device
from featkit.embeddings.pipeline import Compute
from featkit.training.distributed import ProcessGroup
from featkit.training.feeds import BatchLoader, InputSource, TrainingBatch, in_order, resampled, shuffled
from featkit.training.history import EpochRecord
from featkit.training.inputs import inputs_for
from featkit.training.loop import Loss, TrainingTask, train
from featkit.training.losses import CrossEntropy
from featkit.training.network import TrainableClassifier, make_classifier
from featkit.training.prepare import PreparedTraining

Weights = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Of a classifier of k classes: ``(k, d)`` and ``(k,)``; rows are positions in the class names."""

_SEEN = 512
"""Images from which BatchNorms that were folded get statistics."""


@dataclass(frozen=True)
class TrainingResult:
    """A trained network and what is known of its training.

    Attributes:
        prepared: what decided it.
        network: with its pooled embedding as output.
        coef, intercept: ``(k, d)`` and ``(k,)`` of the classifier; rows are positions in the class names.
        history: epoch by epoch.
    """

    prepared: PreparedTraining
    network: nn.Module
    coef: NDArray[np.float32]
    intercept: NDArray[np.float32]
    history: list[EpochRecord]


@dataclass(frozen=True)
class TrainingCallbacks:
    """Functions that are called while a network is trained.

    Attributes:
        on_step: after each step: epoch, step, mean loss and top-1 of the epoch so far.
        on_epoch: after each epoch.
        on_message: with progress messages, such as the size of the cached activations.
    """

    on_step: Callable[[int, int, float, float], None] = lambda *_: None
    on_epoch: Callable[[EpochRecord], None] = lambda _: None
    on_message: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class ExecutionConfig:
    """How a training is run; none of it decides the weights.

    Attributes:
        compute: how the part that stays as it is is run, and on which device.
        folder: where checkpoints go, or None for none.
        resume: whether to go on from the checkpoint there, if there is one.
        callbacks: told about progress.
        group: the processes that take part.
    """

    compute: Compute
    folder: Path | None = None
    resume: bool = False
    callbacks: TrainingCallbacks = field(default_factory=TrainingCallbacks)
    group: ProcessGroup = field(default_factory=ProcessGroup)


def finetune(prepared: PreparedTraining, execution: ExecutionConfig, classifier: Weights | None = None) -> TrainingResult:
    """Train a network on labels.

    Args:
        prepared: what decides the weights.
        how: everything else.
        classifier: what the classifier begins with; None for random numbers.

    Raises:
        FeatkitError: of the kind that says what cannot be had.
    """
    model = begin(prepared, classifier)
    inputs = inputs_for(prepared, model.body, execution.compute, note=execution.callbacks.on_message)
    return run(prepared, model, inputs, labelled(cross_entropy(prepared, execution.compute)), execution)


def begin(prepared: PreparedTraining, classifier: Weights | None = None) -> TrainableClassifier:
    """Return the network as it is before the first step, with what its classifier begins with, if anything.

    Raises:
        SpecError: if what is to learn is unknown.
    """
    backbone = prepared.backbone
    size = backbone.preprocess.crop
    model = make_classifier(backbone, len(prepared.images.classes), prepared.config, size=size)
    if classifier:
        names = ("weight", "bias")
        model.fc.load_state_dict({name: torch.from_numpy(value) for name, value in zip(names, classifier, strict=True)})
    return model


def run(
    prepared: PreparedTraining,
    model: TrainableClassifier,
    inputs: tuple[InputSource, InputSource | None],
    loss: Loss,
    execution: ExecutionConfig,
    *,
    extra: nn.Module | None = None,
) -> TrainingResult:
    """Train a network to make a loss small.

    Args:
        prepared: what decides the weights.
        model: the network, trained in place.
        inputs: of the train images and of those that choose the epoch.
        loss: what is made small.
        how: everything else.
        extra: what else learns and is thrown away afterwards.
    """
    config, images, group = prepared.config, prepared.images, execution.group
    group.check_batch_size(config.batch_size)
    if prepared.backbone.trained and not config.frozen_norms and not has_statistics(model.body.network):
        execution.callbacks.on_message("its BatchNorms were folded into scale and shift: they get statistics from train images")
        rows = np.arange(min(_SEEN, int((images.splits == "train").sum())))
        parts = np.array_split(rows, max(1, len(rows) // config.batch_size))
        learning = [part for _, part in model.body.learning()]
        restore_statistics(model, (batch for batch, _ in inputs[0].batches(0, parts)), learning)
    labels, judged = (images.labels[images.splits == split] for split in ("train", "val"))
    balanced = config.balance == "resample"
    order = resampled(labels, config.seed) if balanced else shuffled(len(labels), config.seed)
    share = (group.rank, group.size)
    history = train(
        TrainingTask(
            model=model,
            train=BatchLoader(inputs[0], labels, config.batch_size, order, share),
            val=BatchLoader(inputs[1], judged, config.batch_size, in_order(len(judged))) if inputs[1] else None,
            loss=loss,
            config=config,
            fingerprint=prepared.fingerprint,
            folder=execution.folder,
            extra=extra,
            device=pick_device(execution.compute.device),
            group=group,
            progress=execution.callbacks.on_step,
            finished=execution.callbacks.on_epoch,
        ),
        resume=execution.resume,
    )
    weight, bias = (tensor.detach().cpu().numpy() for tensor in (model.fc.weight, model.fc.bias))
    return TrainingResult(prepared, model.body.network.cpu(), weight, bias, history)


def labelled(criterion: CrossEntropy) -> Loss:
    """Return cross-entropy as the loop wants it."""

    def loss(features: Tensor, logits: Tensor, labels: Tensor, batch: TrainingBatch) -> Tensor:
        return criterion(logits, labels)

    return loss


def cross_entropy(prepared: PreparedTraining, compute: Compute) -> CrossEntropy:
    """Return the loss on labels, corrected for unequal classes as the configuration says."""
    config, images = prepared.config, prepared.images
    counts = np.bincount(images.labels[images.splits == "train"], minlength=len(images.classes))
    device = pick_device(compute.device)
    weight = offset = None
    if config.balance == "reweight":
        inverse = np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0)
        weight = torch.tensor(inverse / inverse.sum() * (counts > 0).sum(), dtype=torch.float32, device=device)
    if config.balance == "logit-adjust":
        prior = np.maximum(counts, 1) / counts.sum()
        offset = torch.tensor(np.log(prior), dtype=torch.float32, device=device)
    return CrossEntropy(weight, offset, config.smoothing)
