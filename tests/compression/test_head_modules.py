"""Heads as torch modules give the probabilities of the heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.compression.head_modules import make_scores_module
from featkit.errors import HeadError
from featkit.evaluation import Temperature
from featkit.evaluation.calibration import apply_temperature
from featkit.heads import make_head
from featkit.heads.balance import BalancedHead

SPECS = [
    "linear",
    "linear:scale=standard",
    "linear:scale=none",
    "mlp:epochs=2,width=8",
    "prototypical",
    "prototypical:metric=euclidean,scale=l2",
    "prototypical:metric=mahalanobis",
    "svm",
    "svm:kernel=linear,scale=none",
    "svm:gamma=0.3,scale=standard",
    "knn",
    "knn:metric=euclidean,weights=uniform,k=3",
    "knn:weights=temperature,k=20,scale=root",
]


def answers(head, vectors, temperature=None):
    with torch.no_grad():
        return make_scores_module(head, temperature)(torch.from_numpy(vectors)).numpy()


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("spec", SPECS)
def test_a_module_gives_the_probabilities_of_its_head(spec, k, blobs):
    """For rows that it was fitted on, for other rows, and for a row of zeros."""
    x, y = blobs(k)
    head = make_head(spec).fit(x, y)
    rows = np.concatenate([x, np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)])
    found = answers(head, rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, head.predict_proba(rows), atol=2e-6)


@given(value=st.floats(0.05, 20), smoothing=st.sampled_from([2.2e-16, 1e-4, 1e-2]))
@settings(max_examples=20, deadline=None)
def test_a_temperature_is_applied_as_in_a_run(value, smoothing):
    x, others = np.random.default_rng(0).normal(size=(2, 30, 4)).astype(np.float32)
    head = make_head("knn:k=3").fit(x, np.arange(30) % 3)
    temperature = Temperature(value, smoothing)
    expected = apply_temperature(head.predict_proba(others), temperature)
    np.testing.assert_allclose(answers(head, others, temperature), expected, atol=5e-6)


def test_a_corrected_head_is_exported_as_the_inner_head(blobs):
    x, y = blobs()
    head = BalancedHead(head="linear", correction="logit_adjust").fit(x, y)
    np.testing.assert_allclose(answers(head, x), head.predict_proba(x), atol=2e-6)


def test_an_unknown_kind_of_head_is_refused():
    with pytest.raises(HeadError, match="str cannot be exported: choose linear"):
        make_scores_module("nearest", None)
