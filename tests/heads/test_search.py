import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_info

from featkit.errors import HeadError, SpecError
from featkit.heads import HEADS, make_head, svm
from featkit.heads.base import fit_in_threads
from featkit.heads.scaling import SCALES
from featkit.heads.search import Candidate, search

TUNED = ["svm", "knn", "mlp", "prototypical"]


@pytest.fixture(scope="module")
def small():
    """120 training and 40 validation samples, with noise that breaks ties of distances."""
    x, y = load_digits(n_class=5, return_X_y=True)
    x = (x + np.random.default_rng(0).uniform(-0.1, 0.1, x.shape)).astype(np.float32)
    return train_test_split(x, y * 2 + 1, train_size=120, test_size=40, random_state=0, stratify=y)


@pytest.mark.parametrize("name", TUNED)
def test_each_trial_equals_a_fresh_head_with_these_options(name, small):
    """Trials share computations; a random sample of 30 is compared. Trials of svm are not
    calibrated."""
    x, x_val, y, _ = small
    trials = list(HEADS.get(name).trials(x, y, x_val, seed=3))
    for place in np.random.default_rng(0).permutation(len(trials))[:30]:
        options, scores = trials[place]
        head = HEADS.get(name)(**options, **({"seed": 3} if name == "mlp" else {}))
        head.fit(x, y)
        if name == "svm":
            head.calibration_ = np.array([svm.DEFAULT_SLOPE])
        np.testing.assert_allclose(
            scores, head.predict_proba(x_val), atol=1e-6, err_msg=str(options)
        )


@pytest.mark.parametrize("name", TUNED)
def test_search_space_has_every_scaling_and_no_duplicates(name, small):
    x, x_val, y, _ = small
    tried = [tuple(trial.options.items()) for trial in HEADS.get(name).trials(x, y, x_val)]
    assert len(set(tried)) == len(tried)
    assert {dict(options)["scale"] for options in tried} == set(SCALES)


def test_search_skips_k_larger_than_the_training_set(small):
    x, x_val, y, _ = small
    assert {trial.options["k"] for trial in HEADS.get("knn").trials(x, y, x_val)} == {
        1,
        3,
        5,
        10,
        20,
        50,
        100,
    }


def test_svm_search_on_many_rows_compares_approximate_machines(small, monkeypatch):
    x, x_val, y, _ = small
    exact = list(HEADS.get("svm").trials(x, y, x_val))
    monkeypatch.setattr(svm, "MAX_KERNEL_ROWS", 100)
    found = list(HEADS.get("svm").trials(x, y, x_val))
    assert [trial.options for trial in found] == [trial.options for trial in exact]
    alone = HEADS.get("svm")(**found[-1].options).fit(x, y)
    np.testing.assert_allclose(found[-1].scores, alone.predict_proba(x_val), atol=1e-6)


@pytest.mark.parametrize("name", ["svm", "prototypical"])
def test_search_selects_the_best_candidate(name, small):
    x, x_val, y, y_val = small
    seen = []
    found = search(name, x, y, x_val, y_val, progress=seen.append)
    assert tuple(seen) == found.candidates
    best = found.best
    assert best.top1 == max(tried.top1 for tried in found.candidates)
    assert best.nll == min(tried.nll for tried in found.candidates if tried.top1 == best.top1)
    head = make_head(name).set_params(**best.options).fit(x, y)
    assert head.score(x_val, y_val) == pytest.approx(best.top1)


PLUGIN = '''
import numpy as np
from featkit.heads.base import Trial
from featkit.heads.knn import KNNHead
from featkit.heads.linear import LinearHead


class NearestHead(KNNHead):
    """The single nearest neighbour."""

    def __init__(self, *, k=1, metric="euclidean", weights="uniform"):
        super().__init__(k=k, metric=metric, weights=weights)


class FixedHead(LinearHead):
    """Fixed scores."""

    @classmethod
    def trials(cls, x, y, x_val, seed=0):
        for name, first in [("a", 0.6), ("b", 0.7), ("c", 0.7), ("d", 0.4), ("e", 0.0)]:
            yield Trial({"name": name}, np.tile([first, 1 - first], (len(x_val), 1)))
'''


@pytest.fixture
def plugin(install):
    """An installed package that adds two heads."""
    points = "[featkit.heads]\nnearest = two_plugin:NearestHead\nfixed = two_plugin:FixedHead\n"
    install("two_plugin", PLUGIN, points)


def test_plugin_without_trials_is_evaluated_with_defaults(plugin, small):
    """Inherited trials do not count: the options may differ."""
    x, x_val, y, y_val = small
    found = search("nearest", x, y, x_val, y_val)
    assert [tried.options for tried in found.candidates] == [{}]
    assert found.candidates[0].top1 == make_head("nearest").fit(x, y).score(x_val, y_val)


def test_ties_in_top1_are_broken_by_nll_then_by_order(plugin):
    x, y = np.eye(2), np.array([3, 9])
    found = search("fixed", x, y, x, np.array([3, 3]))
    assert found.best_index == 1
    expected = [1, -np.log(0.6)], [1, -np.log(0.7)], [1, -np.log(0.7)], [0, -np.log(0.4)]
    np.testing.assert_allclose([tried[1:3] for tried in found.candidates[:4]], expected)
    assert found.candidates[4].top1 == 0
    assert 30 < found.candidates[4].nll < 40, "zero probabilities are clipped"


@pytest.mark.parametrize("label", [1, 5, 11])
def test_unseen_validation_labels_count_as_errors(plugin, label):
    x, y = np.eye(2), np.array([3, 9])
    known = search("fixed", x, y, x, np.array([3, 3])).candidates[0]
    tried = search("fixed", x, y, x, np.array([3, label])).candidates[0]
    assert tried == Candidate(
        {"name": "a"}, 0.5, pytest.approx((known.nll - np.log(np.finfo(float).eps)) / 2), 0.5
    )


def test_invalid_search_raises_a_one_line_error(small):
    x, x_val, y, y_val = small
    with pytest.raises(HeadError, match=r"^tuning svm needs validation images, but there are none"):
        search("svm", x, y, x_val[:0], y_val[:0])
    with pytest.raises(SpecError, match=r"unknown head 'svn': did you mean svm"):
        search("svn", x, y, x_val, y_val)


def test_fit_in_threads_keeps_order_and_restores_global_settings():
    def work(i):
        with warnings.catch_warnings():
            warnings.warn("stopped early", ConvergenceWarning, stacklevel=1)
            return i, [
                pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"
            ]

    before = threadpool_info(), list(warnings.filters)
    results = list(fit_in_threads(work, range(20)))
    assert [i for i, _ in results] == list(range(20))
    assert all(set(threads) == {1} for _, threads in results)
    assert (threadpool_info(), list(warnings.filters)) == before
