"""Fitted heads as torch modules, for export.

Fitted arrays keep their type and are used in float64: compared with the network this costs nothing,
and the probabilities are those of the head itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featkit.backbones.base import Preprocess
from featkit.errors import HeadError
from featkit.evaluation import Temperature
from featkit.heads.balance import BalancedHead
from featkit.heads.knn import KNNHead
from featkit.heads.linear import LinearHead
from featkit.heads.mlp import MLPHead
from featkit.heads.prototypical import PrototypicalHead
from featkit.heads.svm import SVMHead

_SMALLEST = 1e-9


class PixelsToScores(nn.Module):
    """A classifier: float32 pixels ``(b, 3, h, w)`` in 0..1 to probabilities ``(b, k)``."""

    def __init__(self, network: nn.Module, preprocess: Preprocess, scores: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.preprocess = preprocess
        self.scores = scores

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities, float32."""
        scores: Tensor = self.scores(self.network(self.preprocess.normalise(images * 255)))
        return scores


def make_scores_module(head: Any, temperature: Temperature | None) -> nn.Module:
    """Return a fitted head as a module: embeddings ``(b, d)`` to probabilities ``(b, k)``.

    Raises:
        HeadError: if this kind of head cannot be exported, such as that of a plug-in.
    """
    if isinstance(head, BalancedHead):
        return make_scores_module(head.head_, temperature)
    steps: list[nn.Module] = [_ScaledInput(head), *_layers(head)]
    if not isinstance(head, KNNHead):  # whose votes are probabilities already
        steps.append(nn.Softmax(dim=1))
    if temperature:
        steps += [_TemperatureScaledLog(temperature), nn.Softmax(dim=1)]
    return nn.Sequential(*steps, _Float32()).eval()


def _layers(head: Any) -> list[nn.Module]:
    if isinstance(head, LinearHead | PrototypicalHead):
        return [_Affine(head.coef_, head.intercept_)]
    if isinstance(head, MLPHead):
        hidden = _Affine(head.hidden_coef_.T, head.hidden_intercept_)
        return [hidden, nn.ReLU(), _Affine(head.coef_.T, head.intercept_)]
    if isinstance(head, SVMHead):
        return [_Kernel(head), _PairVotes(head)]
    if isinstance(head, KNNHead):
        return [_Neighbours(head)]
    raise HeadError(
        f"{type(head).__name__} cannot be exported: choose linear, svm, knn, mlp or prototypical"
    )


class _ScaledInput(nn.Module):
    """Scaling of the input as in ``heads.scaling``, and unit length for the cosine metric."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.scale = getattr(head, "scale", None)
        self.unit_length = getattr(head, "metric", None) == "cosine"
        if self.scale:
            self.centre, self.spread = _buffer(head.centre_), _buffer(head.spread_)

    def forward(self, embeddings: Tensor) -> Tensor:
        rows = embeddings.double()
        if self.scale == "root":
            rows = rows.sign() * rows.abs().sqrt()
        if self.scale in ("root", "l2"):
            rows = _unit(rows)
        if self.scale:
            rows = (rows - self.centre.double()) / self.spread.double()
        return _unit(rows) if self.unit_length else rows


class _Affine(nn.Module):
    """Weights ``(k, d)`` and intercepts ``(k,)``, or one row for the second of two classes."""

    def __init__(self, coef: Any, intercept: Any) -> None:
        super().__init__()
        if len(coef) == 1:
            coef, intercept = (
                np.concatenate([0 * coef, coef]),
                np.concatenate([0 * intercept, intercept]),
            )
        self.coef, self.intercept = _buffer(coef), _buffer(intercept)

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.coef.double().T + self.intercept.double()


class _Kernel(nn.Module):
    """Kernel values ``(b, s)`` of rows and support vectors."""

    def __init__(self, head: SVMHead) -> None:
        super().__init__()
        self.gamma = head.gamma_ if head.kernel == "rbf" else None
        self.vectors = _buffer(head.support_vectors_)

    def forward(self, rows: Tensor) -> Tensor:
        vectors = self.vectors.double()
        if self.gamma is None:
            return rows @ vectors.T
        return torch.exp(-self.gamma * _squared_distances(rows, vectors))


class _PairVotes(nn.Module):
    """One-vs-one decisions of an SVM from kernel values, as in ``SVMHead._kernel_logits``."""

    def __init__(self, head: SVMHead) -> None:
        super().__init__()
        self.sizes = head.n_support_.tolist()
        k = len(self.sizes)
        first, second = np.triu_indices(k, 1)
        self.coef, self.intercept = _buffer(head.dual_coef_), _buffer(head.intercept_)
        self.own = _buffer(first * (k - 1) + second - 1)
        self.other = _buffer(second * (k - 1) + first)
        self.sides = _buffer((np.eye(k)[first] - np.eye(k)[second]).astype(np.float32))

    def forward(self, kernel: Tensor) -> Tensor:
        spans = zip(
            *(torch.split(each, self.sizes, dim=1) for each in (kernel, self.coef)), strict=True
        )
        parts = torch.cat([values @ coef.T for values, coef in spans], dim=1)
        pairs = parts[:, self.own] + parts[:, self.other] + self.intercept
        if len(self.sizes) == 2:
            return torch.cat([torch.zeros_like(pairs), pairs], dim=1)
        sides = self.sides.double()
        wins = torch.where(pairs < 0, -1.0, 1.0).double() @ sides
        margins = pairs @ sides
        return (wins + len(self.sizes) - 1) / 2 + margins / (3 * (margins.abs() + 1))


class _Neighbours(nn.Module):
    """Fraction ``(b, k)`` of the votes of the nearest training rows for each class."""

    def __init__(self, head: KNNHead) -> None:
        super().__init__()
        self.k, self.weights, self.temperature = head.k, head.weights, head.temperature
        self.rows = _buffer(head.rows_)
        self.members = _buffer(np.eye(len(head.classes_), dtype=np.float32)[head.codes_])

    def forward(self, rows: Tensor) -> Tensor:
        distances = _squared_distances(rows, self.rows.double()).sqrt()
        nearest, places = distances.topk(self.k, dim=1, largest=False)
        votes = (self._votes(nearest)[:, :, None] * self.members[places].double()).sum(dim=1)
        return votes / votes.sum(dim=1, keepdim=True)

    def _votes(self, nearest: Tensor) -> Tensor:
        if self.weights == "uniform":
            return torch.ones_like(nearest)
        if self.weights == "distance":
            farthest = nearest[:, -1:].clamp(min=float(np.finfo(np.float32).tiny))
            return 1 / (nearest / farthest).clamp(min=_SMALLEST)
        return torch.exp((nearest[:, :1] ** 2 - nearest**2) / (2 * self.temperature))


class _TemperatureScaledLog(nn.Module):
    """Scaled log probabilities; their softmax is what ``apply_temperature`` returns."""

    def __init__(self, temperature: Temperature) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, scores: Tensor) -> Tensor:
        return torch.log(scores + self.temperature.smoothing) / self.temperature.value


class _Float32(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return scores.float()


def _buffer(values: Any) -> nn.Buffer:
    return nn.Buffer(torch.tensor(np.ascontiguousarray(values)))


def _unit(rows: Tensor) -> Tensor:
    lengths = rows.square().sum(dim=1, keepdim=True).sqrt()
    return rows / torch.where(lengths == 0, 1.0, lengths)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return ``|a - b|^2`` ``(n, m)`` of rows ``(n, d)`` and ``(m, d)``."""
    lengths = a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1)
    return (lengths - 2 * a @ b.T).clamp(min=0)
