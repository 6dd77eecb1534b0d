"""Heads with a probability for each of several labels."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from featkit.errors import HeadError
from featkit.heads import make_head
from featkit.heads.base import InvalidFeaturesError, UnfitDataError
from featkit.heads.multilabel import MultiLabelHead, check_multilabel, multilabel_trials
from featkit.heads.persist import load_head, save_head
from featkit.heads.scaling import apply_scale

HEADS = ["linear", "svm", "knn", "mlp:width=32"]


def data(n=150, d=8, k=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)).astype(np.float32)
    targets = (x @ rng.standard_normal((d, k)) + 0.5 * rng.standard_normal((n, k)) > 0.5).astype(
        np.uint8
    )
    return x[:100], targets[:100], x[100:], targets[100:]


@pytest.mark.parametrize("spec", HEADS)
def test_every_head_learns_labels_and_is_stored_without_pickle(spec, tmp_path):
    x, targets, x_test, test = data()
    head = MultiLabelHead(head=spec).fit(x, targets)
    scores = head.predict_proba(x_test)
    assert scores.shape == test.shape
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert average_precision_score(test, scores) > test.mean() + 0.2
    save_head(head, tmp_path / "head.skops")
    loaded = load_head(tmp_path / "head.skops")
    assert (loaded.predict_proba(x_test) == scores).all()


def test_linear_is_logistic_regression_of_each_label():
    x, targets, x_test, _ = data()
    head = MultiLabelHead(head="linear").fit(x, targets)
    inner = head.heads_[0]
    scaled, scaled_test = (
        apply_scale(part, inner.scale, inner.centre_, inner.spread_).astype(float)
        for part in (x, x_test)
    )
    for column in range(3):
        expected = LogisticRegression(C=20, tol=1e-8, max_iter=10_000)
        expected.fit(scaled, targets[:, column])
        found = head.predict_proba(x_test)[:, column]
        assert np.allclose(found, expected.predict_proba(scaled_test)[:, 1], atol=2e-3)


def test_svm_is_the_binary_head_of_each_label():
    x, targets, x_test, _ = data()
    scores = MultiLabelHead(head="svm").fit(x, targets).predict_proba(x_test)
    for column in range(3):
        binary = make_head("svm").fit(x, targets[:, column].astype(int))
        assert (scores[:, column] == binary.predict_proba(x_test)[:, 1]).all()


def test_knn_scores_are_the_shares_of_the_votes_with_a_label():
    x, targets, x_test, _ = data()
    scores = MultiLabelHead(head="knn:k=5,weights=uniform").fit(x, targets).predict_proba(x_test)
    for column in range(3):
        binary = make_head("knn:k=5,weights=uniform").fit(x, targets[:, column].astype(int))
        assert np.allclose(scores[:, column], binary.predict_proba(x_test)[:, 1], atol=2e-4)


@pytest.mark.parametrize("name", ["linear", "svm", "knn"])
def test_candidates_of_the_search_have_scores_for_each_label(name):
    x, targets, x_test, test = data()
    trials = list(multilabel_trials(name, x, targets, x_test))
    assert len({str(trial.options) for trial in trials}) == len(trials) > 1
    best = max(average_precision_score(test, trial.scores) for trial in trials)
    assert best > test.mean() + 0.2


def test_prototypical_says_that_it_cannot():
    with pytest.raises(HeadError, match=r"prototypical .* several labels: use linear, svm, knn"):
        check_multilabel("prototypical")


def test_a_label_that_all_images_have_is_an_error():
    x, targets, _, _ = data()
    targets[:, 1] = 1
    with pytest.raises(UnfitDataError, match="all of 100 training images have label 1"):
        MultiLabelHead().fit(x, targets)


def test_features_of_another_dimension_are_an_error():
    x, targets, _, _ = data()
    head = MultiLabelHead().fit(x, targets)
    with pytest.raises(InvalidFeaturesError, match="features"):
        head.predict_proba(x[:, :3])


def test_a_changed_head_is_refused(tmp_path):
    x, targets, _, _ = data()
    head = MultiLabelHead(head="knn").fit(x, targets)
    head.label_sets_ = head.label_sets_[:, :2]
    save_head(head, tmp_path / "head.skops")
    with pytest.raises(HeadError, match="label_sets_"):
        load_head(tmp_path / "head.skops")
