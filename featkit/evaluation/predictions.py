"""Predictions of a classifier, one row per test image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """Predictions of a classifier on the test set, one row per image.

    Attributes:
        ids: n unique names of the test images, in any order.
        y: ``(n,)`` true classes, as numbers or names.
        predicted: ``(n,)`` predicted classes, of the same kind.
        confidence: ``(n,)`` probability of the predicted class after temperature scaling; None
            where it is unknown.
        groups: ``(n,)`` group of each image, such as its patient; None if the images count as
            independent.
        scores: ``(n,)`` terms of the metric that classifiers are compared by, whose mean is the
            metric, such as those of the mean average precision of images with several labels; None
            for top-1 accuracy: 1 for a correct prediction, else 0.
    """

    ids: Sequence[str]
    y: NDArray[Any]
    predicted: NDArray[Any]
    confidence: NDArray[np.float64] | None = None
    groups: NDArray[np.str_] | None = None
    scores: NDArray[np.float64] | None = None

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is correct, ``(n,)``."""
        correct: NDArray[np.bool_] = np.asarray(self.y) == np.asarray(self.predicted)
        return correct

    def take(self, rows: NDArray[np.int64]) -> Predictions:
        """Return the predictions at ``rows``; the mean of their ``scores`` is no metric of them."""
        return Predictions(
            [self.ids[row] for row in rows.tolist()],
            np.asarray(self.y)[rows],
            np.asarray(self.predicted)[rows],
            None if self.confidence is None else self.confidence[rows],
            None if self.groups is None else self.groups[rows],
            None if self.scores is None else self.scores[rows],
        )
