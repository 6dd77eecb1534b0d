"""Calibration, confusions, class groups and selective accuracy in reports."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.errors import DataError, SpecError
from featkit.evaluation import Report, Temperature, evaluate, summary
from featkit.evaluation.calibration import apply_temperature, calibration_error, ece, nll
from featkit.evaluation.intervals import wilson
from featkit.evaluation.report import ConfusedPair, GroupAccuracy
from featkit.evaluation.scoring import (
    accuracy_without,
    group_accuracies,
    reject,
    rejection_threshold,
)

NAMES = tuple("abcdefg")
COUNTS = [500, 120, 90, 50, 20, 9, 3]
MILD = Temperature(1.7, 1e-4)


def example(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities that are correct for most images, and overconfident."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 7, n)
    logits = 3 * rng.normal(size=(n, 7))
    logits[np.arange(n), y] += 3
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True), y


def report_of(
    scores: np.ndarray, y: np.ndarray, names: tuple[str, ...] = NAMES, counts: list[int] = COUNTS
) -> Report:
    return evaluate(scores, y, names, temperature=MILD, train_counts=counts)


def test_calibration_is_reported_before_and_after_temperature_scaling() -> None:
    """The bins for a reliability diagram are included."""
    scores, y = example()
    report, columns = report_of(scores, y), np.arange(7)
    after = apply_temperature(scores, MILD)
    assert (report.nll, report.ece) == (nll(scores, y, columns), ece(scores, y, columns))
    assert (report.nll_calibrated, report.ece_calibrated) == (
        nll(after, y, columns),
        ece(after, y, columns),
    )
    assert report.temperature == MILD
    assert calibration_error(report.reliability) == report.ece
    assert calibration_error(report.reliability_calibrated) == report.ece_calibrated


def test_only_calibration_depends_on_the_temperature() -> None:
    """Such as top-1 accuracy."""
    scores, y = example()
    plain, calibrated = (
        evaluate(scores, y, NAMES).to_dict(),
        evaluate(scores, y, NAMES, temperature=MILD).to_dict(),
    )
    differing = {name for name in plain if plain[name] != calibrated[name]}
    assert differing == {
        "temperature",
        "nll_calibrated",
        "ece_calibrated",
        "reliability_calibrated",
    }


def test_scores_that_are_not_probabilities_have_no_calibration() -> None:
    """A temperature is refused."""
    scores, y = example()
    report = evaluate(np.log(scores), y, NAMES)
    assert (report.nll, report.ece, report.reliability) == (None, None, ())
    with pytest.raises(DataError, match="needs probabilities"):
        evaluate(np.log(scores), y, NAMES, temperature=MILD)


def test_the_ten_most_frequent_confusions_are_reported() -> None:
    """With the fraction of images of the true class."""
    report = evaluate(
        np.eye(3)[[0, 0, 1, 1, 1, 0, 0]], [0, 0, 0, 0, 1, 1, 2], ["cat", "dog", "emu"]
    )
    assert report.confused == (
        ConfusedPair("cat", "dog", 2, 0.5),
        ConfusedPair("emu", "cat", 1, 1.0),
        ConfusedPair("dog", "cat", 1, 0.5),
    )
    assert len(report_of(*example()).confused) == 10
    assert evaluate(np.eye(2), [0, 1], ["a", "b"]).confused == ()


def test_groups_are_reported_for_imbalanced_training_data() -> None:
    """Their numbers of images sum to that of the report."""
    report = report_of(*example())
    assert [row.name for row in report.groups or ()] == ["many", "medium", "few"]
    assert sum(row.n for row in report.groups or ()) == report.n
    assert sum(row.n * row.top1 for row in report.groups or ()) == pytest.approx(
        report.n * report.top1
    )
    assert report_of(*example(), counts=[30] * 7).groups is None
    assert evaluate(*example(), NAMES).groups is None


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_the_order_of_images_and_classes_does_not_matter(n: int, seed: int) -> None:
    """Exactly for images; another order of columns may round temperature-scaled scores differently."""
    scores, y = example(n, seed)
    rng = np.random.default_rng(seed)
    rows, order = rng.permutation(n), rng.permutation(7)
    here = report_of(scores, y)
    assert report_of(scores[rows], y[rows]).to_json() == here.to_json()
    names, counts = tuple(NAMES[place] for place in order), [COUNTS[place] for place in order]
    there = report_of(scores[:, order], np.argsort(order)[y], names, counts)
    for name in ("nll", "ece", "reliability", "confused", "groups"):
        assert getattr(there, name) == getattr(here, name)
    assert there.nll_calibrated == pytest.approx(here.nll_calibrated)
    assert there.ece_calibrated == pytest.approx(here.ece_calibrated, abs=0.05)


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_calibration_confusions_and_groups_survive_json(n: int, seed: int) -> None:
    """Values are unchanged."""
    report = report_of(*example(n, seed))
    again = Report.from_json(report.to_json())
    for name in (
        "confused",
        "groups",
        "reliability",
        "reliability_calibrated",
        "temperature",
        "nll_calibrated",
    ):
        assert getattr(again, name) == getattr(report, name)
    assert again.to_json() == report.to_json()


def test_a_report_of_the_first_version_can_be_read() -> None:
    """It has no calibration, confusions or groups."""
    old = {
        "n": 3, "top1": 2 / 3, "top5": None, "balanced_accuracy": 0.75, "macro_f1": 0.667, "interval95": [0.208, 0.939],
        "balanced_interval95": [0.2, 1.0], "confusion": [[1, 1], [0, 1]], "warnings": [], "provenance": {"seed": 0},
        "per_class": [
            {"name": "a", "n": 2, "precision": 1.0, "recall": 0.5, "f1": 0.667},
            {"name": "b", "n": 1, "precision": 0.5, "recall": 1.0, "f1": 0.667},
        ],
    }  # fmt: skip
    report = Report.from_dict(old)
    assert (report.nll, report.temperature, report.groups, report.confused) == (
        None,
        None,
        None,
        (),
    )
    assert {name: value for name, value in report.to_dict().items() if name in old} == old
    assert summary(report).endswith("macro F1 66.7 %, n = 3")


@pytest.mark.parametrize(
    "change", [{"temperature": 1.5}, {"groups": [3]}, {"reliability": [{"count": 3}]}]
)
def test_a_report_with_invalid_parts_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match="not a report"):
        Report.from_dict({**json.loads(report_of(*example()).to_json()), **change})


def test_the_summary_has_calibration_and_groups() -> None:
    line = summary(report_of(*example()))
    places = [
        line.index(word)
        for word in ("macro F1", "many ", "medium ", "few ", "NLL", "ECE", "at temperature 1.7 NLL")
    ]
    assert places == sorted(places)


HITS, TOTALS = np.array([9, 8, 5, 1, 0]), np.array([10, 10, 10, 5, 0])


def _group_accuracies(counts: list[float]) -> tuple[GroupAccuracy, ...] | None:
    """Return the accuracies of predictions with these hits in each class."""
    y = np.repeat(np.arange(len(TOTALS)), TOTALS)
    rank = np.arange(len(y)) - np.repeat(np.cumsum(TOTALS) - TOTALS, TOTALS)
    return group_accuracies(rank < HITS[y], y, len(TOTALS), counts)


def test_classes_are_grouped_by_their_training_images() -> None:
    """100 and 20 images are medium; a class without test images is in no group."""
    many, medium, few = _group_accuracies([101, 100, 20, 19, 3])
    assert [row.name for row in (many, medium, few)] == ["many", "medium", "few"]
    assert (many.classes, many.n, many.top1, many.interval95) == (1, 10, 0.9, wilson(9, 10))
    assert (medium.classes, medium.n, medium.top1) == (2, 20, 0.65)
    assert (few.classes, few.n, few.top1) == (1, 5, 0.2)


def test_a_group_without_test_images_is_left_out() -> None:
    """Its accuracy is undefined."""
    assert [row.name for row in _group_accuracies([500, 400, 300, 101, 5])] == ["many"]


@pytest.mark.parametrize(
    "counts", [[80, 70, 60, 50, 40], [102, 98, 110, 95, 120], [900, 101, 500, 400, 300]]
)
def test_balanced_training_data_have_no_groups(counts: list[int]) -> None:
    """Also if similar class sizes are on both sides of a boundary."""
    assert _group_accuracies(counts) is None


def test_classes_without_training_images_are_few_shot() -> None:
    """The tail of a long-tailed distribution may be empty."""
    assert _group_accuracies([200, 200, 200, 0, 0])[-1].name == "few"


@pytest.mark.parametrize("counts", [[1, 2], [1.0] * 5, [3, 3, 3, 3, -1]])
def test_invalid_counts_raise(counts: list[float]) -> None:
    """The message names the valid values."""
    with pytest.raises(DataError, match="each of the 5 classes"):
        _group_accuracies(counts)


CONFIDENCE = st.lists(st.floats(0.5, 1), min_size=1, max_size=40)


def two_class_scores(confidence):
    return np.column_stack([confidence, 1 - np.array(confidence)])


@given(CONFIDENCE, st.floats(0, 0.99))
def test_at_most_the_requested_fraction_is_rejected(confidence, share):
    threshold = rejection_threshold(two_class_scores(confidence), share)
    assert np.mean(np.array(confidence) < threshold) <= share


@given(CONFIDENCE)
def test_a_fraction_of_0_rejects_nothing(confidence):
    table, y = two_class_scores(confidence), np.zeros(len(confidence), np.int64)
    found = reject(table, y, np.arange(2), share=0, threshold=rejection_threshold(table, 0))
    assert (found.answered, found.coverage, found.top1) == (len(confidence), 1, 1)


def test_only_accepted_images_count():
    y = np.array([0, 1, 1, 0])
    found = reject(
        two_class_scores([0.9, 0.8, 0.6, 0.7]), y, np.arange(2), share=0.5, threshold=0.75
    )
    assert (found.answered, found.coverage, found.top1) == (2, 0.5, 0.5)
    none = reject(two_class_scores([0.9]), y[:1], np.arange(2), share=0.5, threshold=0.95)
    assert (none.answered, none.top1, none.interval95) == (0, None, None)
    assert found.coverage_interval95 == wilson(2, 4)
    assert none.coverage_interval95 == wilson(0, 1)


def test_the_accuracy_without_copies_has_its_own_n_and_interval():
    correct, copied = np.arange(10) < 8, np.arange(10) < 5
    found = accuracy_without(correct, copied)
    assert (found.copies, found.n, found.top1) == (5, 5, 0.6)
    assert found.interval95 == wilson(3, 5)
    none = accuracy_without(correct, np.ones(10, bool))
    assert (none.copies, none.n, none.top1, none.interval95) == (10, 0, None, None)
    report = replace(evaluate(np.eye(2), [0, 1], ["a", "b"]), without_copies=none)
    assert summary(report).endswith(
        "; no test image is left without 10 copies of train or val images"
    )
    assert Report.from_json(report.to_json()).without_copies == none


def test_an_invalid_fraction_and_no_images_raise():
    with pytest.raises(SpecError, match="cannot reject a share"):
        rejection_threshold(two_class_scores([0.9]), 1)
    with pytest.raises(DataError, match="no val images"):
        rejection_threshold(np.empty((0, 2)), 0.1)
