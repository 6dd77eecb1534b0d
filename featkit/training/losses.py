"""Losses of training: cross-entropy, and distances to the outputs of a teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with class weights, logit offsets and label smoothing.

    Attributes:
        weight: ``(k,)`` class weights, or None.
        offset: ``(k,)`` added to the logits during training, or None: the log prior for logit
            adjustment (Menon et al. 2021, eq. 10).
        smoothing: fraction of each label that is spread over all classes.
    """

    weight: Tensor | None = None
    offset: Tensor | None = None
    smoothing: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss for logits ``(b, k)``, and labels ``(b,)`` or ``(b, k)``."""
        shifted = logits if self.offset is None else logits + self.offset
        return functional.cross_entropy(
            shifted, labels, weight=self.weight, label_smoothing=self.smoothing
        )

    def coefficients(self, labels: Tensor, classes: int) -> Tensor:
        """Return the loss as ``(b, k)`` coefficients of the negative log probabilities.

        The loss is the sum of their products. A framework other than torch computes it from them.

        Args:
            labels: ``(b,)``, or ``(b, k)``.
            classes: k.
        """
        hard = labels.ndim == 1
        targets = functional.one_hot(labels, classes).float() if hard else labels
        smoothed = targets * (1 - self.smoothing) + self.smoothing / classes
        if self.weight is None:
            return smoothed / len(labels)
        # torch averages over the weights of hard labels, but over the number of soft ones.
        total = self.weight[labels].sum() if hard else len(labels)
        return smoothed * self.weight / total


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the distillation loss of Hinton, Vinyals and Dean (2015, section 2.1).

    ``T^2 KL(softmax(teacher / T) || softmax(student / T))``, mean over the batch.

    Args:
        student: logits ``(b, k)``.
        teacher: logits ``(b, k)``, or log probabilities: these differ by a constant in each row,
            which the softmax removes.
        temperature: T.
    """
    student_log = functional.log_softmax(student / temperature, dim=1)
    teacher_log = functional.log_softmax(teacher / temperature, dim=1)
    return _kl_divergence(student_log, teacher_log) * temperature**2


def decoupled_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, beta: float
) -> Tensor:
    """Return the decoupled distillation loss of Zhao et al. (2022, eq. 7).

    ``T^2 (TCKD + beta NCKD)``, mean over the batch: the divergence of the target class against all
    others, and the divergence among the other classes.

    Args:
        student: logits ``(b, k)``, k > 1.
        teacher: logits or log probabilities ``(b, k)``.
        labels: true classes ``(b,)``.
        temperature: T.
        beta: weight of NCKD.
    """
    student_log = functional.log_softmax(student / temperature, dim=1)
    teacher_log = functional.log_softmax(teacher / temperature, dim=1)
    target = functional.one_hot(labels, student.shape[1]).bool()
    tckd = _kl_divergence(_target_or_not(student_log, target), _target_or_not(teacher_log, target))
    nckd = _kl_divergence(_among_others(student_log, target), _among_others(teacher_log, target))
    return (tckd + beta * nckd) * temperature**2


def _kl_divergence(student_log: Tensor, teacher_log: Tensor) -> Tensor:
    return functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)


def _target_or_not(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """Return log probabilities ``(b, 2)`` of the target class and of all others together."""
    others = log_probabilities.masked_fill(target, -torch.inf).logsumexp(dim=1)
    return torch.stack([log_probabilities[target], others], dim=1)


def _among_others(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """Return log probabilities ``(b, k - 1)`` of the other classes, without the target."""
    others = log_probabilities[~target].reshape(len(log_probabilities), -1)
    return others.log_softmax(dim=1)


def embedding_distance(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """Return the mean distance of embeddings: cosine distance, or squared error.

    Args:
        student: embeddings ``(b, d)``, projected if the widths differ.
        teacher: embeddings ``(b, d)``.
        kind: ``cosine`` or ``mse``.
    """
    if kind == "cosine":
        return (1 - functional.cosine_similarity(student, teacher, dim=1)).mean()
    return functional.mse_loss(student, teacher)


def make_projection(student_width: int, teacher_width: int) -> nn.Module:
    """Return a linear map from student to teacher width; the identity if they are equal."""
    if student_width == teacher_width:
        return nn.Identity()
    return nn.Linear(student_width, teacher_width)
