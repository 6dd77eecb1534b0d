"""Figures of a hyperparameter search."""

from __future__ import annotations

import pytest

from featkit.plots.files import png_bytes
from featkit.plots.search import plot_search

ALONG_C = [
    ({"C": 10.0**power, "scale": scale}, 0.5 + power / 10)
    for scale in ("root", None)
    for power in range(3)
]


def test_the_numeric_option_with_most_values_is_the_x_axis():
    figure = plot_search(ALONG_C, title="linear")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "C"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "scale root",
        "scale None",
    ]


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
