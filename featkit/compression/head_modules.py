"""Fitted heads as torch modules, for export.

The modules compute in float32, which every ONNX runtime supports, also on GPUs and in browsers.
They avoid what float32 cannot hold: differences of large numbers, and probabilities close to 0,
which are kept as logarithms until the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featkit.backbones.base import Preprocess
from featkit.errors import HeadError
from featkit.evaluation import Temperature
from featkit.evaluation.multilabel import SMOOTHING, LabelCalibration
from featkit.heads.balance import BalancedHead
from featkit.heads.knn import MIN_RELATIVE_DISTANCE, TIE_SHARE, TIE_SHARPNESS, KNNHead
from featkit.heads.linear import LinearHead
from featkit.heads.mlp import MLPHead
from featkit.heads.multilabel import MultiLabelHead
from featkit.heads.prototypical import PrototypicalHead
from featkit.heads.svm import SVMHead

_LOG_ZERO = -1e30
"""Logarithm of a probability of 0: finite, and below that of any smoothing."""

_TINY = float(np.finfo(np.float32).tiny)
_LARGE = 1e38


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
    steps: list[nn.Module] = [ScaledInput(head), *_layers(head)]
    if temperature:
        steps.append(_TemperatureScaling(temperature))
    # Every layer before gives the logarithms of the scores, up to a constant.
    return nn.Sequential(*steps, nn.Softmax(dim=1)).eval()


def make_labels_module(
    head: MultiLabelHead, calibrations: Sequence[LabelCalibration | None]
) -> nn.Module:
    """Return a head for several labels as a module: embeddings to calibrated probabilities.

    Args:
        head: the fitted head; its embeddings are ``(b, d)``, the probabilities ``(b, k)``.
        calibrations: of each label; None for a label whose scores stay as they are.

    Raises:
        HeadError: if this kind of head cannot be exported, such as that of a plug-in.
    """
    return nn.Sequential(_label_scores(head), _LabelCalibrations(calibrations)).eval()


def _label_scores(head: MultiLabelHead) -> nn.Module:
    """Return the module of the scores ``(b, k)`` of labels, before calibration."""
    first = head.heads_[0]
    if isinstance(first, LinearHead | MLPHead):
        return nn.Sequential(*label_logits(first), nn.Sigmoid())
    if isinstance(first, KNNHead):
        return nn.Sequential(make_scores_module(first, None), _SetShares(head.label_sets_))
    return LabelColumns([make_scores_module(each, None) for each in head.heads_])


def label_logits(head: LinearHead | MLPHead) -> list[nn.Module]:
    """Return the layers from embeddings ``(b, d)`` to the logit of each label ``(b, k)``."""
    if isinstance(head, MLPHead):
        hidden = Affine(head.hidden_coef_.T, head.hidden_intercept_)
        return [ScaledInput(head), hidden, nn.ReLU(), Affine(head.coef_.T, head.intercept_)]
    return [ScaledInput(head), Affine(head.coef_, head.intercept_)]


class LabelColumns(nn.Module):
    """Scores ``(b, k)`` of k binary heads: the second column of the scores of each."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the scores for embeddings ``(b, d)``."""
        return torch.cat([head(embeddings)[:, 1:] for head in self.heads], dim=1)


class _SetShares(nn.Module):
    """Sum of the shares ``(b, s)`` of the sets of labels that have each of k labels."""

    def __init__(self, label_sets: NDArray[np.uint8]) -> None:
        super().__init__()
        self.label_sets = _buffer(label_sets)

    def forward(self, shares: Tensor) -> Tensor:
        return (shares @ self.label_sets).clamp(max=1)


class _LabelCalibrations(nn.Module):
    """Platt scaling of each label, as in ``evaluation.multilabel.apply_calibrations``."""

    def __init__(self, calibrations: Sequence[LabelCalibration | None]) -> None:
        super().__init__()
        found = [each or LabelCalibration(1.0, 0.0) for each in calibrations]
        self.slope = _buffer([each.slope for each in found])
        self.intercept = _buffer([each.intercept for each in found])
        self.is_calibrated = nn.Buffer(torch.tensor([each is not None for each in calibrations]))

    def forward(self, scores: Tensor) -> Tensor:
        logits = (scores + SMOOTHING).log() - (1 - scores + SMOOTHING).log()
        calibrated = torch.sigmoid(self.slope * logits + self.intercept)
        return torch.where(self.is_calibrated, calibrated, scores)


def _layers(head: Any) -> list[nn.Module]:
    if isinstance(head, LinearHead | PrototypicalHead):
        return [_class_logits(head.coef_, head.intercept_)]
    if isinstance(head, MLPHead):
        hidden = Affine(head.hidden_coef_.T, head.hidden_intercept_)
        return [hidden, nn.ReLU(), _class_logits(head.coef_.T, head.intercept_)]
    if isinstance(head, SVMHead):
        return svm_layers(head)
    if isinstance(head, KNNHead):
        return [_Neighbours(head)]
    raise HeadError(
        f"{type(head).__name__} cannot be exported: choose linear, svm, knn, mlp or prototypical"
    )


def svm_layers(head: SVMHead) -> list[nn.Module]:
    """Return the layers from scaled rows ``(b, d)`` to logits ``(b, k)`` of an SVM."""
    if hasattr(head, "coef_"):  # approximate: one machine for each class
        slope = float(head.calibration_[0])
        return [Kernel(head), _class_logits(slope * head.coef_, slope * head.intercept_)]
    return [Kernel(head), PairDecisions(head), PairLogits(head)]


class ScaledInput(nn.Module):
    """Scaling of the input as in ``heads.scaling``, and unit length for the cosine metric."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.scale = getattr(head, "scale", None)
        self.unit_length = getattr(head, "metric", None) == "cosine"
        if self.scale:
            self.centre, self.spread = _buffer(head.centre_), _buffer(head.spread_)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the scaled rows ``(b, d)``."""
        rows = embeddings
        if self.scale == "root":
            rows = rows.sign() * rows.abs().sqrt()
        if self.scale in ("root", "l2"):
            rows = _unit(rows)
        if self.scale:
            rows = (rows - self.centre) / self.spread
        return _unit(rows) if self.unit_length else rows


class Affine(nn.Module):
    """Linear layer with weights ``(k, d)`` and intercepts ``(k,)``."""

    def __init__(self, coef: Any, intercept: Any) -> None:
        super().__init__()
        self.coef, self.intercept = _buffer(coef), _buffer(intercept)

    def forward(self, rows: Tensor) -> Tensor:
        """Return ``(b, k)`` for rows ``(b, d)``."""
        return rows @ self.coef.T + self.intercept


def _class_logits(coef: Any, intercept: Any) -> Affine:
    """Return the layer of the logits; one row of ``coef`` stands for the second of two classes.

    The mean over the classes is subtracted, which the softmax ignores: smaller numbers leave more
    digits to the differences.
    """
    coef, intercept = np.asarray(coef, np.float64), np.asarray(intercept, np.float64)
    if len(coef) == 1:
        coef = np.concatenate([0 * coef, coef])
        intercept = np.concatenate([0 * intercept, intercept])
    return Affine(coef - coef.mean(axis=0), intercept - intercept.mean())


class Kernel(nn.Module):
    """Kernel values ``(b, s)`` of rows and support vectors."""

    def __init__(self, head: SVMHead) -> None:
        super().__init__()
        self.gamma = head.gamma_ if head.kernel == "rbf" else None
        vectors = np.asarray(head.support_vectors_, np.float64)
        centre = np.zeros(vectors.shape[1]) if self.gamma is None else vectors.mean(axis=0)
        self.centre, self.vectors = _buffer(centre), _buffer(vectors - centre)

    def forward(self, rows: Tensor) -> Tensor:
        """Return kernel values ``(b, s)`` for scaled rows ``(b, d)``."""
        if self.gamma is None:
            return rows @ self.vectors.T
        return torch.exp(-self.gamma * squared_distances(rows - self.centre, self.vectors))


class PairDecisions(nn.Module):
    """One-vs-one decision values ``(b, p)`` of an SVM from kernel values."""

    def __init__(self, head: SVMHead) -> None:
        super().__init__()
        self.sizes = head.n_support_.tolist()
        k = len(self.sizes)
        first, second = np.triu_indices(k, 1)
        self.coef, self.intercept = _buffer(head.dual_coef_), _buffer(head.intercept_)
        self.own = _index(first * (k - 1) + second - 1)
        self.other = _index(second * (k - 1) + first)

    def forward(self, kernel: Tensor) -> Tensor:
        """Return decision values ``(b, k (k - 1) / 2)``."""
        spans = zip(
            *(torch.split(each, self.sizes, dim=1) for each in (kernel, self.coef)), strict=True
        )
        parts = torch.cat([values @ coef.T for values, coef in spans], dim=1)
        pairs: Tensor = parts[:, self.own] + parts[:, self.other] + self.intercept
        return pairs


class PairLogits(nn.Module):
    """Logits ``(b, k)`` of an SVM from its one-vs-one decision values, as in ``heads.svm``."""

    def __init__(self, head: SVMHead) -> None:
        super().__init__()
        self.k = len(head.classes_)
        # Files of version 0.1.0 have no slope: the softmax of the one-vs-rest values.
        calibration = getattr(head, "calibration_", None)
        self.slope = None if calibration is None else float(calibration[0])
        first, second = np.triu_indices(self.k, 1)
        self.sides = _buffer(np.eye(self.k)[first] - np.eye(self.k)[second])
        self.order = _index(np.argsort(np.concatenate([first, second]), kind="stable"))

    def forward(self, pairs: Tensor) -> Tensor:
        """Return logits ``(b, k)`` for decision values ``(b, k (k - 1) / 2)``."""
        if self.k == 2:
            slope = 0.5 if self.slope is None else self.slope
            return slope * torch.cat([-pairs, pairs], dim=1)
        votes = self._one_vs_rest(pairs)
        if self.slope is None:
            return votes
        signed = torch.cat([pairs, -pairs], dim=1)[:, self.order]
        margins = signed.reshape(-1, self.k, self.k - 1).amin(dim=2)
        return self.slope * self._exchanged(margins, votes)

    def _one_vs_rest(self, pairs: Tensor) -> Tensor:
        wins = torch.where(pairs < 0, -1.0, 1.0) @ self.sides
        margins = pairs @ self.sides
        return (wins + self.k - 1) / 2 + margins / (3 * (margins.abs() + 1))

    def _exchanged(self, margins: Tensor, votes: Tensor) -> Tensor:
        """Return the margins with those of the predicted and of the highest class exchanged."""
        predicted = votes.argmax(dim=1, keepdim=True)
        highest = margins.argmax(dim=1, keepdim=True)
        columns = torch.arange(self.k)
        difference = margins.gather(1, highest) - margins.gather(1, predicted)
        is_predicted, is_highest = columns == predicted, columns == highest
        return margins + difference * (is_predicted.float() - is_highest.float())


class _Neighbours(nn.Module):
    """Logarithms ``(b, k)`` of the scores of a ``KNNHead``."""

    def __init__(self, head: KNNHead) -> None:
        super().__init__()
        self.k, self.weights, self.temperature = head.k, head.weights, head.temperature
        rows = np.asarray(head.rows_, np.float64)
        centre = rows.mean(axis=0)
        self.centre, self.rows = _buffer(centre), _buffer(rows - centre)
        self.codes = _index(head.codes_)
        self.members = _buffer(np.eye(len(head.classes_))[head.codes_])

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows - self.centre
        squares = squared_distances(rows, self.rows)
        _, places = squares.topk(self.k, dim=1, largest=False)
        # Once more without subtracting large numbers: the weight of a vote depends on the ratio of
        # distances, which may be close to zero.
        differences = self.rows[places] - rows[:, None]
        nearest = differences.square().sum(dim=2).sqrt()
        votes = (self._votes(nearest)[:, :, None] * self.members[places]).sum(dim=1)
        shares = votes / votes.sum(dim=1, keepdim=True)
        by_votes = torch.where(
            shares > 0, (shares * (1 - TIE_SHARE)).clamp(min=_TINY).log(), _LOG_ZERO
        )
        by_distance = torch.log_softmax(
            -TIE_SHARPNESS * self._relative(squares, nearest, places), dim=1
        )
        return _add_logs(by_votes, by_distance + math.log(TIE_SHARE))

    def _votes(self, nearest: Tensor) -> Tensor:
        if self.weights == "uniform":
            return torch.ones_like(nearest)
        if self.weights == "distance":
            farthest = nearest.amax(dim=1, keepdim=True).clamp(min=_TINY)
            return 1 / (nearest / farthest).clamp(min=MIN_RELATIVE_DISTANCE)
        closest = nearest.amin(dim=1, keepdim=True)
        return torch.exp((closest**2 - nearest**2) / (2 * self.temperature))

    def _relative(self, squares: Tensor, nearest: Tensor, places: Tensor) -> Tensor:
        """Return distances to the nearest row of each class ``(b, k)``, divided by their mean."""
        empty = torch.full((1, self.members.shape[1]), _LARGE).expand(squares.shape[0], -1)
        codes = self.codes.expand(squares.shape[0], -1)
        distances = empty.scatter_reduce(1, codes, squares, "amin").sqrt()
        # Those of the nearest rows are known more exactly, which matters close to zero.
        exact = torch.where(self.members[places] > 0, nearest[:, :, None], _LARGE).amin(dim=1)
        distances = torch.where(exact < _LARGE, exact, distances)
        means = distances.mean(dim=1, keepdim=True)
        return distances / torch.where(means == 0, 1.0, means)


class _TemperatureScaling(nn.Module):
    """Logits whose softmax is what ``apply_temperature`` returns, from logits of the scores."""

    def __init__(self, temperature: Temperature) -> None:
        super().__init__()
        self.value = temperature.value
        # The smoothing itself may be too small for float32.
        self.log_smoothing = math.log(temperature.smoothing)

    def forward(self, logits: Tensor) -> Tensor:
        logs = torch.log_softmax(logits, dim=1)
        smoothed = _add_logs(logs, torch.full_like(logs, self.log_smoothing))
        return (smoothed - smoothed.amax(dim=1, keepdim=True)) / self.value


def _buffer(values: Any) -> nn.Buffer:
    return nn.Buffer(torch.tensor(np.ascontiguousarray(values, np.float32)))


def _index(values: Any) -> nn.Buffer:
    return nn.Buffer(torch.tensor(np.ascontiguousarray(values, np.int64)))


def _unit(rows: Tensor) -> Tensor:
    lengths = rows.square().sum(dim=1, keepdim=True).sqrt()
    return rows / torch.where(lengths == 0, 1.0, lengths)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return ``|a - b|^2`` ``(n, m)`` of rows ``(n, d)`` and ``(m, d)``."""
    lengths = a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1)
    return (lengths - 2 * a @ b.T).clamp(min=0)


def _add_logs(a: Tensor, b: Tensor) -> Tensor:
    """Return ``log(exp(a) + exp(b))``."""
    larger = torch.maximum(a, b)
    return larger + torch.log(torch.exp(a - larger) + torch.exp(b - larger))
