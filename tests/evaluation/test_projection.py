"""Projections of features, compared with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.manifold import trustworthiness as reference

from featkit.errors import DataError, FeatkitError, SpecError
from featkit.evaluation.projection import MAX_ROWS, project, trustworthiness

PACKAGES = {"tsne": "sklearn", "opentsne": "openTSNE", "umap": "umap"}


def clusters(n=60, d=20):
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(3, d))
    return (centres[np.arange(n) % 3] + rng.normal(size=(n, d))).astype(np.float32)


@pytest.mark.parametrize("k", [1, 5, 12])
def test_trustworthiness_is_that_of_scikit_learn(k):
    rng = np.random.default_rng(1)
    x, positions = rng.normal(size=(50, 8)), rng.normal(size=(50, 2))
    assert trustworthiness(x, positions, k) == pytest.approx(
        reference(x, positions, n_neighbors=k), abs=1e-9
    )


def test_trustworthiness_does_not_depend_on_the_size_of_the_blocks(monkeypatch):
    rng = np.random.default_rng(1)
    x, positions = rng.normal(size=(50, 8)), rng.normal(size=(50, 2))
    whole = trustworthiness(x, positions, 5)
    monkeypatch.setattr("featkit.evaluation.projection._BLOCK_NUMBERS", 350)
    assert trustworthiness(x, positions, 5) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_clusters_stay_apart_and_the_same_seed_gives_the_same_positions(method):
    found = project(clusters(), method, seed=3)
    again = project(clusters(), method, seed=3)
    np.testing.assert_array_equal(found.positions, again.positions)
    assert found.positions.shape == (60, 2)
    assert found.trustworthiness > 0.7
    centres = np.array([found.positions[label::3].mean(axis=0) for label in range(3)])
    spread = found.positions[0::3].std(axis=0).max()
    assert np.linalg.norm(centres[0] - centres[1]) > spread


def test_more_rows_than_the_maximum_are_subsampled():
    found = project(clusters(), "pca", max_rows=40)
    assert len(found.rows) == len(found.positions) == 40
    assert (np.diff(found.rows) > 0).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (clusters(3), "at least four"),
        (np.ones((10, 4)), "all the same"),
        (np.full((10, 4), np.nan), "not finite"),
    ],
)
def test_features_that_cannot_be_projected_are_refused(x, message):
    with pytest.raises(DataError, match=message):
        project(x, "tsne")


# Importing umap compiles functions for ten seconds and more.
@pytest.mark.parametrize(
    "method",
    [
        "tsne",
        pytest.param("opentsne", marks=pytest.mark.slow),
        pytest.param("umap", marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_iterations_are_reported_and_nothing_is_printed(method, capsys):
    pytest.importorskip(PACKAGES[method])
    seen = []
    found = project(clusters(), method, report_iteration=lambda *step: seen.append(step))
    assert seen
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(0 <= done <= total for done, total in seen)
    assert capsys.readouterr() == ("", "")
    np.testing.assert_array_equal(found.positions, project(clusters(), method).positions)


@pytest.mark.long
@pytest.mark.slow
def test_of_a_hundred_thousand_rows_a_stated_number_is_projected():
    x = np.random.default_rng(0).normal(size=(100_000, 3))
    found = project(x, "pca")
    assert len(found.rows) == len(found.positions) == MAX_ROWS
    assert 0 < found.trustworthiness <= 1


def test_an_unknown_method_is_refused():
    with pytest.raises(SpecError, match="tsne"):
        project(clusters(), "isomap")


@pytest.mark.parametrize(("method", "module"), [("umap", "umap"), ("opentsne", "openTSNE")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, method, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(FeatkitError, match="projection"):
        project(clusters(), method)
