"""Curves of accuracy over a range of values."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from featkit.plots.curve import Line, plot_curve
from featkit.plots.files import png_bytes

SHOTS = np.array([1.0, 2, 5, 10, 20])


def line(name: str = "svm", x: np.ndarray = SHOTS) -> Line:
    y = 0.9 - 0.3 / np.arange(1, len(x) + 1)
    return Line(name, x, y, np.stack([y - 0.02, y + 0.01], axis=1))


def draw(lines: list[Line]) -> Figure:
    return plot_curve(lines, title="$t$", x_label="images of each class", y_label="top-1")


def texts(figure: Figure) -> list[str]:
    return [artist.get_text() for artist in figure.findobj(Text)]


def test_a_line_is_sorted_by_x_and_has_an_interval_band() -> None:
    """Whatever the order of the input."""
    given, order = line(), [3, 1, 0, 4, 2]
    turned = Line("svm", given.x[order], given.y[order], given.intervals[order])
    axes = draw([turned]).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), np.stack([given.x, given.y], axis=1))
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in zip(given.x, given.intervals[:, 1], strict=True)} <= set(
        map(tuple, band)
    )
    assert axes.get_xscale() == "log"


def test_only_values_with_results_have_ticks() -> None:
    """As many as fit."""
    figure = draw([line()])
    figure.draw_without_rendering()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        "1",
        "2",
        "5",
        "10",
        "20",
    ]
    dense = draw([line(x=np.arange(1.0, 100))])
    dense.draw_without_rendering()
    ends = [label.get_window_extent() for label in dense.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(ends))


def test_several_lines_differ_in_name_colour_and_marker() -> None:
    """A single one needs no legend."""
    axes = draw([line("linear"), line("$svm$"), line("猫")]).axes[0]
    assert (
        len({drawn.get_color() for drawn in axes.lines})
        == len({drawn.get_marker() for drawn in axes.lines})
        == 3
    )
    assert axes.get_legend().get_texts()[1].get_text() == "$svm$"
    assert not axes.get_legend().get_texts()[1].get_parse_math()
    assert draw([line()]).axes[0].get_legend() is None


@pytest.mark.parametrize(
    "lines",
    [
        [line()],
        [line("$x$" * 40), line("猫\n")],
        [Line("one", np.array([5.0]), np.array([0.5]))],
        [Line("gap", SHOTS, np.array([0.5, np.nan, 0.6, 0.7, 0.7]))],
        [line(str(place)) for place in range(14)],
        [line(x=10.0 ** np.arange(-4, 5))],
    ],
)
def test_any_lines_are_drawn_reproducibly_without_warnings(lines: list[Line]) -> None:
    """Also a single value, missing results, many lines."""
    first, second = (png_bytes(draw(lines)) for _ in range(2))
    assert first == second
