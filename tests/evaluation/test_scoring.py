"""What a report says about calibration, mistakes and groups."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.errors import DataError
from featkit.evaluation import Report, Temperature, evaluate, summary
from featkit.evaluation.calibration import apply_temperature, calibration_error, ece, nll
from featkit.evaluation.report import ConfusedPair

NAMES = tuple("abcdefg")
COUNTS = [500, 120, 90, 50, 20, 9, 3]
MILD = Temperature(1.7, 1e-4)


def example(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right more often than not, too sharp to be believed."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 7, n)
    logits = 3 * rng.normal(size=(n, 7))
    logits[np.arange(n), y] += 3
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True), y


def judge(scores: np.ndarray, y: np.ndarray, names: tuple[str, ...] = NAMES, counts: list[int] = COUNTS) -> Report:
    return evaluate(scores, y, names, temperature=MILD, train_counts=counts)


def test_calibration_is_that_of_the_scores_before_and_after_the_temperature() -> None:
    """The bins are there to be drawn."""
    scores, y = example()
    report, columns = judge(scores, y), np.arange(7)
    after = apply_temperature(scores, MILD)
    assert (report.nll, report.ece) == (nll(scores, y, columns), ece(scores, y, columns))
    assert (report.nll_calibrated, report.ece_calibrated) == (nll(after, y, columns), ece(after, y, columns))
    assert report.temperature == MILD
    assert calibration_error(report.reliability) == report.ece
    assert calibration_error(report.reliability_calibrated) == report.ece_calibrated


def test_nothing_but_calibration_depends_on_the_temperature() -> None:
    """Least of all top-1."""
    scores, y = example()
    plain, calibrated = evaluate(scores, y, NAMES).to_dict(), evaluate(scores, y, NAMES, temperature=MILD).to_dict()
    differing = {name for name in plain if plain[name] != calibrated[name]}
    assert differing == {"temperature", "nll_calibrated", "ece_calibrated", "reliability_calibrated"}


def test_scores_that_are_not_probabilities_have_no_calibration() -> None:
    """And cannot have a temperature."""
    scores, y = example()
    report = evaluate(np.log(scores), y, NAMES)
    assert (report.nll, report.ece, report.reliability) == (None, None, ())
    with pytest.raises(DataError, match="not probabilities"):
        evaluate(np.log(scores), y, NAMES, temperature=MILD)


def test_the_most_frequent_mistakes_are_named_up_to_ten() -> None:
    """With their share of the true class."""
    report = evaluate(np.eye(3)[[0, 0, 1, 1, 1, 0, 0]], [0, 0, 0, 0, 1, 1, 2], ["cat", "dog", "emu"])
    assert report.confused == (
        ConfusedPair("cat", "dog", 2, 0.5),
        ConfusedPair("emu", "cat", 1, 1.0),
        ConfusedPair("dog", "cat", 1, 0.5),
    )
    assert len(judge(*example()).confused) == 10
    assert evaluate(np.eye(2), [0, 1], ["a", "b"]).confused == ()


def test_groups_are_there_where_train_is_imbalanced() -> None:
    """Their images are those of the report."""
    report = judge(*example())
    assert [row.name for row in report.groups or ()] == ["many", "medium", "few"]
    assert sum(row.n for row in report.groups or ()) == report.n
    assert sum(row.n * row.top1 for row in report.groups or ()) == pytest.approx(report.n * report.top1)
    assert judge(*example(), counts=[30] * 7).groups is None
    assert evaluate(*example(), NAMES).groups is None


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_the_order_of_images_changes_nothing_and_that_of_classes_only_the_order(n: int, seed: int) -> None:
    """To the last digit for images; what a temperature did may round otherwise where columns are turned."""
    scores, y = example(n, seed)
    rng = np.random.default_rng(seed)
    rows, order = rng.permutation(n), rng.permutation(7)
    here = judge(scores, y)
    assert judge(scores[rows], y[rows]).to_json() == here.to_json()
    names, counts = tuple(NAMES[place] for place in order), [COUNTS[place] for place in order]
    there = judge(scores[:, order], np.argsort(order)[y], names, counts)
    for name in ("nll", "ece", "reliability", "confused", "groups"):
        assert getattr(there, name) == getattr(here, name)
    assert there.nll_calibrated == pytest.approx(here.nll_calibrated)
    assert there.ece_calibrated == pytest.approx(here.ece_calibrated, abs=0.05)


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_calibration_mistakes_and_groups_survive_json(n: int, seed: int) -> None:
    """As the values that they were."""
    report = judge(*example(n, seed))
    again = Report.from_json(report.to_json())
    for name in ("confused", "groups", "reliability", "reliability_calibrated", "temperature", "nll_calibrated"):
        assert getattr(again, name) == getattr(report, name)
    assert again.to_json() == report.to_json()


def test_a_report_of_the_first_version_can_be_read() -> None:
    """It has no calibration, no list of mistakes, no groups."""
    old = {
        "n": 3, "top1": 2 / 3, "top5": None, "balanced_accuracy": 0.75, "macro_f1": 0.667, "interval95": [0.208, 0.939],
        "balanced_interval95": [0.2, 1.0], "confusion": [[1, 1], [0, 1]], "warnings": [], "provenance": {"seed": 0},
        "per_class": [
            {"name": "a", "n": 2, "precision": 1.0, "recall": 0.5, "f1": 0.667},
            {"name": "b", "n": 1, "precision": 0.5, "recall": 1.0, "f1": 0.667},
        ],
    }  # fmt: skip
    report = Report.from_dict(old)
    assert (report.nll, report.temperature, report.groups, report.confused) == (None, None, None, ())
    assert {name: value for name, value in report.to_dict().items() if name in old} == old
    assert summary(report).endswith("macro F1 66.7 %, n = 3")


@pytest.mark.parametrize("change", [{"temperature": 1.5}, {"groups": [3]}, {"reliability": [{"count": 3}]}])
def test_a_report_with_parts_that_are_none_is_refused(change: dict[str, object]) -> None:
    """In one line."""
    with pytest.raises(DataError, match="not a report"):
        Report.from_dict({**json.loads(judge(*example()).to_json()), **change})


def test_the_summary_has_calibration_and_groups() -> None:
    """In the order of a table."""
    line = summary(judge(*example()))
    places = [
        line.index(word) for word in ("macro F1", "many ", "medium ", "few ", "NLL", "ECE", "at temperature 1.7 NLL")
    ]
    assert places == sorted(places)
