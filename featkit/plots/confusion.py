"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
_SCALE = PowerNorm(0.5, vmin=0, vmax=1)
_COLOURS = colormaps["Blues"].with_extremes(bad="0.85")


def plot_confusion(confusion: NDArray[np.int64], classes: Sequence[str], *, title: str) -> Figure:
    """Draw a confusion matrix, each row normalized by the size of its true class.

    With up to 15 classes the counts are written into the cells; with more, the most confused pairs
    are listed beside the matrix. Colour is the square root of the row fraction, so that a few
    percent differ from zero. A class without test images has a grey row.

    Args:
        confusion: ``(k, k)`` counts, true class by row, predicted class by column.
        classes: k names, in that order.
        title: wrapped to the width of the matrix.
    """
    k = len(classes)
    side = max(2.4, 0.5 * k) if k <= _MAX_COUNTED else min(14.0, max(7.5, 0.108 * k))
    names = 0.6 * _size(72 * side / k) / 72 * min(_MAX_NAME, max(map(len, classes)))
    figure = Figure(
        figsize=(side + names + (1.6 if k <= _MAX_COUNTED else 4.0), side + names + 1.0),
        layout="constrained",
    )
    bar: dict[str, Any] = {
        "ticks": [0, 0.05, 0.2, 0.5, 1],
        "format": PercentFormatter(1, 0, symbol=""),
    }
    if k <= _MAX_COUNTED:
        axes = figure.subplots()
        _write_counts(axes, confusion, 72 * side / k)
        bar |= {"cax": axes.inset_axes((1 + 0.1 / side, 0, 0.18 / side, 1))}
    else:
        axes, beside = figure.subplots(1, 2, width_ratios=[side, 2.4])
        _list_pairs(beside, confusion, classes, lines=int(72 * side / _LINE) - 6)
        _rule(axes, k)
        bar |= {"cax": beside.inset_axes((0, 0.03, 1, 0.14 / side)), "orientation": "horizontal"}
    image = axes.imshow(
        _row_fractions(confusion), cmap=_COLOURS, norm=_SCALE, interpolation="nearest"
    )
    axes.set(xlabel="predicted class", ylabel="true class", anchor="N")
    figure.colorbar(image, label="fraction of the true class (%)", **bar)
    _name_ticks(axes, classes, 72 * side / k)
    set_title(axes, title, width=side)
    return figure


def _rule(axes: Axes, k: int) -> None:
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
        colour = "0.7" if count == 0 else "white" if shades[row, column] > 0.6 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=size)


def _size(cell: float) -> float:
    """Return the font size of names beside cells of ``cell`` points, at least a readable one."""
    return float(np.clip(0.75 * cell, 5.5, 9))


def _name_ticks(axes: Axes, classes: Sequence[str], cell: float) -> None:
    """Label every class, or every second, third, ... one if the names would overlap."""
    size = _size(cell)
    places = range(0, len(classes), int(np.ceil(1.3 * size / cell)))
    names = shorten([classes[place] for place in places], _MAX_NAME)
    longest = max(map(len, names))
    turned = 0 if 0.65 * size * longest < cell else 90 if cell < 3 * size else 45
    axes.set_yticks(places, names, fontsize=size, **literal_text())
    across: dict[str, Any] = {
        "rotation": turned,
        "ha": "right" if turned == 45 else "center",
        "rotation_mode": _MODES[turned],
    }
    axes.set_xticks(places, names, fontsize=size, **across, **literal_text())
    axes.tick_params(length=2)


_MODES = {0: "default", 45: "anchor", 90: "default"}


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
