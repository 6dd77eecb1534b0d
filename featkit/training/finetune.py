"""Fine-tuning, and training from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featkit.backbones.batchnorm import has_statistics, restore_statistics
from featkit.backbones.devices import pick_device
from featkit.embeddings.pipeline import Compute
from featkit.errors import SpecError
from featkit.training.data import (
    BatchLoader,
    InputSource,
    class_balanced,
    in_order,
    make_inputs,
    shuffled,
)
from featkit.training.history import EpochRecord
from featkit.training.loop import (
    EpochLoop,
    ExecutionConfig,
    LabelLoss,
    Loss,
    TrainingLoop,
    TrainingTask,
    train,
)
from featkit.training.losses import CrossEntropy
from featkit.training.network import TrainableClassifier, make_classifier
from featkit.training.prepare import PreparedTraining

Weights = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Weights ``(k, d)`` and biases ``(k,)`` of a classifier; rows are positions in the class names."""

_STATISTICS_IMAGES = 512
"""Training images from which BatchNorm statistics are restored."""


@dataclass(frozen=True)
class TrainingResult:
    """A trained network.

    Attributes:
        prepared: what decided the weights.
        network: outputs the pooled embedding.
        coef, intercept: ``(k, d)`` and ``(k,)`` of the classifier; rows are positions in the class
            names.
        history: one record per epoch.
    """

    prepared: PreparedTraining
    network: nn.Module
    coef: NDArray[np.float32]
    intercept: NDArray[np.float32]
    history: list[EpochRecord]


def finetune(
    prepared: PreparedTraining, execution: ExecutionConfig, classifier: Weights | None = None
) -> TrainingResult:
    """Train a network on labels.

    Args:
        prepared: everything that decides the weights.
        execution: everything else.
        classifier: initial classifier; None for random weights.

    Raises:
        SpecError: if the trainable layers are unknown.
        DataError: if an image cannot be read, or a batch is too small for BatchNorm.
        TrainingError: if the loss diverges, or a checkpoint cannot be used.
        StorageError: if activations or checkpoints cannot be written.
    """
    loop_factory(prepared)  # before anything is computed for a network that cannot be trained
    model = initial_model(prepared, classifier)
    inputs = make_inputs(
        prepared, model.body, execution.compute, on_message=execution.callbacks.on_message
    )
    loss = label_loss(make_cross_entropy(prepared, execution.compute))
    return run_training(prepared, model, inputs, loss, execution)


def initial_model(
    prepared: PreparedTraining, classifier: Weights | None = None
) -> TrainableClassifier:
    """Return the network before the first step.

    Args:
        prepared: the training.
        classifier: initial classifier; None for random weights.

    Raises:
        SpecError: if the trainable layers are unknown.
    """
    backbone = prepared.backbone
    classes = len(prepared.images.classes)
    model = make_classifier(backbone, classes, prepared.config, size=backbone.preprocess.crop)
    if classifier:
        weight, bias = (torch.from_numpy(values) for values in classifier)
        model.fc.load_state_dict({"weight": weight, "bias": bias})
    return model


def run_training(
    prepared: PreparedTraining,
    model: TrainableClassifier,
    inputs: tuple[InputSource, InputSource | None],
    loss: Loss,
    execution: ExecutionConfig,
    *,
    projection: nn.Module | None = None,
) -> TrainingResult:
    """Train a network with a loss.

    Args:
        prepared: everything that decides the weights.
        model: the network, trained in place.
        inputs: of the training images, and of the validation images or None.
        loss: minimised.
        execution: device, checkpoints, callbacks, processes.
        projection: trained together with the network and discarded afterwards.
    """
    config, images, group = prepared.config, prepared.images, execution.group
    group.check_batch_size(config.batch_size)
    train_inputs, val_inputs = inputs
    _restore_batchnorm(prepared, model, train_inputs, execution)
    train_labels = images.labels[images.splits == "train"]
    val_labels = images.labels[images.splits == "val"]
    if config.balance == "resample":
        order = class_balanced(train_labels, config.seed)
    else:
        order = shuffled(len(train_labels), config.seed)
    train_loader = BatchLoader(
        train_inputs, train_labels, config.batch_size, order, group.rank, group.size
    )
    val_loader = None
    if val_inputs:
        val_order = in_order(len(val_labels))
        val_loader = BatchLoader(val_inputs, val_labels, config.batch_size, val_order)
    task = TrainingTask(
        model=model,
        train=train_loader,
        val=val_loader,
        loss=loss,
        config=config,
        fingerprint=prepared.fingerprint,
        execution=execution,
        projection=projection,
    )
    history = train(task, loop_factory(prepared))
    coef = model.fc.weight.detach().cpu().numpy()
    intercept = model.fc.bias.detach().cpu().numpy()
    return TrainingResult(prepared, model.body.network.cpu(), coef, intercept, history)


def _restore_batchnorm(
    prepared: PreparedTraining,
    model: TrainableClassifier,
    inputs: InputSource,
    execution: ExecutionConfig,
) -> None:
    """Restore BatchNorm statistics that were folded into scale and shift.

    In training mode such a BatchNorm would normalise by the batch what its scale has normalised
    already.
    """
    config = prepared.config
    folded = prepared.backbone.trained and not has_statistics(model.body.network)
    if not folded or config.frozen_norms:
        return
    execution.callbacks.on_message("restoring folded BatchNorm statistics from training images")
    count = int((prepared.images.splits == "train").sum())
    rows = np.arange(min(_STATISTICS_IMAGES, count))
    batches = np.array_split(rows, max(1, len(rows) // config.batch_size))
    trainable = [part for _, part in model.body.trainable_parts()]
    restore_statistics(model, (batch for batch, _ in inputs.batches(0, batches)), trainable)


def loop_factory(prepared: PreparedTraining) -> Callable[[TrainingTask], EpochLoop]:
    """Return the training loop of the framework of a network.

    Raises:
        SpecError: if the network is one of Keras's own.
        MissingExtraError: if the framework is not installed.
    """
    backbone = prepared.backbone
    if backbone.framework != "keras":
        return TrainingLoop
    from featkit.backbones.keras import TorchvisionModel, import_keras

    if not isinstance(backbone.build_keras, TorchvisionModel):
        raise SpecError(
            f"{backbone.name} cannot be fine-tuned: use keras:resnet50, or fit a head with "
            "`featkit fit`"
        )
    import_keras()
    from featkit.training.tensorflow import KerasLoop

    return partial(KerasLoop, architecture=backbone.build_keras.architecture)


def label_loss(criterion: CrossEntropy) -> LabelLoss:
    """Return the cross-entropy with labels as a loss of the training loop."""
    return LabelLoss(criterion)


def make_cross_entropy(prepared: PreparedTraining, compute: Compute) -> CrossEntropy:
    """Return the cross-entropy with the configured correction for class imbalance."""
    config, images = prepared.config, prepared.images
    train_labels = images.labels[images.splits == "train"]
    counts = np.bincount(train_labels, minlength=len(images.classes))
    device = pick_device(compute.device)
    weight = offset = None
    if config.balance == "reweight":
        inverse = np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0)
        values = inverse / inverse.sum() * (counts > 0).sum()
        weight = torch.tensor(values, dtype=torch.float32, device=device)
    if config.balance == "logit-adjust":
        prior = np.maximum(counts, 1) / counts.sum()
        offset = torch.tensor(np.log(prior), dtype=torch.float32, device=device)
    return CrossEntropy(weight, offset, config.smoothing)
