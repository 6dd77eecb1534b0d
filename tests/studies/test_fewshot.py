"""Few images of each class."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from featkit.errors import DataError
from featkit.studies.fewshot import Setting, episode_scores, learning_curve, to_json
from tests.studies.test_parts import vectors

EASY = vectors(240)
EASY = replace(EASY, x=(EASY.x / 3 + 5 * np.eye(4)[EASY.y]).astype(np.float32))
SETTING = Setting(way=3, query=5, episodes=40)


def test_episodes_are_easy_where_classes_lie_apart_and_luck_where_they_do_not():
    heads = ["prototypical", "knn:k=1", "linear"]
    easy = list(episode_scores(EASY, heads, [1, 5], SETTING))
    assert [(score.head, score.shot) for score in easy] == [(head, shot) for shot in (1, 5) for head in heads]
    assert all(score.mean > 0.95 and score.draws == 40 for score in easy)
    (luck,) = episode_scores(vectors(240), ["prototypical"], [5], SETTING)
    assert luck.interval95[0] < 1 / 3 < luck.interval95[1] or abs(luck.mean - 1 / 3) < 0.05


def test_the_same_seed_gives_the_same_json():
    one, two = (to_json(SETTING, "f", list(episode_scores(EASY, ["linear"], [2], SETTING)), []) for _ in range(2))
    assert one == two
    assert json.loads(one)["setting"]["way"] == 3


def test_a_learning_curve_rises_and_is_judged_on_test():
    noisy = replace(EASY, x=(EASY.x + np.random.default_rng(1).normal(size=EASY.x.shape) * 2.5).astype(np.float32))
    curve = list(learning_curve(noisy, ["prototypical"], [1, 4, 16], draws=4))
    assert [score.shot for score in curve] == [1, 4, 16]
    assert curve[0].mean < curve[-1].mean
    assert all(low <= score.mean <= high for score in curve for low, high in [score.interval95])


def test_more_ways_than_classes_and_a_single_draw_are_refused():
    with pytest.raises(DataError, match="9 ways need 9 classes"):
        list(episode_scores(EASY, ["prototypical"], [1], Setting(way=9)))
    with pytest.raises(DataError, match="two draws"):
        list(learning_curve(EASY, ["linear"], [1], draws=1))
