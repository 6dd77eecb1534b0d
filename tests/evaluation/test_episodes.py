"""Few-shot episodes."""

from __future__ import annotations

import time

import numpy as np
import pytest

from featkit.errors import DataError, SpecError
from featkit.evaluation.episodes import run_episodes
from featkit.heads import make_head

HEADS = ["prototypical", "prototypical:metric=euclidean", "knn:k=1"]


def blobs(
    n: int = 400, classes: int = 8, d: int = 16, spread: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    """Return features around class means, with labels that have gaps and a negative value."""
    rng = np.random.default_rng(0)
    means, codes = rng.normal(size=(classes, d)), np.arange(n) % classes
    return (means[codes] + spread * rng.normal(size=(n, d))).astype(np.float32), 3 * codes - 4


def with_head(spec: str):
    """Return a function that fits the head on each episode."""
    return lambda support, labels, queries: (
        make_head(spec, seed=0).fit(support, labels).predict(queries)
    )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shot", [1, 5])
def test_many_episodes_at_once_equal_the_head_episode_by_episode(head: str, shot: int) -> None:
    """Every accuracy is equal."""
    x, y = blobs()
    options = {"shot": shot, "episodes": 20, "query": 7}
    at_once, one_by_one = (
        run_episodes(x, y, head, **options),
        run_episodes(x, y, with_head(head), **options),
    )
    np.testing.assert_array_equal(at_once.accuracies, one_by_one.accuracies)
    assert 0.3 < at_once.mean < 1


def test_support_and_query_images_are_disjoint_and_of_the_same_classes() -> None:
    """The head gets five labels and the requested number of rows, without repetition."""
    x, y = np.arange(400.0)[:, None], np.arange(400) % 8

    def look(support, labels, queries):
        rows = np.concatenate([support, queries]).astype(int).ravel()
        assert len(np.unique(rows)) == 5 * (3 + 4)
        np.testing.assert_array_equal(rows[:15] % 8, labels)
        assert np.unique(labels, return_counts=True)[1].tolist() == [3] * 5
        assert set(rows[15:] % 8) == set(labels)
        return queries.astype(int).ravel() % 8

    assert run_episodes(x, y, look, shot=3, query=4, episodes=20).mean == 1


def test_the_interval_is_the_mean_and_1_96_standard_errors() -> None:
    """It is clipped to 0..1."""
    result = run_episodes(*blobs(), episodes=200)
    half = 1.96 * result.accuracies.std(ddof=1) / np.sqrt(200)
    assert result.interval95 == pytest.approx((result.mean - half, result.mean + half))
    assert run_episodes(*blobs(spread=0.01), episodes=5).interval95 == (1, 1)


def test_the_same_seed_gives_the_same_first_episodes() -> None:
    """Another seed gives other episodes."""
    x, y = blobs()
    few, many, other = (
        run_episodes(x, y, episodes=n, seed=seed) for n, seed in ((30, 1), (70, 1), (30, 2))
    )
    np.testing.assert_array_equal(many.accuracies[:30], few.accuracies)
    assert not np.array_equal(other.accuracies, few.accuracies)


def test_label_values_do_not_matter() -> None:
    """Only their order matters."""
    x, y = blobs()
    np.testing.assert_array_equal(
        run_episodes(x, y).accuracies, run_episodes(x, 10 * y + 3).accuracies
    )


def test_progress_is_reported_up_to_the_last_episode() -> None:
    """Progress is reported in blocks."""
    told: list[int] = []
    run_episodes(*blobs(), episodes=120, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 120


def test_too_many_ways_are_refused_with_the_number_of_usable_classes() -> None:
    """Classes with too few images for shots and queries are excluded."""
    x, y = blobs(n=160)
    y[y == -4] = -1
    with pytest.raises(
        DataError, match=r"8 ways need 8 classes of 20 images .* 7 of 7 classes have that many"
    ):
        run_episodes(x, y, way=8)
    with pytest.raises(DataError, match=r"5 ways need 5 classes of 30 images .* 1 of 7"):
        run_episodes(x, y, query=25)


@pytest.mark.parametrize("change", [{"way": 1}, {"shot": 0}, {"query": 0}, {"episodes": 1}])
def test_numbers_too_small_for_an_episode_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(DataError, match="give at least"):
        run_episodes(*blobs(), **change)


def test_an_unknown_head_is_refused_with_those_that_are_known() -> None:
    """The most similar name is suggested."""
    with pytest.raises(SpecError, match="did you mean prototypical"):
        run_episodes(*blobs(), "prototypcal")


def test_zero_features_do_not_divide_by_zero() -> None:
    """A pruned network may return a zero vector."""
    _, y = blobs()
    assert run_episodes(np.zeros((400, 4)), y, episodes=5).mean == pytest.approx(0.2)


def test_a_thousand_episodes_take_less_than_two_seconds() -> None:
    """8,677 features of length 512, 5 ways, 5 shots, 15 queries (0.15 s when written)."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8677, 512)).astype(np.float32), rng.integers(0, 101, 8677)
    start = time.perf_counter()
    run_episodes(x, y)
    assert time.perf_counter() - start < 2
