"""A classifier that may say "unknown": which answers it gives, and what these are worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featkit.errors import DataError, SpecError
from featkit.evaluation.intervals import Interval, wilson
from featkit.evaluation.metrics import Labels, Scores


@dataclass(frozen=True)
class Rejection:
    """What becomes of test images when those of low confidence are called unknown.

    Attributes:
        share: of the images of val that were to be unknown.
        threshold: confidence below which an image is unknown.
        answered: number of test images with an answer.
        coverage: their share of all test images.
        top1: share of right answers among them, None if there are none.
        interval95: Wilson's interval of ``top1``.
    """

    share: float
    threshold: float
    answered: int
    coverage: float
    top1: float | None
    interval95: Interval | None


def rejection_threshold(scores: Scores, share: float) -> float:
    """Return the confidence below which at most ``share`` of the images lie.

    Args:
        scores: ``(n, m)`` of images on which nothing was fitted, such as those of val.
        share: 0 or more, below 1.

    Raises:
        SpecError: if the share is not in 0..1.
        DataError: if there is no image.
    """
    if not 0 <= share < 1:
        raise SpecError(f"a share of {share:g} cannot be rejected: give a number from 0 up to, but not, 1")
    if not len(scores):
        raise DataError("there are no val images to choose a confidence on: leave out --reject")
    confidence = np.sort(scores.max(axis=1))
    return float(confidence[int(share * len(confidence))])


def reject(scores: Scores, y: Labels, columns: Labels, *, share: float, threshold: float) -> Rejection:
    """Judge scores ``(n, m)`` of test images that must reach a threshold; ``y``, ``columns`` as in ``metrics``."""
    kept = scores.max(axis=1) >= threshold
    answered = int(kept.sum())
    right = int((columns[scores.argmax(axis=1)] == y)[kept].sum())
    return Rejection(
        share=share,
        threshold=threshold,
        answered=answered,
        coverage=answered / len(y),
        top1=right / answered if answered else None,
        interval95=wilson(right, answered) if answered else None,
    )
