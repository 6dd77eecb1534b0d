"""Distillation: a student that learns from labels and from what a teacher says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from featkit.backbones.state_dict import seeded
from featkit.embeddings.request import Request
from featkit.errors import DataError, SpecError
from featkit.registry import unknown
from featkit.training.feeds import TrainingBatch
from featkit.training.finetune import ExecutionConfig, TrainingResult, Weights, begin, cross_entropy, labelled, run
from featkit.training.inputs import Teacher, inputs_for
from featkit.training.loop import Loss
from featkit.training.losses import CrossEntropy, decoupled, feature_distance, projection, soft_targets
from featkit.training.prepare import PreparedTraining

LOSSES = ("logits", "dkd", "features", "logits+features")
DISTANCES = ("cosine", "mse")
_LEAST = 1e-12


@dataclass(frozen=True)
class DistillationConfig:
    """How a student learns from its teacher: ``(1 - alpha) CE + alpha D``.

    Attributes:
        loss: D: ``logits``: softened outputs (Hinton et al. 2015); ``dkd``: decoupled (Zhao et al. 2022); ``features``:
            distance of the embeddings; ``logits+features``: the sum of both.
        temperature: of softened outputs.
        alpha: weight of the teacher; 0: plain training, to the bit.
        beta: of ``dkd``: weight of what the teacher says about the classes that are not true.
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
        for name, (low, high) in {"temperature": (0.01, 1000), "alpha": (0, 1), "beta": (0, 1e6)}.items():
            if not low <= getattr(self, name) <= high:
                raise SpecError(f"{name} {getattr(self, name):g} is not in {low:g}..{high:g}")

    def to_json(self) -> str:
        """Return the config as canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True)


class Scorer(Protocol):
    """A fitted head."""

    classes_: NDArray[Any]

    def predict_proba(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return ``(n, m)`` probabilities of ``classes_``."""


def teacher_of(request: Request, head: Scorer, names: tuple[str, ...], classes: tuple[str, ...]) -> Teacher:
    """Return what a network and its head say: log probabilities ``(b, k)``, then the embedding ``(b, d)``.

    Probabilities below 1e-12 count as 1e-12: neighbours, for one, give zeros.

    Args:
        request: the network.
        head: fitted on its embeddings; its labels are positions in ``names``.
        names: class names of the head.
        classes: those of the student, in its order.

    Raises:
        DataError: if the teacher does not know a class of the student.
    """
    known = {names[label]: column for column, label in enumerate(head.classes_)}
    missing = [name for name in classes if name not in known]
    if missing:
        raise DataError(
            f"the teacher does not know {len(missing)} classes ({', '.join(missing[:5])}): fit it on this data"
        )
    columns = [known[name] for name in classes]

    def answer(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = np.log(np.maximum(head.predict_proba(vectors)[:, columns], _LEAST))
        return np.column_stack([scores, vectors]).astype(np.float32)

    return Teacher(request, answer)


def distill(
    prepared: PreparedTraining,
    teacher: Teacher,
    width: int,
    distillation: DistillationConfig,
    execution: ExecutionConfig,
    *,
    classifier: Weights | None = None,
) -> TrainingResult:
    """Train a student on labels and on what its teacher says.

    Args:
        prepared: the student and its images; its fingerprint counts the teacher.
        teacher: as ``teacher_of`` gives it.
        width: of the teacher's embeddings.
        distillation: how much of what.
        how: everything else.
        classifier: what the student's classifier begins with; None for random numbers.

    Raises:
        SpecError: if images are mixed, of which the teacher has said nothing.
        FeatkitError: of the kind that says what cannot be had.
    """
    config, classes = prepared.config, len(prepared.images.classes)
    if config.mixup or config.cutmix:
        raise SpecError("the teacher has not seen mixed images: leave out --mixup and --cutmix")
    model = begin(prepared, classifier)
    criterion = cross_entropy(prepared, execution.compute)
    if not distillation.alpha:
        inputs = inputs_for(prepared, model.body, execution.compute, note=execution.callbacks.on_message)
        return run(prepared, model, inputs, labelled(criterion), execution)
    with seeded(config.seed + 1):
        extra = projection(model.fc.in_features, width) if "features" in distillation.loss else nn.Identity()
    inputs = inputs_for(prepared, model.body, execution.compute, note=execution.callbacks.on_message, teacher=teacher)
    return run(prepared, model, inputs, _loss(distillation, criterion, extra, classes), execution, extra=extra)


def _loss(distillation: DistillationConfig, criterion: CrossEntropy, extra: nn.Module, classes: int) -> Loss:
    """Return the loss: of what the teacher said, the first ``classes`` numbers are scores, the others an embedding."""
    kinds: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
        "logits": lambda _, logits, said, __: soft_targets(logits, said[:, :classes], distillation.temperature),
        "dkd": lambda _, logits, said, labels: decoupled(
            logits, said[:, :classes], labels, distillation.temperature, distillation.beta
        ),
        "features": lambda features, _, said, __: feature_distance(
            extra(features), said[:, classes:], distillation.distance
        ),
    }
    parts = [kinds[name] for name in distillation.loss.split("+")]

    def loss(features: Tensor, logits: Tensor, labels: Tensor, batch: TrainingBatch) -> Tensor:
        assert batch.teacher is not None
        said = batch.teacher.to(logits.device)
        term = sum((part(features, logits, said, labels) for part in parts), logits.new_zeros(()))
        return (1 - distillation.alpha) * criterion(logits, labels) + distillation.alpha * term

    return loss
