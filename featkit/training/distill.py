"""Knowledge distillation: train a student on labels and on the outputs of a teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from featkit.backbones.saved import torch_spec
from featkit.backbones.state_dict import seeded
from featkit.embeddings.request import Request
from featkit.errors import DataError, SpecError
from featkit.registry import unknown
from featkit.training.data import Teacher, TrainingBatch, make_inputs
from featkit.training.finetune import (
    TrainingResult,
    Weights,
    initial_model,
    label_loss,
    make_cross_entropy,
    run_training,
)
from featkit.training.loop import ExecutionConfig, Loss
from featkit.training.losses import (
    CrossEntropy,
    decoupled_loss,
    embedding_distance,
    make_projection,
    soft_target_loss,
)
from featkit.training.prepare import PreparedTraining

LOSSES = ("logits", "dkd", "features", "logits+features")
DISTANCES = ("cosine", "mse")

_MIN_PROBABILITY = 1e-12
_RANGES = {"temperature": (0.01, 1000), "alpha": (0, 1), "beta": (0, 1e6)}


@dataclass(frozen=True)
class DistillationConfig:
    """The loss of a distillation: ``(1 - alpha) * cross-entropy + alpha * distillation loss``.

    Attributes:
        loss: distillation loss: ``logits``: soft targets (Hinton et al. 2015); ``dkd``: decoupled
            (Zhao et al. 2022); ``features``: distance of the embeddings; ``logits+features``: their
            sum.
        temperature: of the softmax of student and teacher.
        alpha: distillation weight; 0 is training without a teacher, bit for bit.
        beta: of ``dkd``: weight of the non-target classes.
        distance: of embeddings: ``cosine`` or ``mse``.
    """

    loss: str = "logits"
    temperature: float = 4.0
    alpha: float = 0.5
    beta: float = 8.0
    distance: str = "cosine"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("distillation loss", self.loss, list(LOSSES))
        if self.distance not in DISTANCES:
            raise unknown("distance of embeddings", self.distance, list(DISTANCES))
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise SpecError(f"{name} {getattr(self, name):g} is not in {low:g}..{high:g}")

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """Return the names of the options, as ``from_options`` takes them."""
        return tuple(each.name for each in fields(cls))

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> DistillationConfig:
        """Build a configuration; None or missing means the default, other names are ignored.

        Raises:
            SpecError: if a value is unknown or out of range.
        """
        names = cls.option_names()
        return cls(**{name: options[name] for name in names if options.get(name) is not None})

    def to_json(self) -> str:
        """Return the configuration as canonical JSON; part of the fingerprint of a training."""
        return json.dumps(asdict(self), sort_keys=True)


class Scorer(Protocol):
    """A fitted head."""

    classes_: NDArray[Any]

    def predict_proba(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return ``(n, m)`` probabilities of ``classes_``."""


def teacher_of(
    request: Request, head: Scorer, names: tuple[str, ...], classes: tuple[str, ...]
) -> Teacher:
    """Return a teacher with outputs ``(b, k + d)``: log probabilities, then embeddings.

    Args:
        request: the network of the teacher.
        head: fitted on its embeddings; its labels are positions in ``names``.
        names: class names of the head.
        classes: class names of the student, in its order.

    Raises:
        DataError: if a class of the student is missing in the head.
    """
    known = {names[label]: column for column, label in enumerate(head.classes_)}
    missing = [name for name in classes if name not in known]
    if missing:
        raise DataError(
            f"the teacher does not know {len(missing)} classes ({', '.join(missing[:5])}): "
            "fit it on this data"
        )
    columns = [known[name] for name in classes]

    def outputs(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        # k-nearest neighbours gives probabilities of exactly zero, whose logarithm is not finite.
        probabilities = np.maximum(head.predict_proba(embeddings)[:, columns], _MIN_PROBABILITY)
        return np.column_stack([np.log(probabilities), embeddings]).astype(np.float32)

    return Teacher(request, outputs)


def distill(
    prepared: PreparedTraining,
    teacher: Teacher,
    width: int,
    distillation: DistillationConfig,
    execution: ExecutionConfig,
    *,
    classifier: Weights | None = None,
) -> TrainingResult:
    """Train a student on labels and on the outputs of a teacher.

    Args:
        prepared: the student and its images; its fingerprint covers the teacher.
        teacher: from ``teacher_of``.
        width: of the teacher's embeddings.
        distillation: the loss.
        execution: device, checkpoints, callbacks, processes.
        classifier: initial classifier of the student; None for random weights.

    Raises:
        SpecError: if mixup or CutMix is used: the teacher's outputs are those of unmixed images.
        DataError: if an image cannot be read, or a batch is too small for BatchNorm.
        TrainingError: if the loss diverges, or a checkpoint cannot be used.
        StorageError: if activations or checkpoints cannot be written.
    """
    config = prepared.config
    if prepared.backbone.framework != "torch":
        raise SpecError(
            f"distillation trains in torch: use {torch_spec(prepared.backbone.name)} instead of "
            f"{prepared.backbone.name}"
        )
    if config.mixup or config.cutmix:
        raise SpecError("teacher outputs are for unmixed images: leave out --mixup and --cutmix")
    model = initial_model(prepared, classifier)
    criterion = make_cross_entropy(prepared, execution.compute)
    on_message = execution.callbacks.on_message
    if not distillation.alpha:
        inputs = make_inputs(prepared, model.body, execution.compute, on_message=on_message)
        return run_training(prepared, model, inputs, label_loss(criterion), execution)
    projection: nn.Module = nn.Identity()
    if "features" in distillation.loss:
        with seeded(config.seed + 1):
            projection = make_projection(model.fc.in_features, width)
    inputs = make_inputs(
        prepared, model.body, execution.compute, on_message=on_message, teacher=teacher
    )
    classes = len(prepared.images.classes)
    loss = _distillation_loss(distillation, criterion, projection, classes)
    return run_training(prepared, model, inputs, loss, execution, projection=projection)


def _distillation_loss(
    distillation: DistillationConfig, criterion: CrossEntropy, projection: nn.Module, classes: int
) -> Loss:
    """Return the loss of the training loop, for teacher outputs as of ``teacher_of``."""
    parts = distillation.loss.split("+")
    alpha, temperature = distillation.alpha, distillation.temperature

    def loss(embeddings: Tensor, logits: Tensor, labels: Tensor, batch: TrainingBatch) -> Tensor:
        assert batch.teacher_outputs is not None
        outputs = batch.teacher_outputs.to(logits.device)
        teacher_logits, teacher_embeddings = outputs[:, :classes], outputs[:, classes:]
        term = logits.new_zeros(())
        if "logits" in parts:
            term = term + soft_target_loss(logits, teacher_logits, temperature)
        if "dkd" in parts:
            beta = distillation.beta
            term = term + decoupled_loss(logits, teacher_logits, labels, temperature, beta)
        if "features" in parts:
            projected = projection(embeddings)
            term = term + embedding_distance(projected, teacher_embeddings, distillation.distance)
        return (1 - alpha) * criterion(logits, labels) + alpha * term

    return loss
