"""A differentiable score of each class of a fitted head, for class activation maps."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featkit.compression.head_modules import (
    LabelColumns,
    ScaledInput,
    label_logits,
    squared_distances,
    svm_layers,
)
from featkit.errors import HeadError
from featkit.heads.balance import BalancedHead
from featkit.heads.knn import KNNHead
from featkit.heads.linear import LinearHead
from featkit.heads.mlp import MLPHead
from featkit.heads.multilabel import MultiLabelHead
from featkit.heads.prototypical import PrototypicalHead
from featkit.heads.svm import SVMHead

_PATH_STEPS = 8
_SAMPLE = 500
"""Training rows whose distances to their neighbours give the width of the kernel density."""


class ClassScores(NamedTuple):
    """A differentiable score of each class.

    Attributes:
        module: features ``(b, d)`` to scores ``(b, k)``, one column per label of the head.
        meaning: what the score is, in a few words.
        is_surrogate: whether the score is a smooth stand-in for the decision of the head.
        is_curved: whether the derivative at an image says little about the score elsewhere, so that
            it has to be averaged on the way from an image without content.
    """

    module: nn.Module
    meaning: str
    is_surrogate: bool = False
    is_curved: bool = False

    def gradients(
        self, features: NDArray[np.float32], columns: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the derivatives ``(b, d)`` of one score per row with respect to its features.

        Args:
            features: ``(b, d)``.
            columns: ``(b,)`` column of the score of each row.
        """
        inputs = torch.from_numpy(features).requires_grad_()
        chosen = self.module(inputs).gather(1, torch.from_numpy(columns)[:, None]).sum()
        (derivative,) = torch.autograd.grad(chosen, inputs)
        # The derivative of the square root of a feature that is zero is infinite. After a ReLU such
        # a feature is zero at every position, so that it does not contribute to a map.
        finite = torch.where((inputs == 0) | ~derivative.isfinite(), 0.0, derivative)
        gradients: NDArray[np.float32] = finite.detach().numpy()
        return gradients

    def mean_gradients(
        self,
        features: NDArray[np.float32],
        columns: NDArray[np.int64],
        baseline: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Return the derivatives ``(b, d)`` averaged on the way from a baseline to each row.

        Their product with the difference of row and baseline is the difference of the scores.

        Args:
            features: ``(b, d)``.
            columns: ``(b,)`` column of the score of each row.
            baseline: ``(d,)`` features of an image without content.

        References:
            Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", ICML 2017.
        """
        total = np.zeros_like(features)
        for step in range(_PATH_STEPS):
            share = np.float32((step + 0.5) / _PATH_STEPS)
            point = baseline + share * (features - baseline)
            total += self.gradients(point.astype(np.float32), columns)
        total /= _PATH_STEPS
        return total


def make_class_scores(head: Any) -> ClassScores:
    """Return the score of a fitted head that class activation maps are derived from.

    Linear and MLP heads have their logits. The similarity to one class mean rises with everything
    that images have in common: prototypical heads have the log odds of the class against all
    others. So do SVMs, from their calibrated margins. The vote of KNN is constant almost
    everywhere: its score is the log odds of the class, from a Gaussian kernel density of the
    training features of each class, with the median squared distance to the k-th neighbour as
    width. A head for several labels per image has such a score for each label, against all images
    without it.

    Raises:
        HeadError: if this kind of head is unknown, such as that of a plug-in.
    """
    if isinstance(head, MultiLabelHead):
        return _label_scores(head)
    if isinstance(head, BalancedHead):
        return make_class_scores(head.head_)
    if isinstance(head, LinearHead):
        layers: list[nn.Module] = [_Logits(head.coef_, head.intercept_)]
        return ClassScores(_module(head, layers), "logit")
    if isinstance(head, PrototypicalHead):
        layers = [_Logits(head.coef_, head.intercept_), _LogOdds()]
        return ClassScores(_module(head, layers), "log odds", is_curved=True)
    if isinstance(head, MLPHead):
        hidden = _Logits(head.hidden_coef_.T, head.hidden_intercept_)
        layers = [hidden, nn.ReLU(), _Logits(head.coef_.T, head.intercept_)]
        return ClassScores(_module(head, layers), "logit")
    if isinstance(head, SVMHead):
        layers = [*svm_layers(head), _LogOdds()]
        return ClassScores(_module(head, layers), "log odds", is_curved=True)
    if isinstance(head, KNNHead):
        layers = [_ClassDensities(head), _LogOdds()]
        return ClassScores(
            _module(head, layers), "log odds of class densities", is_surrogate=True, is_curved=True
        )
    raise HeadError(
        f"{type(head).__name__} has no class activation maps: choose linear, svm, knn, mlp or "
        "prototypical"
    )


def _label_scores(head: MultiLabelHead) -> ClassScores:
    """Return the score of each label of a head for several labels per image."""
    first = head.heads_[0]
    if isinstance(first, LinearHead | MLPHead):
        return ClassScores(nn.Sequential(*label_logits(first)).eval(), "logit")
    if isinstance(first, KNNHead):
        layers = [_ClassDensities(first), _SetOdds(head.label_sets_)]
        return ClassScores(
            _module(first, layers),
            "log odds of label densities",
            is_surrogate=True,
            is_curved=True,
        )
    found = [make_class_scores(each) for each in head.heads_]
    module = LabelColumns([each.module for each in found]).eval()
    return found[0]._replace(module=module)


def _module(head: Any, layers: list[nn.Module]) -> nn.Module:
    return nn.Sequential(ScaledInput(head), *layers).eval()


class _Logits(nn.Module):
    """Weights ``(k, d)`` and intercepts ``(k,)``.

    A single row is the difference of two classes; each of them has half of it, with its sign.
    """

    def __init__(self, coef: Any, intercept: Any) -> None:
        super().__init__()
        coef, intercept = np.asarray(coef, np.float32), np.asarray(intercept, np.float32)
        if len(coef) == 1:
            coef = np.concatenate([-coef, coef]) / 2
            intercept = np.concatenate([-intercept, intercept]) / 2
        self.coef = nn.Buffer(torch.from_numpy(np.ascontiguousarray(coef)))
        self.intercept = nn.Buffer(torch.from_numpy(np.ascontiguousarray(intercept)))

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.coef.T + self.intercept


class _LogOdds(nn.Module):
    """Logarithm of the odds of each class from unnormalised logarithms ``(b, k)``."""

    def forward(self, logits: Tensor) -> Tensor:
        classes = logits.shape[1]
        own = torch.eye(classes, dtype=torch.bool, device=logits.device)
        others = logits[:, None, :].masked_fill(own, -math.inf)
        return logits - torch.logsumexp(others, dim=2)


class _SetOdds(nn.Module):
    """Log odds of each label ``(b, k)`` from the log densities ``(b, s)`` of sets of labels."""

    def __init__(self, label_sets: NDArray[np.uint8]) -> None:
        super().__init__()
        has = np.where(label_sets.T == 1, 0.0, -np.inf).astype(np.float32)
        lacks = np.where(label_sets.T == 0, 0.0, -np.inf).astype(np.float32)
        self.has, self.lacks = nn.Buffer(torch.from_numpy(has)), nn.Buffer(torch.from_numpy(lacks))

    def forward(self, densities: Tensor) -> Tensor:
        sets = densities[:, None, :]
        with_label = torch.logsumexp(sets + self.has, dim=2)
        return with_label - torch.logsumexp(sets + self.lacks, dim=2)


class _ClassDensities(nn.Module):
    """Logarithm of the kernel density of each class."""

    def __init__(self, head: KNNHead) -> None:
        super().__init__()
        rows = torch.tensor(np.ascontiguousarray(head.rows_, np.float32))
        self.rows = nn.Buffer(rows)
        members = np.eye(len(head.classes_), dtype=bool)[head.codes_]
        excluded = np.where(members.T, 0.0, -np.inf).astype(np.float32)
        self.excluded = nn.Buffer(torch.from_numpy(excluded))
        sample = rows[:: max(1, len(rows) // _SAMPLE)]
        neighbours = min(head.k + 1, len(rows))  # the row itself is the first of them
        nearest = squared_distances(sample, rows).topk(neighbours, largest=False).values
        self.width = max(float(nearest[:, -1].median()), float(np.finfo(np.float32).eps))

    def forward(self, rows: Tensor) -> Tensor:
        kernel = -squared_distances(rows, self.rows) / self.width
        return torch.logsumexp(kernel[:, None, :] + self.excluded, dim=2)
