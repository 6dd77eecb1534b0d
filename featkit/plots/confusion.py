"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from featkit.evaluation.metrics import most_confused
from featkit.plots.style import literal_text, set_title, shorten

_MAX_COUNTED = 15
_MAX_NAME = 24
_LINE = 14
"""Height of a line in the list of confused pairs, in points."""
_SCALE = PowerNorm(0.5, vmin=0, vmax=1)
_COLOURS = colormaps["Blues"].with_extremes(bad="0.85")
_POINTS_PER_INCH = 72


def plot_confusion(
    confusion: NDArray[np.int64],
    classes: Sequence[str],
    *,
    title: str,
    width: float | None = None,
) -> Figure:
    """Draw a confusion matrix, each row normalized by the size of its true class.

    With up to 15 classes the counts are written into the cells; with more, the most confused pairs
    are listed next to the matrix. Colour is the square root of the row fraction, so that a few
    percent differ from zero. A class without test images has a grey row.

    Args:
        confusion: ``(k, k)`` counts, true class by row, predicted class by column.
        classes: k names, in that order.
        title: wrapped to the width of the matrix.
        width: of the figure, in inches; then there is no list. None for a width that fits.
    """
    k = len(classes)
    has_counts = k <= _MAX_COUNTED
    has_list = not has_counts and width is None
    # Sizes in inches: the matrix, the class names below and left of it, what is next to it.
    list_size = 4.0 if has_list else 1.6
    longest_name = min(_MAX_NAME, max(map(len, classes)))
    if width is None:
        matrix_size = max(2.4, 0.5 * k) if has_counts else min(14.0, max(7.5, 0.108 * k))
        cell = _POINTS_PER_INCH * matrix_size / k
        names_size = _character_width(cell) * longest_name
    else:
        names_size = _character_width(_POINTS_PER_INCH * width / k) * longest_name
        list_size = 0.7
        matrix_size = max(1.0, width - names_size - list_size)
        cell = _POINTS_PER_INCH * matrix_size / k
    figure = Figure(
        figsize=(matrix_size + names_size + list_size, matrix_size + names_size + 1.0),
        layout="constrained",
    )
    if has_list:
        axes, list_axes = figure.subplots(1, 2, width_ratios=[matrix_size, 2.4])
        n_lines = int(_POINTS_PER_INCH * matrix_size / _LINE) - 6
        _list_pairs(list_axes, confusion, classes, lines=n_lines)
        bar_axes = list_axes.inset_axes((0, 0.03, 1, 0.14 / matrix_size))
    else:
        axes = figure.subplots()
        bar_axes = axes.inset_axes((1 + 0.1 / matrix_size, 0, 0.18 / matrix_size, 1))
    if has_counts:
        _write_counts(axes, confusion, cell)
    else:
        _draw_guides(axes, k)
    fractions = _row_fractions(confusion)
    image = axes.imshow(fractions, cmap=_COLOURS, norm=_SCALE, interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="true class", anchor="N")
    figure.colorbar(
        image,
        cax=bar_axes,
        orientation="horizontal" if has_list else "vertical",
        label="fraction of the true class (%)",
        ticks=[0, 0.05, 0.2, 0.5, 1],
        format=PercentFormatter(1, 0, symbol=""),
    )
    _name_ticks(axes, classes, cell)
    set_title(axes, title, width=matrix_size)
    return figure


def _draw_guides(axes: Axes, k: int) -> None:
    """Draw a faint line after every fifth class, to find the names of a cell."""
    lines = np.arange(4.5, k - 1, 5)
    axes.set_xticks(lines, minor=True)
    axes.set_yticks(lines, minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.5)
    axes.tick_params(which="minor", length=0)


def _row_fractions(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return ``(k, k)`` fractions of the row sums, NaN where the sum is 0."""
    totals = confusion.sum(axis=1, keepdims=True)
    fractions: NDArray[np.float64] = np.where(totals > 0, confusion / np.maximum(totals, 1), np.nan)
    return fractions


def _write_counts(axes: Axes, confusion: NDArray[np.int64], cell: float) -> None:
    """Write counts into cells of ``cell`` points, as large as the longest count allows."""
    size = min(10.0, 1.25 * cell / len(str(confusion.max())))
    shades = _SCALE(np.nan_to_num(_row_fractions(confusion)))
    for (row, column), count in np.ndenumerate(confusion):
        colour = "white" if shades[row, column] > 0.6 else "black"
        if count == 0:
            colour = "0.7"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=size)


def _character_width(cell: float) -> float:
    """Return the mean width of a character of the names next to such cells, in inches."""
    return 0.6 * _font_size(cell) / _POINTS_PER_INCH


def _font_size(cell: float) -> float:
    """Return the font size of names next to cells of ``cell`` points, at least a readable one."""
    return float(np.clip(0.75 * cell, 5.5, 9))


def _name_ticks(axes: Axes, classes: Sequence[str], cell: float) -> None:
    """Label every class, or every second, third, ... one if the names would overlap."""
    size = _font_size(cell)
    places = range(0, len(classes), int(np.ceil(1.3 * size / cell)))
    names = shorten([classes[place] for place in places], _MAX_NAME)
    longest = max(map(len, names))
    rotation = 45
    if 0.65 * size * longest < cell:
        rotation = 0
    elif cell < 3 * size:
        rotation = 90
    axes.set_yticks(places, names, fontsize=size, **literal_text())
    axes.set_xticks(
        places,
        names,
        fontsize=size,
        rotation=rotation,
        # A slanted name ends at its tick.
        ha="right" if rotation == 45 else "center",
        rotation_mode="anchor" if rotation == 45 else "default",
        **literal_text(),
    )
    axes.tick_params(length=2)


def _list_pairs(
    axes: Axes, confusion: NDArray[np.int64], classes: Sequence[str], *, lines: int
) -> None:
    """List the most confused pairs of classes."""
    axes.set_axis_off()
    pairs = most_confused(confusion, classes)
    names, totals = shorten(classes, _MAX_NAME), confusion.sum(axis=1)
    _write_line(axes, 0, "", "Most confused: true → predicted" if pairs else "No confused classes")
    for line, (true, predicted) in enumerate(pairs[:lines], start=1):
        count = f"{confusion[true, predicted]} of {totals[true]}"
        _write_line(axes, line, count, f"{names[true]} → {names[predicted]}")
    if len(pairs) > lines:
        _write_line(axes, lines + 1, "", f"and {len(pairs) - lines} more pairs")


def _write_line(axes: Axes, line: int, left: str, right: str) -> None:
    for text, across, side in ((left, 44, "right"), (right, 52 if left else 0, "left")):
        axes.annotate(
            text,
            (0, 1),
            (across, -_LINE * line),
            xycoords="axes fraction",
            textcoords="offset points",
            ha=side,
            va="top",
            fontsize=8.5,
            **literal_text(),
        )
