"""Figures of a hyperparameter search."""

from __future__ import annotations

from itertools import product

import pytest

from featkit.plots.files import png_bytes
from featkit.plots.search import plot_search

ALONG_C = [
    ({"C": 10.0**power, "scale": scale}, 0.5 + power / 10)
    for scale in ("root", None)
    for power in range(3)
]


LINES = [
    (scale, metric, weights, 0.8 - 0.01 * place)
    for place, (scale, metric, weights) in enumerate(
        product(
            ("root", "l2", "standard", None),
            ("cosine", "euclidean"),
            ("uniform", "temperature"),
        )
    )
]


def of_knn():
    """Return candidates along k, the best ones first."""
    return [
        (
            {"p": 2, "scale": scale, "metric": metric, "weights": weights, "k": k},
            best - 0.001 * place,
        )
        for scale, metric, weights, best in LINES
        for place, k in enumerate((1, 3, 5, 10, 20))
    ]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_numeric_option_with_most_values_is_the_x_axis():
    figure = plot_search(ALONG_C, title="linear")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "C"
    assert legend_of(axes) == ["root", "none"]
    assert axes.get_legend().get_title().get_text() == "scale"


def test_the_legend_of_many_lines_has_all_that_differs_and_nothing_cut():
    """Options that all candidates share are left out; lines after the first ten are grey."""
    (axes,) = plot_search(of_knn(), title="knn", chosen=3).axes
    assert axes.get_legend().get_title().get_text() == "scale, metric, weights"
    names = legend_of(axes)
    assert names[:10] == [
        f"{scale}, {metric}, {weights}" for scale, metric, weights, _ in LINES[:10]
    ]
    assert names[10:] == ["6 others", "chosen"]
    grey = [line for line in axes.lines if line.get_color() == "0.8"]
    assert len(grey) == 6
    assert not any("…" in name for name in names)


def test_the_chosen_candidate_is_marked_and_named():
    candidates = of_knn()
    (axes,) = plot_search(candidates, title="knn", chosen=3).axes
    ring = next(line for line in axes.lines if line.get_label() == "chosen")
    options, score = candidates[3]
    assert ring.get_xydata().tolist() == [[options["k"], score]]
    named = "chosen: p 2, scale root, metric cosine, weights uniform, k 10 (79.7%)"
    assert " ".join(axes.get_title(loc="left").split()) == f"knn {named}"


def test_the_chosen_bar_is_marked_and_named():
    """Also where another one has the same score."""
    tried = [({"p": 2, "metric": name}, 0.8) for name in ("cosine", "euclidean", "mahalanobis")]
    (axes,) = plot_search(tried, title="head", chosen=1).axes
    ticks = axes.get_yticklabels()
    assert [tick.get_text() for tick in ticks if tick.get_fontweight() == "bold"] == [
        "metric euclidean"
    ]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] == colours[2] != colours[1]
    assert axes.figure.get_suptitle() == "head\nchosen: p 2, metric euclidean (80.0%)"


def test_long_names_of_bars_are_not_cut():
    options = {f"option_{letter}": "a long value" for letter in "abc"}
    tried = [(options, 0.8), (dict.fromkeys(options, "another long value"), 0.7)]
    figure = plot_search(tried, title="head", chosen=0)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_yticklabels()[1].get_text() == ", ".join(f"{a} {b}" for a, b in options.items())
    assert axes.get_window_extent().width > 250


@pytest.mark.parametrize(
    "tried",
    [
        [({"metric": "cosine"}, 0.8), ({"metric": "euclidean"}, 0.7)],
        [({"shrinkage": value}, value) for value in (0.0, 0.1, 0.2)],
        [({}, 0.9)],
    ],
    ids=["words", "with a zero", "defaults"],
)
def test_candidates_without_such_an_option_are_bars_with_the_best_on_top(tried):
    (axes,) = plot_search(tried, title="head").axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == sorted(top1 for _, top1 in tried)


def test_option_names_are_drawn_literally():
    assert png_bytes(plot_search([({"metric": "$x_1$"}, 0.5)], title="$\\frac"))[:4] == b"\x89PNG"
