"""Rejection of images of none of the classes."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from featkit.errors import DataError
from featkit.evaluation.intervals import wilson
from featkit.evaluation.unknown import score_unknown, unknown_sentence


def test_the_area_is_that_of_scikit_learn() -> None:
    """With ties within and between both kinds of images."""
    rng = np.random.default_rng(0)
    known, unknown = rng.integers(3, 12, 80) / 12, rng.integers(0, 9, 50) / 12
    found = score_unknown(known, unknown, data="other", threshold=0.5)
    y = np.r_[np.ones(80), np.zeros(50)]
    assert found.auroc == pytest.approx(roc_auc_score(y, np.r_[known, unknown]), abs=1e-12)
    assert (found.n, found.n_test) == (50, 80)
    assert found.accepted == np.sum(unknown >= 0.5)
    assert found.accepted_interval95 == wilson(found.accepted, 50)


@pytest.mark.parametrize("spread", [0.4, 1.0])
@pytest.mark.parametrize(("n", "m", "area"), [(100, 60, 0.9), (300, 40, 0.97), (60, 200, 0.995)])
def test_intervals_of_the_area_cover_it(n: int, m: int, area: float, spread: float) -> None:
    """400 simulated sets of normal confidences, those of test images spread less, or the same."""
    rng, covered = np.random.default_rng(1), 0
    shift = norm.ppf(area) * sqrt(1 + spread**2)
    for _ in range(400):
        known, unknown = rng.normal(shift, spread, n), rng.normal(0, 1, m)
        low, high = score_unknown(known, unknown, data="").interval95
        covered += low <= area <= high
    assert covered / 400 >= 0.9


def test_groups_of_test_images_widen_the_interval() -> None:
    """300 simulated sets of 40 groups of eight images with a common offset; one group says nothing."""
    rng, clustered, independent = np.random.default_rng(2), 0, 0
    groups = np.repeat(np.arange(40), 8)
    area = norm.cdf(1.5 / sqrt(1 + 1 + 1))
    for _ in range(300):
        known = 1.5 + rng.normal(size=40)[groups] + rng.normal(size=320)
        unknown = rng.normal(size=400)
        low, high = score_unknown(known, unknown, data="", groups=groups).interval95
        clustered += low <= area <= high
        low, high = score_unknown(known, unknown, data="").interval95
        independent += low <= area <= high
    assert clustered / 300 >= 0.93
    assert independent / 300 < 0.8
    single = score_unknown(known, unknown, data="", groups=np.zeros(320, np.int64))
    assert single.interval95 == (0, 1)


@pytest.mark.parametrize(("known", "area"), [(0.9, 1.0), (0.1, 0.0)])
def test_separated_confidences_have_an_interval(known: float, area: float) -> None:
    """Its width depends on the smaller number of images."""
    found = score_unknown(np.full(40, known), np.full(10, 0.5), data="")
    low, high = found.interval95
    assert found.auroc == area
    assert low <= area <= high
    assert 0.02 < high - low < 0.4


def test_one_image_of_each_kind_tells_little() -> None:
    low, high = score_unknown(np.array([0.9]), np.array([0.1]), data="").interval95
    assert low < 0.3
    assert high == 1


def test_without_images_there_is_no_result() -> None:
    with pytest.raises(DataError, match="at least one test image"):
        score_unknown(np.array([]), np.array([0.5]), data="")


def test_the_sentence_has_numbers_and_intervals() -> None:
    known, unknown = np.linspace(0.5, 1, 50), np.linspace(0, 0.7, 20)
    found = score_unknown(known, unknown, data="/a/other", threshold=0.6)
    text = unknown_sentence(found)
    assert text.startswith("20 images of none of the classes (other): AUROC ")
    assert "of the confidences of 50 test images; 15.0 % (" in text
    assert "--reject chooses a threshold" in unknown_sentence(
        score_unknown(known, unknown, data="")
    )
