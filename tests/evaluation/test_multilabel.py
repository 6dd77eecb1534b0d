"""Metrics of several labels per image, against scikit-learn and by simulation."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from featkit.errors import DataError
from featkit.evaluation.multilabel import (
    LabelCalibration,
    MultiLabelReport,
    apply_calibrations,
    average_precision,
    average_precision_terms,
    compare_precision,
    evaluate_labels,
    fit_calibration,
    fit_threshold,
    mean_average_precision_terms,
    multilabel_summary,
    read_report,
)
from featkit.evaluation.predictions import Predictions


def drawn(n=200, k=4, seed=0, decimals=None):
    """Return targets and scores that tell something about them."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, k)) < rng.uniform(0.05, 0.5, k)).astype(np.uint8)
    targets[0] = 1
    scores = 1 / (1 + np.exp(-(2.0 * targets - 1 + 1.5 * rng.standard_normal((n, k)))))
    return targets, scores if decimals is None else scores.round(decimals)


def evaluated(targets, scores, **options):
    k = targets.shape[1]
    given = {"thresholds": [0.5] * k, "calibrations": [None] * k, "train_counts": [1] * k}
    return evaluate_labels(
        scores, targets, [f"label {i}" for i in range(k)], **{**given, **options}
    )


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_average_precision_is_that_of_scikit_learn(decimals):
    targets, scores = drawn(decimals=decimals)
    for column in range(targets.shape[1]):
        expected = average_precision_score(targets[:, column], scores[:, column])
        assert average_precision(targets[:, column], scores[:, column]) == pytest.approx(
            expected, abs=1e-12
        )


@pytest.mark.parametrize("decimals", [None, 1])
def test_mean_average_precision_and_f1_are_those_of_scikit_learn(decimals):
    targets, scores = drawn(decimals=decimals)
    report = evaluated(targets, scores)
    expected = average_precision_score(targets, scores, average="macro")
    assert report.mean_average_precision == pytest.approx(expected, abs=1e-12)
    for name in ("micro", "macro"):
        expected = f1_score(targets, scores >= 0.5, average=name)
        assert getattr(report, f"{name}_f1") == pytest.approx(expected, abs=1e-12)


@pytest.fixture
def float64_by_default():
    """Let torch compute quotients of whole numbers in float64."""
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(before)


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("seed", range(5))
def test_mean_average_precision_is_that_of_torchmetrics(seed, decimals, float64_by_default):
    """Also with ties.

    torchmetrics counts images in int64 and divides the counts, which gives the default type of
    torch, float32, whatever the type of the scores: its precision and recall are exact to 6e-8.
    """
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    torch = float64_by_default
    targets, scores = drawn(seed=seed, decimals=decimals)
    given = torch.from_numpy(scores), torch.from_numpy(targets.astype(np.int64))
    expected = torchmetrics.multilabel_average_precision(*given, num_labels=4, average="macro")
    report = evaluated(targets, scores)
    assert report.mean_average_precision == pytest.approx(float(expected), abs=1e-9)
    each = torchmetrics.multilabel_average_precision(*given, num_labels=4, average="none")
    found = [label.average_precision for label in report.per_label]
    assert found == pytest.approx(each.tolist(), abs=1e-9)


@pytest.mark.parametrize("decimals", [None, 1])
def test_terms_are_the_derivatives_with_respect_to_the_weight_of_an_image(decimals):
    targets, scores = drawn(n=60, decimals=decimals)
    target, score = targets[:, 0], scores[:, 0]
    terms = average_precision_terms(target, score)
    assert terms.mean() == pytest.approx(average_precision(target, score), abs=1e-12)
    step = 1e-6
    for row in (0, 7, 31):
        weights = np.ones(60)
        weights[row] += step
        more = average_precision_score(target, score, sample_weight=weights)
        slope = (more - average_precision_score(target, score)) / step
        assert terms[row] - terms.mean() == pytest.approx(60 * slope, abs=1e-3)


def test_intervals_cover_the_mean_average_precision_of_many_images():
    targets, scores = drawn(n=200_000, k=3)
    truth = average_precision_score(targets, scores, average="macro")
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        rows = rng.integers(0, len(targets), 150)
        low, high = evaluated(targets[rows], scores[rows]).interval95
        covered += low <= truth <= high
    assert 0.93 <= covered / 200 <= 1


def test_perfect_scores_have_an_interval_with_a_width():
    targets, _ = drawn(n=50)
    report = evaluated(targets, targets.astype(float))
    assert report.mean_average_precision == report.micro_f1 == 1
    for low, high in (report.interval95, report.micro_interval95, report.macro_interval95):
        assert low < 0.99
        assert high == 1


def test_groups_widen_the_intervals():
    targets, scores = drawn(n=40)
    copies = np.tile(targets, (5, 1)), np.tile(scores, (5, 1))
    alone = evaluated(*copies)
    grouped = evaluated(*copies, groups=np.tile(np.arange(40), 5).astype(str))
    assert grouped.test_groups == 40
    assert grouped.mean_average_precision == alone.mean_average_precision
    widths = [np.ptp(report.interval95) for report in (alone, grouped)]
    assert widths[1] > 1.8 * widths[0]


def test_a_label_without_test_images_has_no_average_precision():
    targets, scores = drawn()
    targets[:, 1] = 0
    report = evaluated(targets, scores)
    assert report.per_label[1].average_precision is None
    kept = [0, 2, 3]
    expected = average_precision_score(targets[:, kept], scores[:, kept])
    assert report.mean_average_precision == pytest.approx(expected, abs=1e-12)


def test_no_image_with_a_label_is_an_error():
    with pytest.raises(DataError, match="no test image has a label"):
        mean_average_precision_terms(np.zeros((3, 2), np.uint8), np.zeros((3, 2)))


def test_thresholds_maximise_f1():
    targets, scores = drawn(n=60, k=2)
    for column in range(2):
        target, score = targets[:, column], scores[:, column]
        found = f1_score(target, score >= fit_threshold(target, score))
        best = max(f1_score(target, score >= level) for level in score)
        assert found == best
    assert fit_threshold(np.zeros(3, np.uint8), np.array([0.1, 0.5, 0.9])) == 0.5


def test_calibration_repairs_distorted_probabilities():
    rng = np.random.default_rng(0)
    true = rng.uniform(0.01, 0.99, 5_000)
    target = (rng.random(5_000) < true).astype(np.uint8)
    logits = np.log(true / (1 - true))
    distorted = 1 / (1 + np.exp(-(3 * logits - 2)))
    calibration = fit_calibration(target, distorted)
    calibrated = apply_calibrations(distorted[:, None], [calibration])[:, 0]
    assert np.abs(calibrated - true).mean() < 0.03 < np.abs(distorted - true).mean()
    assert (np.argsort(calibrated, kind="stable") == np.argsort(distorted, kind="stable")).all()


def test_labels_without_calibration_keep_their_probabilities():
    assert fit_calibration(np.zeros(5, np.uint8), np.linspace(0, 1, 5)) is None
    assert fit_calibration(np.array([1, 1, 0, 0], np.uint8), np.array([0.1, 0.2, 0.8, 0.9])) is None
    scores = np.array([[0.0, 0.3, 1.0]])
    assert (apply_calibrations(scores, [None] * 3) == scores).all()


def test_a_report_is_read_back_from_its_json_values():
    targets, scores = drawn()
    calibrations = [LabelCalibration(1.5, 0.1), None, None, None]
    report = evaluated(targets, scores, calibrations=calibrations, warnings=["careful"])
    assert read_report(report.to_dict()) == report
    assert "mAP" in multilabel_summary(report)
    with pytest.raises(DataError, match="not a report"):
        MultiLabelReport.from_dict({"n": 3})


def test_runs_are_compared_by_their_mean_average_precision():
    targets, scores = drawn(n=400)
    worse = scores + np.random.default_rng(3).normal(0, 0.5, scores.shape)
    y = np.array(["".join(map(str, row)) for row in targets])
    runs = {}
    for name, each in (("good", scores), ("noisy", worse)):
        terms = mean_average_precision_terms(targets, each)
        runs[name] = Predictions([str(row) for row in range(400)], y, y, scores=terms)
    (pair,) = compare_precision(runs)
    truth = [average_precision_score(targets, each) for each in (scores, worse)]
    assert pair.metric == "mAP"
    assert pair.difference == pytest.approx(truth[0] - truth[1], abs=1e-12)
    assert pair.significant
    assert pair.interval95[0] > 0
