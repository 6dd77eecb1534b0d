"""Many, medium and few."""

from __future__ import annotations

import numpy as np
import pytest

from featkit.errors import DataError
from featkit.evaluation.intervals import wilson
from featkit.evaluation.scoring import group_accuracies

HITS, TOTALS = np.array([9, 8, 5, 1, 0]), np.array([10, 10, 10, 5, 0])


def test_classes_are_grouped_by_their_training_images() -> None:
    """100 and 20 are medium; a class without test images counts nowhere."""
    many, medium, few = group_accuracies(HITS, TOTALS, [101, 100, 20, 19, 3])
    assert [row.name for row in (many, medium, few)] == ["many", "medium", "few"]
    assert (many.classes, many.n, many.top1, many.interval95) == (1, 10, 0.9, wilson(9, 10))
    assert (medium.classes, medium.n, medium.top1) == (2, 20, 0.65)
    assert (few.classes, few.n, few.top1) == (1, 5, 0.2)


def test_a_group_without_test_images_is_left_out() -> None:
    """There is nothing to divide by."""
    assert [row.name for row in group_accuracies(HITS, TOTALS, [500, 400, 300, 101, 5])] == ["many"]


@pytest.mark.parametrize("counts", [[80, 70, 60, 50, 40], [102, 98, 110, 95, 120], [900, 101, 500, 400, 300]])
def test_balanced_training_data_have_no_groups(counts: list[int]) -> None:
    """Neither where all classes are in one group, nor where a border runs between classes of like size."""
    assert group_accuracies(HITS, TOTALS, counts) is None


def test_classes_that_were_never_trained_are_among_the_few() -> None:
    """They are what a long tail ends in."""
    assert group_accuracies(HITS, TOTALS, [200, 200, 200, 0, 0])[-1].name == "few"


@pytest.mark.parametrize("counts", [[1, 2], [1.0] * 5, [3, 3, 3, 3, -1]])
def test_counts_that_cannot_be_are_refused(counts: list[float]) -> None:
    """In one line that says what was expected."""
    with pytest.raises(DataError, match="each of the 5 classes"):
        group_accuracies(HITS, TOTALS, counts)
