from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from featkit.plots.files import png_bytes
from featkit.plots.heatmap import plot_heatmap

VALUES = np.array([[0.912, 0.875], [np.nan, 0.5], [0.7, np.nan]])
ROWS, COLUMNS = ["resnet18", "resnet50", "random:0 (untrained)"], ["svm:C=9,kernel=rbf", "k$n$n 猫"]


def texts(figure: Figure) -> list[str]:
    return [artist.get_text() for artist in figure.findobj(Text)]


def hatched(figure: Figure) -> list[tuple[float, float]]:
    return [
        patch.get_xy()
        for patch in figure.axes[0].patches
        if isinstance(patch, Rectangle) and patch.get_hatch()
    ]


def test_each_cell_shows_its_value_in_percent_and_its_interval() -> None:
    intervals = np.stack([VALUES - 0.02, VALUES + 0.01], axis=-1)
    figure = plot_heatmap(
        VALUES, ROWS, COLUMNS, title="all runs", label="top-1", intervals=intervals
    )
    expected = {
        "91.2",
        "89.2 to 92.2",
        "50.0",
        "48.0 to 51.0",
        "all runs",
        "top-1 (%)",
        "resnet50",
        "svm:C=9,kernel=rbf",
    }
    assert expected <= set(texts(figure))
    assert not any("nan" in text for text in texts(figure))


def test_cells_without_a_result_are_hatched_and_labelled() -> None:
    words = [["", ""], ["failed", ""], ["", "skipped"]]
    figure = plot_heatmap(VALUES, ROWS, COLUMNS, title="t", label="top-1", missing=words)
    assert hatched(figure) == [(-0.5, 0.5), (0.5, 1.5)]
    assert {"failed", "skipped"} <= set(texts(figure))
    assert (
        texts(plot_heatmap(VALUES, ROWS, COLUMNS, title="t", label="top-1")).count("no result") == 2
    )


@pytest.mark.parametrize(
    "values",
    [
        VALUES,
        np.array([[0.9]]),
        np.full((3, 2), np.nan),
        np.full((12, 9), 0.25),
        np.array([[0.0, 1.0]]),
    ],
)
def test_any_grid_is_drawn_reproducibly_without_warnings(values: np.ndarray) -> None:
    rows, columns = (ROWS * 4)[: len(values)], (COLUMNS * 5)[: values.shape[1]]
    first, second = (
        png_bytes(plot_heatmap(values, rows, columns, title="$t$", label="top-1")) for _ in range(2)
    )
    assert first == second


def test_long_names_fit() -> None:
    """matplotlib would warn otherwise."""
    png_bytes(plot_heatmap(np.array([[0.5]]), ["r" * 90], ["c" * 90], title="t", label="top-1"))


def test_small_differences_do_not_span_the_whole_colour_scale() -> None:
    figure = plot_heatmap(np.array([[0.9, 0.91]]), ["a"], ["b", "c"], title="t", label="top-1")
    assert figure.axes[0].images[0].get_clim() == pytest.approx((88, 93))


@pytest.mark.parametrize(
    ("values", "limits"),
    [([0.99, 1.0], (95, 100)), ([0.0, 0.01], (0, 5)), ([0.0, 1.0], (0, 100)), ([1.0], (95, 100))],
)
def test_the_colour_scale_stays_within_0_and_100(
    values: list[float], limits: tuple[float, float]
) -> None:
    names = [str(value) for value in values]
    figure = plot_heatmap(np.array([values]), ["a"], names, title="t", label="top-1")
    assert figure.axes[0].images[0].get_clim() == pytest.approx(limits)
