"""Few-shot episodes and learning curves."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from featkit.errors import DataError
from featkit.evaluation.intervals import wilson
from featkit.studies.fewshot import (
    EpisodeConfig,
    curve_shots,
    episode_scores,
    learning_curve,
    read_learning_curve,
    to_json,
)

SETTING = EpisodeConfig(way=3, query=5, episodes=40)


@pytest.fixture
def easy(vectors):
    return vectors(240, apart=12.0)


@pytest.mark.slow
def test_episodes_of_separated_classes_are_easy_and_of_others_at_chance(easy, vectors):
    heads = ["prototypical", "knn:k=1", "linear"]
    found = list(episode_scores(easy, heads, [1, 5], SETTING))
    assert [(score.head, score.shot) for score in found] == [
        (head, shot) for shot in (1, 5) for head in heads
    ]
    assert all(score.mean > 0.95 and score.draws == 40 for score in found)
    (luck,) = episode_scores(vectors(240), ["prototypical"], [5], SETTING)
    assert luck.interval95[0] < 1 / 3 < luck.interval95[1] or abs(luck.mean - 1 / 3) < 0.05


@pytest.mark.slow
def test_the_same_seed_gives_the_same_json(easy):
    one, two = (
        to_json(SETTING, "f", list(episode_scores(easy, ["linear"], [2], SETTING)), [])
        for _ in range(2)
    )
    assert one == two
    assert json.loads(one)["setting"]["way"] == 3


def test_a_learning_curve_rises_with_the_number_of_images(vectors):
    curve = list(learning_curve(vectors(240, apart=1.5), ["prototypical"], [1, 4, 16], draws=4))
    assert [score.shot for score in curve] == [1, 4, 16]
    assert curve[0].mean < curve[-1].mean
    assert all(low <= score.mean <= high for score in curve for low, high in [score.interval95])


def test_more_ways_than_classes_and_a_single_draw_are_errors(easy):
    with pytest.raises(DataError, match="9 ways need 9 classes"):
        list(episode_scores(easy, ["prototypical"], [1], EpisodeConfig(way=9)))
    with pytest.raises(DataError, match="two draws"):
        list(learning_curve(easy, ["linear"], [1], draws=1))


@pytest.mark.parametrize("draws", [2, 5])
def test_the_interval_of_a_learning_curve_includes_the_sample_of_test_images(vectors, draws):
    """Every draw gives the same accuracy on well-separated classes but for one of 20 test images."""
    source = vectors(60, apart=12.0)
    wrong = source.x.copy()
    wrong[0] = source.x[1]  # a test image of class 0 that looks like one of class 1
    (score,) = learning_curve(replace(source, x=wrong), ["prototypical"], [8], draws=draws)
    assert score.n == 20
    assert score.mean == 0.95
    low, high = score.interval95
    assert (low, high) == pytest.approx(wilson(19, 20), abs=0.03)


@pytest.mark.parametrize(
    ("counts", "shots"),
    [
        ([], [1]),
        ([1, 1], [1]),
        ([6, 6, 6], [1, 2, 5, 6]),
        ([3, 30, 31], [1, 2, 5, 10, 20, 31]),
        ([3, 30, 310], [1, 2, 5, 10, 20, 50]),
    ],
)
def test_a_learning_curve_reaches_the_median_number_of_images_of_a_class(counts, shots):
    labels = np.repeat(np.arange(len(counts)), counts)
    assert curve_shots(labels) == shots


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as a few-shot study"),
        ("{}", "cannot be read as a few-shot study"),
        ('{"curve": 3}', "cannot be read as a few-shot study"),
        ('{"curve": [{"head": "knn"}]}', "cannot be read as a few-shot study"),
        ('{"curve": []}', "has no learning curve"),
    ],
)
def test_a_study_without_a_curve_is_named(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_learning_curve(tmp_path)
