"""What training makes small: cross-entropy, and distances to a teacher's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with labels, each class weighted and offset.

    Attributes:
        weight: ``(k,)`` or None.
        offset: ``(k,)`` added to the logits in training: log prior for logit adjustment (Menon et al. 2021, eq. 10).
        smoothing: share of each label that is spread over all classes.
    """

    weight: Tensor | None = None
    offset: Tensor | None = None
    smoothing: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over ``(b, k)`` logits and labels ``(b,)``, or ``(b, k)`` where they are mixed."""
        shifted = logits if self.offset is None else logits + self.offset
        return functional.cross_entropy(shifted, labels, weight=self.weight, label_smoothing=self.smoothing)


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the divergence of softened outputs (Hinton, Vinyals and Dean 2015, section 2.1).

    ``T^2 KL(softmax(teacher / T) || softmax(student / T))``, mean over the batch.

    Args:
        student: logits ``(b, k)``.
        teacher: logits ``(b, k)``, or log probabilities, which differ from them by a number in each row.
        temperature: T.
    """
    ours = functional.log_softmax(student / temperature, dim=1)
    theirs = functional.log_softmax(teacher / temperature, dim=1)
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, beta: float) -> Tensor:
    """Return decoupled distillation (Zhao et al. 2022, eq. 7): ``TCKD + beta NCKD``, mean over the batch, times T^2.

    Args:
        student: logits ``(b, k)``, k > 1.
        teacher: logits or log probabilities ``(b, k)``.
        labels: true classes ``(b,)``.
        temperature: T.
        beta: weight of what the teacher says about the classes that are not true.
    """
    ours = functional.log_softmax(student / temperature, dim=1)
    theirs = functional.log_softmax(teacher / temperature, dim=1)
    true = functional.one_hot(labels, student.shape[1]).bool()
    target = functional.kl_div(_binary(ours, true), _binary(theirs, true), reduction="batchmean", log_target=True)
    our_rest, their_rest = (each[~true].reshape(len(each), -1).log_softmax(dim=1) for each in (ours, theirs))
    rest = functional.kl_div(our_rest, their_rest, reduction="batchmean", log_target=True)
    return (target + beta * rest) * temperature**2


def _binary(log_probabilities: Tensor, true: Tensor) -> Tensor:
    """Return the log probabilities ``(b, 2)`` of the true class and of all others together."""
    others = log_probabilities.masked_fill(true, -torch.inf).logsumexp(dim=1)
    return torch.stack([log_probabilities[true], others], dim=1)


def feature_distance(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """Return the distance of embeddings ``(b, d)``: one minus their cosine, or the mean squared difference.

    Args:
        student: embeddings ``(b, d)``, projected where the widths differ.
        teacher: embeddings ``(b, d)``.
        kind: ``cosine`` or ``mse``.
    """
    if kind == "cosine":
        return (1 - functional.cosine_similarity(student, teacher, dim=1)).mean()
    return functional.mse_loss(student, teacher)


def projection(student: int, teacher: int) -> nn.Module:
    """Return what brings student embeddings to the width of the teacher's; nothing where it is the same."""
    return nn.Identity() if student == teacher else nn.Linear(student, teacher)
