"""Accuracy over a hyperparameter or a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from featkit.plots.style import (
    add_grid,
    add_legend,
    drawable,
    literal_text,
    percent_axis,
    series_colour,
    set_title,
    shorten,
)

_SIZE = (5.6, 4.0)
_LEGEND_WIDTH = 1.9
_MAX_NAME = 40
_MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Attributes:
        name: shown in the legend.
        x: ``(m,)`` values such as shots or C; positive on a logarithmic axis.
        y: ``(m,)`` fractions, NaN where there is no result.
        intervals: ``(m, 2)`` lower and upper ends, drawn as a band; None for no band.
        muted: whether the line is drawn thin and grey, behind the others.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    intervals: NDArray[np.float64] | None = None
    muted: bool = False


@dataclass(frozen=True)
class Mark:
    """A ring around one point of a figure, named in the legend."""

    name: str
    x: float
    y: float


def plot_curve(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    scale: Literal["log", "linear"] = "log",
    note: str = "",
    legend_title: str = "",
    mark: Mark | None = None,
) -> Figure:
    """Draw fractions in percent over a range of values, such as a learning curve over shots.

    Args:
        lines: one or more; several are distinguished by colour and marker and named in a legend.
            A line with an empty name is not named.
        title: wrapped to the width of the plot.
        x_label: label of the x axis.
        y_label: label of the y axis.
        scale: of the x axis.
        note: written below the title.
        legend_title: written above the names of the lines.
        mark: a point to draw a ring around.
    """
    has_legend = len(lines) > 1 or mark is not None
    width = _SIZE[0] + (_LEGEND_WIDTH if has_legend else 0)
    figure = Figure(figsize=(width, _SIZE[1]), layout="constrained")
    axes = figure.subplots()
    coloured = [line for line in lines if not line.muted]
    for index, line in enumerate(coloured):
        marker = _MARKERS[index % len(_MARKERS)]
        _draw_line(axes, line, series_colour(index, len(coloured)), marker, zorder=3 - index / 100)
    for line in lines:
        if line.muted:
            _draw_line(axes, line, "0.8", None, zorder=1.5)
    if mark is not None:
        axes.plot(
            mark.x,
            mark.y,
            color="black",
            marker="o",
            markersize=11,
            markerfacecolor="none",
            linestyle="none",
            label=drawable(mark.name),
            zorder=4,
        )
    _label_tried_values(axes, np.unique(np.concatenate([line.x for line in lines])), scale)
    percent_axis(axes.yaxis)
    axes.set_xlabel(drawable(x_label), **literal_text())
    axes.set_ylabel(drawable(y_label), **literal_text())
    add_grid(axes)
    if has_legend:
        add_legend(axes, title=legend_title)
    set_title(axes, title, width=_SIZE[0], note=note)
    return figure


def _draw_line(axes: Axes, line: Line, colour: Any, marker: str | None, *, zorder: float) -> None:
    order = np.argsort(line.x, kind="stable")
    x, y = line.x[order], line.y[order]
    axes.plot(
        x,
        y,
        color=colour,
        marker=marker,
        markersize=4.5,
        linewidth=0.8 if line.muted else 1.5,
        zorder=zorder,
        label=shorten([line.name], _MAX_NAME)[0],
    )
    if line.intervals is not None:
        low, high = line.intervals[order].T
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _label_tried_values(
    axes: Axes, values: NDArray[np.float64], scale: Literal["log", "linear"]
) -> None:
    """Put ticks at the values that have a result, as many as fit."""
    axes.set_xscale(scale)
    positions = np.log10(values) if scale == "log" else values
    span = max(positions[-1] - positions[0], 1e-9)
    ticks: list[float] = []
    last = -np.inf
    for value, position in zip(values.tolist(), positions.tolist(), strict=True):
        if position - last > 0.09 * span:
            ticks.append(value)
            last = position
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
