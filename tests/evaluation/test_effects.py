"""Means, differences and ratios over cells: values, coverage of the intervals."""

from __future__ import annotations

import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t

from featkit.evaluation.compare import compare
from featkit.evaluation.effects import (
    CellScores,
    adjusted,
    average,
    average_accuracies,
    effects,
    mean_ratio,
    score_cells,
)
from featkit.evaluation.intervals import wilson
from featkit.evaluation.predictions import Predictions


def cell(right: np.ndarray, **place: object) -> tuple[dict[str, object], Predictions]:
    """Return a cell; all images are of class 1."""
    return place, Predictions(range(len(right)), np.ones(len(right), int), np.asarray(right, int))


def grid(
    rng: np.random.Generator, n: int = 40, seeds: int = 3
) -> list[tuple[dict[str, object], Predictions]]:
    """Return cells of two backbones, two heads and several seeds; images differ in difficulty."""
    hard = rng.normal(size=n)
    return [
        cell(
            hard + rng.normal(size=n) < 0.5 + 0.4 * better,
            backbone="ab"[better],
            head=head,
            seed=seed,
        )
        for better, head, seed in product((0, 1), "xy", range(seeds))
    ]


def test_a_difference_is_the_mean_over_matched_cells_with_the_variance_of_its_formula() -> None:
    """Compared with the sums of the formula in float64."""
    cells = grid(np.random.default_rng(0))
    (effect,) = effects(score_cells(cells), "backbone", [("b", "a")])
    right = {tuple(place.values()): np.asarray(given.predicted, float) for place, given in cells}
    d = np.array(
        [[right["b", head, seed] - right["a", head, seed] for head in "xy"] for seed in range(3)]
    )
    seeds, _, n = d.shape
    per_image, per_seed, mean = d.mean(axis=(0, 1)), d.mean(axis=(1, 2)), d.mean()
    # Within a head, each cell is centred on its own mean, which is what leaves the seeds out.
    centred = (d - d.mean(axis=2, keepdims=True)).mean(axis=(0, 1))
    assert centred == pytest.approx(per_image - mean)
    over_seeds = np.sum((per_seed - mean) ** 2) / (seeds * (seeds - 1))
    residuals = (d - d.mean(axis=2, keepdims=True)).mean(axis=1) - centred
    interaction = np.sum(residuals**2) / n**2 / (seeds * (seeds - 1))
    centre = n * mean / (n + 2)
    over_images = (np.sum(per_image**2) + 1) / (n + 2) ** 2 - centre**2 / (n + 2)
    variance = over_images + max(0.0, over_seeds - interaction)
    estimated = max(0.0, over_seeds - interaction / 2)
    freedom = (seeds - 1) * variance**2 / estimated**2 if estimated else np.inf

    half = t.ppf(0.975, freedom) * np.sqrt(variance)
    assert (effect.cells, effect.seeds, effect.n) == (6, 3, n)
    assert effect.difference == pytest.approx(mean)
    assert effect.interval95 == pytest.approx((centre - half, centre + half))
    assert effect.p == pytest.approx(2 * t.sf(abs(centre) / np.sqrt(variance), freedom))


def test_one_pair_of_cells_equals_compare() -> None:
    """Interval and p-value are the same."""
    a, b = (np.random.default_rng(seed).random(200) < 0.8 for seed in (0, 1))
    (effect,) = effects(score_cells([cell(a, head="x"), cell(b, head="y")]), "head", [("x", "y")])
    (pair,) = compare({"x": cell(a)[1], "y": cell(b)[1]})
    assert (effect.difference, effect.interval95, effect.p) == (
        pair.difference,
        pair.interval95,
        pair.p,
    )


def test_balanced_accuracy_weights_classes_equally() -> None:
    """Class sizes do not matter."""
    y, predicted = np.array([0] * 8 + [1] * 2), np.array([0] * 8 + [1, 0])
    (outcome,) = score_cells([({}, Predictions(range(10), y, predicted))], "balanced accuracy")
    assert average([outcome]).value == pytest.approx(0.75)
    (outcome,) = score_cells([({}, Predictions(range(10), y, predicted))])
    assert average([outcome]).value == pytest.approx(0.9)


def test_only_cells_that_agree_on_all_other_axes_are_compared() -> None:
    """A cell without a matching cell is ignored."""
    right, wrong = np.ones(20, bool), np.zeros(20, bool)
    cells = [
        cell(right, head="x", backbone="a"),
        cell(right, head="y", backbone="a"),
        cell(wrong, head="y", backbone="b"),
    ]
    (effect,) = effects(score_cells(cells), "head", [("x", "y")])
    assert (effect.difference, effect.cells) == (0, 1)
    assert effect.interval95[0] < 0 < effect.interval95[1]


def test_cells_on_other_images_are_not_compared() -> None:
    """Ids, labels or data sets differ."""
    right = np.ones(3, bool)
    one = ({"head": "x"}, Predictions(["1", "2", "3"], [0, 1, 2], [0, 1, 2]))
    for ids, y in ((["1", "2", "4"], [0, 1, 2]), (["1", "2", "3"], [0, 1, 1])):
        other = ({"head": "y"}, Predictions(ids, y, y))
        assert effects(score_cells([one, other]), "head", [("x", "y")]) == []
    assert (
        effects(score_cells([cell(right, data="p"), cell(right, data="q")]), "data", [("p", "q")])
        == []
    )


@given(st.integers(0, 2**32 - 1))
def test_neither_the_order_of_cells_nor_that_of_images_matters(seed: int) -> None:
    """Names of constant axes do not matter either."""
    rng = np.random.default_rng(seed)
    cells = grid(rng, n=12, seeds=2)
    turned = []
    for place in rng.permutation(len(cells)):
        values, given_ = cells[place]
        rows = rng.permutation(12)
        turned.append(
            (
                {**values, "tune": True},
                Predictions(
                    [given_.ids[row] for row in rows],
                    np.asarray(given_.y)[rows],
                    np.asarray(given_.predicted)[rows],
                ),
            )
        )
    (one,), (other,) = (
        effects(score_cells(given_), "backbone", [("a", "b")]) for given_ in (cells, turned)
    )
    assert (one.difference, *one.interval95, one.p) == pytest.approx(
        (other.difference, *other.interval95, other.p)
    )


def test_swapping_the_levels_changes_the_sign_only() -> None:
    """The better one can be placed first."""
    found = score_cells(grid(np.random.default_rng(1)))
    one, other = effects(found, "backbone", [("a", "b"), ("b", "a")])
    assert one.difference == pytest.approx(-other.difference)
    assert one.interval95 == pytest.approx(tuple(-end for end in reversed(other.interval95)))
    assert one.better_first().difference == other.better_first().difference > 0
    assert one.better_first().a == "b"


def test_holm_correction_increases_p_values() -> None:
    """Corrected p-values are larger and keep their order."""
    found = effects(score_cells(grid(np.random.default_rng(2))), "backbone", [("b", "a")])
    found += effects(score_cells(grid(np.random.default_rng(2))), "head", [("x", "y")])
    ours = adjusted(found)
    assert all(one.p_holm >= one.p for one in ours)
    assert adjusted([]) == []
    assert ours[0].to_dict()["interval95"] == list(ours[0].interval95)


def test_an_average_of_one_cell_is_close_to_wilson() -> None:
    """Both are score-type intervals of a proportion."""
    (outcome,) = score_cells([cell(np.arange(200) < 180)])
    mean = average([outcome])
    assert (mean.value, mean.n, mean.cells) == (0.9, 200, 1)
    assert mean.interval95 == pytest.approx(wilson(180, 200), abs=0.003)


def test_the_interval_over_seeds_includes_their_variance() -> None:
    """Differences between seeds widen the interval; equal seeds do not."""
    alike, apart = (
        average_accuracies([80, 80, 80], [100, 100, 100]),
        average_accuracies([70, 80, 90], [100, 100, 100]),
    )
    assert alike.value == pytest.approx(apart.value)
    assert alike.interval95 == pytest.approx(average_accuracies([80], [100]).interval95)
    assert apart.interval95[0] < alike.interval95[0]


def test_the_interval_of_a_perfect_accuracy_has_a_width() -> None:
    """The interval has a positive width without errors."""
    outcome = scores(np.ones(50))
    low, high = average([outcome, outcome]).interval95
    assert low < 0.95
    assert high == 1


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.3), (5, 0.2)])
def test_intervals_have_their_nominal_coverage(seeds: int, spread: float) -> None:
    """95 % over images and seeds; at least 90 % with 3 seeds."""
    rng, n, repeats = np.random.default_rng(seeds), 300, 300
    scale = np.sqrt(1 + 1 + spread**2)
    true = norm.cdf(1 / scale) - norm.cdf(0.8 / scale)
    held = 0
    for _ in range(repeats):
        hard = rng.normal(size=n)
        cells = [
            cell(hard + rng.normal(size=n) + spread * rng.normal() < mean, head=head, seed=seed)
            for (head, mean), seed in product((("x", 1.0), ("y", 0.8)), range(seeds))
        ]
        (effect,) = effects(score_cells(cells), "head", [("x", "y")])
        held += effect.interval95[0] <= true <= effect.interval95[1]
    assert held / repeats > 0.9


def scores(values: np.ndarray, seed: int = 0) -> CellScores:
    n = len(values)
    same = np.zeros(n, np.int64)
    return CellScores({"seed": seed}, np.arange(n), np.asarray(values, float), np.ones(n), same)


def test_a_ratio_is_that_of_the_means_and_groups_have_equal_weight() -> None:
    """Also if groups have different numbers of cells."""
    half, tenth, all_ = (scores(np.arange(100) < count) for count in (50, 10, 100))
    ratio = mean_ratio([[(tenth, half)]])
    assert ratio is not None
    assert ratio.value == pytest.approx(0.2)
    assert ratio.interval95[0] < 0.2 < ratio.interval95[1]
    mean = mean_ratio([[(tenth, half), (half, half)], [(half, all_)]])
    assert mean is not None
    assert mean.value == pytest.approx((60 / 100 + 50 / 100) / 2)
    assert (mean.cells, mean.n, mean.seeds) == (3, 100, 1)


def test_without_a_denominator_there_is_no_ratio() -> None:
    assert mean_ratio([[(scores(np.ones(5)), scores(np.zeros(5)))]]) is None
    assert mean_ratio([]) is None


def test_two_cells_that_agree_on_every_image_have_a_ratio_with_an_interval() -> None:
    same = scores(np.arange(50) < 40)
    ratio = mean_ratio([[(same, same)]])
    assert ratio is not None
    assert ratio.interval95[0] < ratio.value == 1 < ratio.interval95[1]


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_of_a_ratio_covers_the_true_ratio(seeds: int) -> None:
    """Relative accuracy on corrupted images, in at least 90 % of 300 test sets."""
    rng, n, repeats = np.random.default_rng(seeds), 200, 300
    true = norm.cdf(0.6 / np.sqrt(2)) / norm.cdf(1.2 / np.sqrt(2))
    covered = 0
    for _ in range(repeats):
        hard = rng.normal(size=n)
        pairs = [
            (
                scores(hard + rng.normal(size=n) < 0.6, seed),
                scores(hard + rng.normal(size=n) < 1.2, seed),
            )
            for seed in range(seeds)
        ]
        ratio = mean_ratio([pairs])
        assert ratio is not None
        covered += ratio.interval95[0] <= true <= ratio.interval95[1]
    assert 0.9 < covered / repeats <= 1


def test_the_interval_of_a_balanced_difference_covers_where_classes_differ() -> None:
    """Classes of 80, 60, 40 and 20 images, of very different accuracies."""
    rng, y, covered = np.random.default_rng(0), np.repeat(np.arange(4), [80, 60, 40, 20]), 0
    ids = list(map(str, range(200)))
    accuracies = np.array([[0.95, 0.9, 0.7, 0.4], [0.97, 0.8, 0.6, 0.3]])
    true = float((accuracies[0] - accuracies[1]).mean())
    for _ in range(300):
        cells = []
        for head, accuracy in zip("xy", accuracies, strict=True):
            predicted = np.where(rng.random(200) < accuracy[y], y, (y + 1) % 4)
            cells.append(({"head": head}, Predictions(ids, y, predicted)))
        (effect,) = effects(score_cells(cells, "balanced accuracy"), "head", [("x", "y")])
        covered += effect.interval95[0] <= true <= effect.interval95[1]
    assert 0.92 <= covered / 300 <= 0.985


def balanced_cells(
    sizes: list[int],
    accuracies: list[float],
    rng: np.random.Generator,
    *,
    seeds: int = 1,
    share: float = 1.0,
) -> list[CellScores]:
    """Return cells of one classifier with several seeds; an image is as difficult in each of them.

    Args:
        sizes, accuracies: number of images and expected recall of each class.
        rng: of the difficulty and of the seeds.
        seeds: number of seeds.
        share: fraction of the images that are test images with each seed.
    """
    y = np.repeat(np.arange(len(sizes)), sizes)
    ids = np.array([f"{row}.png" for row in range(len(y))])
    hard = rng.normal(size=len(y))
    limit = norm.ppf(accuracies)[y] * np.sqrt(2)
    cells = []
    for seed in range(seeds):
        right = hard + rng.normal(size=len(y)) < limit
        predicted = np.where(right, y, (y + 1) % len(sizes))
        rows = np.arange(len(y))
        if share < 1:
            rows = np.sort(rng.permutation(len(y))[: round(share * len(y))])
        cells.append(({"seed": seed}, Predictions(ids[rows], y[rows], predicted[rows])))
    return score_cells(cells, "balanced accuracy")


UNEVEN = [160, 80, 40, 30, 20]


@pytest.mark.parametrize(
    ("sizes", "accuracies"),
    [
        (UNEVEN, [0.97, 0.9, 0.8, 0.6, 0.5]),
        (UNEVEN, [0.6, 0.7, 0.8, 0.9, 0.95]),
        ([100, 50, *[12] * 20], [0.95, 0.9, *[0.9, 0.7] * 10]),
        ([4] * 37, [0.9] * 37),
    ],
    ids=["small classes hard", "small classes easy", "many small classes", "classes of 4"],
)
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_of_a_mean_balanced_accuracy_covers_and_is_not_too_wide(
    seeds: int, sizes: list[int], accuracies: list[float]
) -> None:
    """Classes of unequal size: 95 % within the error of 250 test sets, and the width of the spread."""
    rng = np.random.default_rng(99)
    found = [average(balanced_cells(sizes, accuracies, rng, seeds=seeds)) for _ in range(250)]
    true = float(np.mean(accuracies))
    covered = np.mean([each.interval95[0] <= true <= each.interval95[1] for each in found])
    width = np.mean([each.interval95[1] - each.interval95[0] for each in found])
    spread = 2 * 1.96 * np.std([each.value for each in found])
    assert 0.92 <= covered <= 0.99
    assert 0.85 < width / spread < 1.3


def test_seeds_with_different_test_images_are_not_counted_twice() -> None:
    """Two thirds of the variance between random splits is that of their test images."""
    rng, true, covered, widths, values = np.random.default_rng(7), 0.9, 0, [], []
    for _ in range(250):
        mean = average(balanced_cells([150, 150], [true, true], rng, seeds=4, share=0.3))
        covered += mean.interval95[0] <= true <= mean.interval95[1]
        widths.append(mean.interval95[1] - mean.interval95[0])
        values.append(mean.value)
    assert 0.92 <= covered / 250 <= 0.99
    assert 0.9 < np.mean(widths) / (2 * 1.96 * np.std(values)) < 1.4


def test_two_seeds_have_the_interval_over_test_images() -> None:
    """The variance over two seeds is one squared difference: t with one degree of freedom."""
    apart = average_accuracies([926, 853], [1000, 1000])
    low, high = apart.interval95
    assert apart.value == pytest.approx(0.8895)
    assert low < apart.value < high
    assert high - low < 0.045
    three = average_accuracies([926, 853, 890], [1000, 1000, 1000])
    assert three.interval95[0] < low


def test_a_perfect_balanced_accuracy_has_the_interval_of_its_effective_number_of_images() -> None:
    """101 classes of 3 to 239 images, all predicted correctly: as Wilson's, not 97.4 to 100 %."""
    sizes = np.linspace(3, 239, 101).astype(int)
    y = np.repeat(np.arange(101), sizes)
    cells = [({"seed": seed}, Predictions(range(len(y)), y, y)) for seed in range(3)]
    low, high = average(score_cells(cells, "balanced accuracy")).interval95
    effective = 101**2 / np.sum(1 / sizes)
    assert high == 1
    assert low == pytest.approx(wilson(effective, effective)[0], abs=0.002)


def test_classes_of_one_image_do_not_make_the_interval_too_narrow() -> None:
    """Such a class has no variance of its own; that of all classes is used."""
    rng, covered = np.random.default_rng(3), 0
    accuracies = [0.8] * 25
    for _ in range(250):
        mean = average(balanced_cells([*[1] * 20, *[30] * 5], accuracies, rng))
        covered += mean.interval95[0] <= 0.8 <= mean.interval95[1]
    assert covered / 250 >= 0.9


def test_memory_grows_with_the_scores_only() -> None:
    """2,000 bootstrap samples of 50,000 images would take 800 MB."""
    rng = np.random.default_rng(0)
    clean, perturbed = (scores(rng.random(50_000) < accuracy) for accuracy in (0.9, 0.7))
    tracemalloc.start()
    try:
        assert mean_ratio([[(perturbed, clean)]]) is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * clean.scores.nbytes
