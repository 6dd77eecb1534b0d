"""Labels that were missed and wrongly added."""

from __future__ import annotations

import numpy as np

from featkit.evaluation.label_errors import (
    LabelError,
    cooccurrence,
    label_confusion,
    label_reliability,
    largest_errors,
    pooled_reliability,
)

TARGETS = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]], np.uint8)
PREDICTED = np.array([[1, 0, 1], [1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]], np.uint8)


def test_the_confusion_matrix_has_every_error_of_every_image():
    expected = [
        [2, 0, 0, 0],  # found in images 0 and 1
        [0, 1, 1, 0],  # missed in image 0, to which label 2 was added
        [1, 1, 0, 1],  # missed in image 4 with two labels added, and in image 2 with none
        [1, 0, 0, 0],  # added to image 3, in which nothing was missed
    ]
    assert label_confusion(TARGETS, PREDICTED).tolist() == expected


def test_without_errors_only_the_diagonal_is_filled():
    matrix = label_confusion(TARGETS, TARGETS)
    assert np.array_equal(matrix[:3, :3], np.diag(TARGETS.sum(axis=0)))
    assert not matrix[3].any()
    assert not matrix[:, 3].any()


def test_labels_that_occur_together_are_counted():
    assert cooccurrence(TARGETS).tolist() == [[2, 1, 0], [1, 2, 1], [0, 1, 2]]


def test_the_largest_error_of_each_image_is_kept():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.95], [0.7, 0.2]])
    wrong = np.array([[True, False], [True, True], [False, True]])
    added = largest_errors(wrong, probabilities, highest=True, count=2)
    assert added == [LabelError(1, 1, 0.95), LabelError(0, 0, 0.9)]
    missed = largest_errors(wrong, probabilities, highest=False, count=9)
    assert [(each.row, each.column) for each in missed] == [(2, 1), (1, 0), (0, 0)]
    assert largest_errors(wrong & False, probabilities, highest=True, count=3) == []


def test_bins_have_the_shares_of_their_labels():
    rng = np.random.default_rng(0)
    probabilities = rng.random((400, 3))
    targets = (rng.random((400, 3)) < probabilities).astype(np.uint8)
    for column, bins in enumerate(label_reliability(targets, probabilities, bins=10)):
        assert sum(each.count for each in bins) == 400
        hits = sum(each.count * each.accuracy for each in bins)
        assert round(hits) == targets[:, column].sum()
        assert all(abs(each.accuracy - each.confidence) < 0.25 for each in bins)
    pooled = pooled_reliability(targets, probabilities)
    assert sum(each.count for each in pooled) == 1200


def test_images_of_a_group_widen_the_intervals_of_bins():
    rng = np.random.default_rng(1)
    shared = rng.random(40).repeat(10)
    probabilities = np.column_stack([shared, shared])
    targets = np.column_stack([(rng.random(40) < shared[::10]).repeat(10)] * 2).astype(np.uint8)
    groups = [f"patient {number}" for number in np.arange(40).repeat(10)]

    def mean_width(bins):
        return np.mean([high - low for low, high in (each.interval95 for each in bins)])

    alone = mean_width(pooled_reliability(targets, probabilities))
    assert mean_width(pooled_reliability(targets, probabilities, groups)) > 1.5 * alone
