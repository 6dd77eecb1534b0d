"""Properties of stratified splits and limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.errors import SpecError
from featkit.images.base import SPLITS, ImageSet
from featkit.images.splits import (
    FRACTIONS,
    format_limit,
    format_split,
    limit_rows,
    parse_limit,
    parse_split,
    stratified_split,
)

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=30)
SHARES = st.tuples(st.integers(1, 99), st.integers(0, 99), st.integers(1, 99)).map(
    lambda shares: tuple(share / sum(shares) for share in shares)
)


def labels_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def counts_of(labels, splits, classes: int) -> np.ndarray:
    """Return the number of images of each class in each split, ``(classes, 3)``."""
    return np.array(
        [
            [np.sum((labels == label) & (splits == split)) for split in SPLITS]
            for label in range(classes)
        ]
    )


@given(SIZES, SHARES, st.integers(0, 9))
def test_split_is_stratified(sizes, fractions, seed):
    """Class counts are rounded shares of each split, with at least one image in train."""
    labels = labels_of(sizes)
    counts = counts_of(labels, stratified_split(labels, fractions, seed), len(sizes))
    exact = np.outer(sizes, fractions)
    assert counts.sum() == len(labels)
    assert (np.abs(counts - exact) < 1).all()
    assert (counts[:, 0] >= 1).all()


@given(SIZES, SHARES)
def test_split_totals_are_the_fractions_of_all_images(sizes, fractions):
    """Totals are the rounded fractions of all images, unless a class is too small."""
    labels = labels_of(sizes)
    if min(sizes) * fractions[0] < 1:
        return
    totals = counts_of(labels, stratified_split(labels, fractions), len(sizes)).sum(axis=0)
    assert (np.abs(totals - np.multiply(fractions, len(labels))) < 1).all()


@given(SIZES, st.integers(0, 99))
def test_split_depends_on_its_seed_only(sizes, seed):
    labels = labels_of(sizes)
    assert np.array_equal(stratified_split(labels, seed=seed), stratified_split(labels, seed=seed))


def test_split_differs_between_seeds():
    labels = labels_of([40, 40])
    assert not np.array_equal(stratified_split(labels, seed=0), stratified_split(labels, seed=1))


def test_split_of_many_small_classes():
    """Rounding each class separately would give val 200 and test 100 images, or the reverse."""
    counts = counts_of(labels := labels_of([10] * 100), stratified_split(labels), 100)
    assert counts.sum(axis=0).tolist() == [700, 150, 150]


def test_classes_of_one_image_do_not_change_the_split_of_others():
    counts = counts_of(labels := labels_of([1] * 50 + [1000]), stratified_split(labels), 51)
    assert (counts[:50] == [1, 0, 0]).all()
    assert np.abs(counts[50] - [700, 150, 150]).max() <= 1


def test_split_prefers_test_to_val_in_a_small_class():
    counts = counts_of(labels := labels_of([3]), stratified_split(labels), 1)
    assert counts.tolist() == [[2, 0, 1]]


def test_split_accepts_labels_with_gaps():
    splits = stratified_split(np.array([7, -3] * 10))
    assert [np.sum(splits == split) for split in SPLITS] == [14, 3, 3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("70/15/15", FRACTIONS),
        ("7/1.5/1.5", FRACTIONS),
        (" 25 / 0 / 75 ", (0.25, 0, 0.75)),
        ("0.6/0.2/0.2", (0.6, 0.2, 0.2)),
        ("33.3/33.3/33.3", (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_split_fractions_are_parsed(text, expected):
    assert parse_split(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "70",
        "80/20",
        "1/1/1/1",
        "a/b/c",
        "70/15/",
        "0/50/50",
        "50/50/0",
        "80/-5/25",
        "nan/1/1",
        "inf/1/1",
    ],
)
def test_a_malformed_split_is_refused(text):
    with pytest.raises(SpecError, match=r"70/15/15"):
        parse_split(text)


@pytest.mark.parametrize(
    "text", ["70/20/20", "60/20/10", "0.7/0.2/0.2", "7/2/2", "70/15/1.5", "1000/0/1"]
)
def test_fractions_with_another_sum_are_refused(text):
    """They are probably mistyped: scaling them would give a split that nobody asked for."""
    with pytest.raises(SpecError, match=r"sums to .*: write percentages that sum to 100"):
        parse_split(text)


@given(SHARES)
def test_a_formatted_split_is_parsed_to_the_same_split(fractions):
    assert parse_split(format_split(fractions)) == pytest.approx(fractions, abs=1e-4)
    assert format_split(FRACTIONS) == "70/15/15"


def test_limits_are_parsed():
    assert parse_limit("test=1000, train=5000") == {"train": 5000, "test": 1000}
    assert format_limit(parse_limit("test=1000,train=5000")) == "train=5000,test=1000"


@pytest.mark.parametrize(
    "text", ["", "5000", "train", "train=", "train=0", "train=-1", "train=1e3", "train=1,train=2"]
)
def test_a_malformed_limit_is_refused(text):
    with pytest.raises(SpecError, match="train=5000,test=1000"):
        parse_limit(text)


def test_limit_of_an_unknown_split_lists_the_known_ones():
    with pytest.raises(SpecError, match=r"'trian': did you mean train.* known: train, val, test"):
        parse_limit("trian=5")


def limited_counts(sizes, limit, seed=0):
    labels = labels_of(sizes)
    images = ImageSet(
        "x",
        ("",) * len(labels),
        labels,
        ("",) * len(sizes),
        np.full(len(labels), "train"),
        "own",
        lambda i: i,
        str,
    )
    rows = limit_rows(images, {"train": limit}, seed)
    return rows, np.bincount(labels[rows], minlength=len(sizes))


@given(SIZES, st.integers(1, 600), st.integers(0, 3))
def test_limit_is_stratified(sizes, limit, seed):
    """The limit is exact, classes are proportional, and none is omitted if the limit allows it."""
    rows, counts = limited_counts(sizes, limit, seed)
    total = sum(sizes)
    assert len(rows) == min(limit, total)
    assert (np.diff(rows) > 0).all()
    assert (counts <= sizes).all()
    if limit >= len(sizes):
        assert (counts >= 1).all()
    if limit * min(sizes) >= total:
        assert (np.abs(counts - np.minimum(limit / total, 1) * np.array(sizes)) < 1).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_a_smaller_sample_is_part_of_a_larger_one(first, second, seed):
    """For equal class sizes; cached features of the smaller sample are reused."""
    small, large = sorted((first, second))
    within = [set(limited_counts([10] * 4, limit, seed)[0]) for limit in (small, large)]
    assert within[0] <= within[1]


def test_a_limit_does_not_change_other_splits(colours):
    images = replace(colours(60), splits=np.repeat(SPLITS, 20))
    part = images.take(limit_rows(images, {"test": 4, "val": 99}))
    assert [len(part.rows(split)) for split in SPLITS] == [20, 20, 4]
    assert np.bincount(part.labels[part.rows("test")]).tolist() == [2, 2]


def test_a_limit_of_one_split_does_not_change_the_sample_of_another(colours):
    images = replace(colours(60), splits=np.repeat(SPLITS, 20))
    alone, both = (limit_rows(images, limits) for limits in ({"test": 5}, {"train": 5, "test": 5}))
    assert set(alone[alone >= 40]) == set(both[both >= 40])
