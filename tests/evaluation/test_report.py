from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from featkit.errors import DataError
from featkit.evaluation import ClassMetrics, Report, evaluate, summary

NAMES = tuple("abcdefg")


def example(
    n: int = 60, seed: int = 0, k: int = 7
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return scores that are correct for most images."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    scores = rng.random((n, k))
    scores[np.arange(n), y] += rng.random(n)
    return scores, y, NAMES[:k]


def test_a_report_has_the_numbers_of_an_example_computed_manually() -> None:
    """Four images of class a, three of them correct, and one of b, wrong."""
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.6, 0.4]])
    report = evaluate(scores, [0, 0, 0, 0, 1], ["a", "b"], cost={"seconds": 1.0}, warnings=["slow"])
    assert (report.n, report.top1, report.top5) == (5, 0.6, None)
    assert report.balanced_accuracy == 0.375
    assert report.macro_f1 == pytest.approx(0.375)
    assert report.interval95 == pytest.approx((0.2307, 0.8824), abs=1e-4)
    assert report.confusion.tolist() == [[3, 1], [1, 0]]
    assert report.per_class == (
        ClassMetrics("a", 4, 0.75, 0.75, 0.75),
        ClassMetrics("b", 1, 0.0, 0.0, 0.0),
    )
    assert (report.classes, report.cost, report.warnings) == (
        ("a", "b"),
        {"seconds": 1.0},
        ("slow",),
    )


def test_top5_is_reported_for_more_than_five_classes_and_equals_scikit_learn() -> None:
    scores, y, names = example()
    assert evaluate(scores, y, names).top5 == top_k_accuracy_score(
        y, scores, k=5, labels=np.arange(7)
    )
    assert evaluate(*example(k=6)).top5 is not None
    assert evaluate(*example(k=5)).top5 is None


def test_columns_are_matched_to_classes_and_an_unseen_class_counts_as_errors() -> None:
    scores, y, names = example()
    order = np.array([3, 1, 0, 2, 6, 5])
    report = evaluate(scores[:, order], y, names, columns=order)
    unseen = report.per_class[4]
    assert (unseen.recall, unseen.precision) == (0.0, None)
    filled = scores.copy()
    filled[:, 4] = -np.inf
    assert report.to_dict() == evaluate(filled, y, names).to_dict()


def test_a_single_test_image_can_be_evaluated() -> None:
    report = evaluate([[0.1, 0.9]], [1], ["a", "b"])
    assert (report.n, report.top1, report.balanced_accuracy) == (1, 1.0, 1.0)
    assert report.interval95 == report.balanced_interval95 == pytest.approx((0.2065, 1), abs=1e-4)
    assert report.per_class[0] == ClassMetrics("a", 0, None, None, None)
    assert json.loads(report.to_json())["per_class"][0]["recall"] is None


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_order_of_images_does_not_matter(n: int, seed: int) -> None:
    scores, y, names = example(n, seed)
    rows = np.random.default_rng(seed).permutation(n)
    assert evaluate(scores[rows], y[rows], names).to_dict() == evaluate(scores, y, names).to_dict()


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_another_order_of_classes_only_reorders_the_report(n: int, seed: int) -> None:
    scores, y, names = example(n, seed)
    order = np.random.default_rng(seed).permutation(7)
    here = evaluate(scores, y, names)
    there = evaluate(scores[:, order], np.argsort(order)[y], [names[place] for place in order])
    assert there.per_class == tuple(here.per_class[place] for place in order)
    np.testing.assert_array_equal(there.confusion, here.confusion[np.ix_(order, order)])
    assert (there.n, there.top1, there.top5) == (here.n, here.top1, here.top5)
    assert (there.interval95, there.balanced_interval95) == (
        here.interval95,
        here.balanced_interval95,
    )
    assert there.balanced_accuracy == pytest.approx(here.balanced_accuracy)
    assert there.macro_f1 == pytest.approx(here.macro_f1)


def test_the_seed_changes_bootstrap_intervals_only() -> None:
    scores, y, names = example(n=300)
    one, again, other = (evaluate(scores, y, names, seed=seed) for seed in (1, 1, 2))
    assert one.to_json() == again.to_json()
    assert replace(other, balanced_interval95=one.balanced_interval95).to_json() == one.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [0, 1, 7]}, "a label is not one of the 7 classes"),
        ({"y": [0, -1, 2]}, "a label is not one of the 7 classes"),
        ({"y": [0.0, 1.0, 2.0]}, "integers in 0..6"),
        ({"y": [0, 1]}, r"scores \(3, 7\) do not match y \(2,\)"),
        ({"scores": np.zeros(3)}, r"scores \(3,\) do not match"),
        ({"scores": np.zeros((3, 6))}, r"expected \(n, 7\) scores"),
        ({"scores": np.zeros((0, 7)), "y": []}, "nothing to evaluate"),
        ({"scores": np.zeros((3, 0)), "columns": []}, "nothing to evaluate"),
        ({"scores": np.full((3, 7), np.nan)}, "the scores of row 0 contain NaN"),
        ({"columns": [0, 1, 2, 3, 4, 5, 7]}, "a column is not one of the 7 classes"),
        ({"columns": [0, 1, 2, 3, 4, 5, 5]}, "two columns"),
    ],
)
def test_invalid_input_of_evaluate_raises_one_line(change: dict[str, Any], message: str) -> None:
    values = {"scores": np.zeros((3, 7)), "y": [0, 1, 2], "columns": None, **change}
    with pytest.raises(DataError, match=message) as caught:
        evaluate(values["scores"], values["y"], NAMES, columns=values["columns"])
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40)
@given(
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
    st.integers(2, 7),
    st.lists(st.text(), max_size=2),
    st.dictionaries(st.text(), json_values, max_size=3),
)
def test_a_report_survives_json(
    n: int, seed: int, k: int, warnings: list[str], provenance: dict[str, Any]
) -> None:
    report = evaluate(
        *example(n, seed, k), warnings=warnings, provenance=provenance, cost={"seconds": 2.0}
    )
    again = Report.from_json(report.to_json())
    assert again.to_json() == report.to_json()
    np.testing.assert_array_equal(again.confusion, report.confusion)
    assert again.per_class == report.per_class
    assert (again.interval95, again.warnings) == (report.interval95, report.warnings)
    assert (again.provenance, again.cost) == (report.provenance, {})


def test_json_converts_numpy_values_tuples_and_non_finite_numbers() -> None:
    given = {
        "C": np.inf,
        "k": np.int64(5),
        "sizes": (1, 2),
        "mean": np.ones(2),
        "on": np.True_,
        "path": Path("x"),
        "nothing": None,
    }
    report = evaluate(*example(), provenance=given)
    assert json.loads(report.to_json())["provenance"] == {
        "C": "inf", "k": 5, "sizes": [1, 2], "mean": [1.0, 1.0], "on": True, "path": "x", "nothing": None,
    }  # fmt: skip


def test_additional_keys_of_a_results_file_are_ignored() -> None:
    report = evaluate(*example())
    assert Report.from_dict({"run": "ab12", **report.to_dict()}).to_dict() == report.to_dict()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"n": 3}', "nonsense"])
def test_text_that_is_not_a_report_raises_one_line(text: str) -> None:
    with pytest.raises(DataError, match="not a report") as caught:
        Report.from_json(text)
    assert "\n" not in str(caught.value)


def test_a_report_with_an_incomplete_confusion_matrix_raises() -> None:
    values = evaluate(*example()).to_dict()
    with pytest.raises(DataError, match="not a report"):
        Report.from_dict({**values, "confusion": values["confusion"][:-1]})


def test_the_summary_has_every_number_with_its_interval() -> None:
    report = evaluate([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.7, 0.3]], [0, 1, 0, 1], ["a", "b"])
    expected = (
        "top-1 75.0 % (30.1 to 95.4), balanced accuracy 75.0 % (30.1 to 100.0), macro F1 73.3 %"
    )
    assert summary(report) == f"{expected}, NLL 0.409, ECE 27.5 %, n = 4"
    assert summary(replace(report, nll=None, ece=None)) == f"{expected}, n = 4"
    assert ", top-5 100.0 %, " in summary(replace(report, top5=1.0))
