"""Properties of k-shot and long-tailed subsets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.errors import DataError, SpecError
from featkit.images.subsets import PROFILES, k_shot, longtail, parse_subset

LABELS = st.lists(st.integers(-3, 5), min_size=1, max_size=80).map(np.array)


@given(LABELS, st.integers(1, 12), st.integers(0, 9))
def test_each_class_has_k_rows_or_all_and_a_smaller_k_is_part_of_a_larger(
    labels: np.ndarray, k: int, seed: int
) -> None:
    """Rows are in order, without repetition."""
    rows = k_shot(labels, k, seed, take_fewer=True)
    assert (np.diff(rows) > 0).all()
    for label in np.unique(labels):
        assert np.sum(labels[rows] == label) == min(k, np.sum(labels == label))
    assert set(rows) <= set(k_shot(labels, k + 1, seed, take_fewer=True))


def test_the_sample_depends_on_the_seed() -> None:
    """Only the seed matters."""
    labels = np.arange(300) % 3
    np.testing.assert_array_equal(k_shot(labels, 5, 1), k_shot(labels, 5, 1))
    assert not np.array_equal(k_shot(labels, 5, 1), k_shot(labels, 5, 2))


def test_a_class_with_fewer_images_is_named() -> None:
    """By its name if names are given."""
    labels = np.array([0, 0, 0, 1, 2, 2, 2])
    with pytest.raises(DataError, match="class dog has 1 images, fewer than k=3"):
        k_shot(labels, 3, classes=["cat", "dog", "emu"])
    with pytest.raises(DataError, match=r"class 1 has 1 images, .* \(1 of 3 classes have fewer\)"):
        k_shot(labels, 3)
    with pytest.raises(DataError, match="at least 1"):
        k_shot(labels, 0)


SIZES = st.lists(st.integers(1, 60), min_size=2, max_size=12)


def labels_of(sizes: list[int]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)) * 2 - 3, sizes))


@given(SIZES, st.sampled_from(sorted(PROFILES)), st.floats(1, 60), st.integers(0, 9))
def test_a_long_tail_has_its_imbalance_factor_and_no_empty_class(
    sizes: list[int], profile: str, factor: float, seed: int
) -> None:
    """Class sizes decrease by the weights of the profile, rounded, in an order that depends on the seed."""
    labels = labels_of(sizes)
    try:
        rows = longtail(labels, factor, seed, profile=profile)
    except DataError as error:
        possible = int(str(error).rpartition(" ")[2])
        assert possible < factor
        assert len(longtail(labels, possible, seed, profile=profile))
        return
    assert (np.diff(rows) > 0).all()
    order = np.random.default_rng(seed).permutation(len(sizes))
    kept = np.unique(labels[rows], return_counts=True)[1][order]
    assert len(kept) == len(sizes)
    assert (np.diff(kept) <= 0).all()
    assert (np.abs(kept - kept[0] * PROFILES[profile](len(sizes), factor)) <= 0.5 + 1e-6).all()
    assert kept[-1] - 0.5 <= kept[0] / factor + 1e-6 <= kept[-1] + 0.5 + 1e-5


@given(SIZES, st.sampled_from(sorted(PROFILES)), st.integers(1, 60), st.integers(0, 9))
def test_a_long_tail_is_as_large_as_possible(
    sizes: list[int], profile: str, factor: int, seed: int
) -> None:
    """With one more image in the largest class, some class would not have enough images."""
    labels = labels_of(sizes)
    order = np.random.default_rng(seed).permutation(len(sizes))
    try:
        rows = longtail(labels, factor, seed, profile=profile)
    except DataError:
        return
    largest = np.unique(labels[rows], return_counts=True)[1][order[0]]
    needed = (largest + 1) * PROFILES[profile](len(sizes), factor)
    assert (needed > np.array(sizes)[order] + 1e-9).any()


def test_profiles_equal_those_of_the_papers() -> None:
    """Ten balanced classes of 210 images, imbalance factor 50."""
    labels = np.repeat(np.arange(10), 210)

    def falling(profile: str) -> list[int]:
        return sorted(np.bincount(labels[longtail(labels, 50, 3, profile=profile)]), reverse=True)

    assert falling("exponential") == [round(210 * 50 ** (-r / 9)) for r in range(10)]
    assert falling("step") == [210] * 5 + [4] * 5
    assert falling("pareto") == [round(210 * (r + 1) ** (-np.log10(50))) for r in range(10)]


def test_the_natural_profile_is_the_data_itself() -> None:
    """So is factor 1 for classes of equal size."""
    labels = np.arange(30) % 3
    np.testing.assert_array_equal(longtail(labels, profile="natural"), np.arange(30))
    np.testing.assert_array_equal(longtail(labels, 1), np.arange(30))


@given(st.sampled_from(sorted(PROFILES)), st.floats(1, 30), st.floats(1, 30), st.integers(0, 5))
def test_the_rows_of_a_larger_factor_are_part_of_those_of_a_smaller_one(
    profile: str, a: float, b: float, seed: int
) -> None:
    """For classes of equal size, so that only the factor differs."""
    labels = np.arange(200) % 5
    short, long = (
        set(longtail(labels, factor, seed, profile=profile)) for factor in sorted((a, b))
    )
    assert long <= short


def test_an_impossible_factor_raises_with_the_largest_possible_one() -> None:
    """The error has the name of the class."""
    labels = np.repeat([0, 1], 20)
    with pytest.raises(
        DataError,
        match=r"factor 50 leaves no image of class (cat|dog).* largest possible one is 20$",
    ):
        longtail(labels, 50, classes=["cat", "dog"])
    assert sorted(np.bincount(labels[longtail(labels, 20)])) == [1, 20]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kshot:k=5", lambda labels: k_shot(labels, 5, 7)),
        ("kshot:k=90,take_fewer=true", lambda labels: k_shot(labels, 90, 7, take_fewer=True)),
        ("longtail:if=10", lambda labels: longtail(labels, 10, 7)),
        ("longtail:profile=step,if=2.5", lambda labels: longtail(labels, 2.5, 7, profile="step")),
        ("longtail:profile=natural", lambda labels: np.arange(len(labels))),
    ],
)
def test_a_subset_is_parsed_from_text(
    text: str, expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Parsing returns a function of labels and seed."""
    labels = np.arange(90) % 3
    np.testing.assert_array_equal(parse_subset(text)(labels, 7), expected(labels))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "longtial:if=5",
            r"unknown subset 'longtial': did you mean longtail\? known: longtail, kshot$",
        ),
        ("longtail:factor=5", r"unknown option of subset longtail 'factor': .*known: if, profile$"),
        ("longtail:50", r"write options as longtail:key=value; known: if, profile$"),
        ("longtail", r"imbalance factor None: give a number of at least 1"),
        ("longtail:if=0.5", r"imbalance factor 0\.5: give"),
        ("longtail:if=nan", r"imbalance factor nan: give"),
        ("longtail:if=inf", r"imbalance factor inf: give"),
        ("longtail:if=true", r"imbalance factor True: give"),
        ("longtail:if=5,profile=stepp", r"unknown profile 'stepp': did you mean step\?"),
        ("longtail:if=5,profile=natural", r"leave out the imbalance factor$"),
        ("kshot", r"'kshot': give the number of images of each class"),
        ("kshot:k=0", r"'kshot:k=0': give the number of images of each class"),
        ("kshot:k=2.5", r"give the number of images of each class"),
        ("kshot:k=2,take_fewer=yes", r"write take_fewer=true or take_fewer=false$"),
    ],
)
def test_an_invalid_subset_raises_before_labels_are_known(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_subset(text)
