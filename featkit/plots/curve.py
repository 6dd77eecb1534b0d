"""Results along a range of settings, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter
from numpy.typing import NDArray

from featkit.plots.labels import as_written, drawable, set_title, shortened

_SIZE = (5.6, 3.6)
_LONGEST = 40
_MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Attributes:
        name: in the legend.
        x: ``(m,)`` settings, such as shots or C; positive on a logarithmic axis.
        y: ``(m,)`` fractions, NaN where there is no result.
        intervals: ``(m, 2)`` lower and upper ends, drawn as a band; None for a line without.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    intervals: NDArray[np.float64] | None = None


def plot_curve(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    scale: Literal["log", "linear"] = "log",
) -> Figure:
    """Draw shares in percent over a range of settings, such as a learning curve over shots or a search over C.

    Args:
        lines: one or more; each has its own colour and marker, and is named where there are several.
        title: wrapped where it is longer than the plot is wide.
        x_label: what the settings are.
        y_label: what the fractions are.
        scale: of the settings.
    """
    figure = Figure(
        figsize=(_SIZE[0] + (1.9 if len(lines) > 1 else 0), _SIZE[1] + 0.4), layout="constrained"
    )
    axes = figure.subplots()
    colours = colormaps["tab10" if len(lines) <= 10 else "turbo"]
    names = shortened([line.name for line in lines], _LONGEST)
    for place, (line, name) in enumerate(zip(lines, names, strict=True)):
        colour = colours(place if len(lines) <= 10 else place / (len(lines) - 1))
        order = np.argsort(line.x, kind="stable")
        marker = _MARKERS[place % len(_MARKERS)]
        axes.plot(
            line.x[order],
            line.y[order],
            color=colour,
            marker=marker,
            markersize=4.5,
            linewidth=1.5,
            label=name,
        )
        if line.intervals is not None:
            low, high = line.intervals[order].T
            axes.fill_between(line.x[order], low, high, color=colour, alpha=0.15, linewidth=0)
    _name_ticks(axes, np.unique(np.concatenate([line.x for line in lines])), scale)
    axes.yaxis.set_major_formatter(PercentFormatter(1, None, " %"))
    axes.set_xlabel(drawable(x_label), **as_written())
    axes.set_ylabel(drawable(y_label), **as_written())
    axes.grid(color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        legend = axes.legend(
            loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8
        )
        for text in legend.get_texts():
            text.set(**as_written())
    set_title(axes, title, width=_SIZE[0])
    return figure


def _name_ticks(axes: Axes, settings: NDArray[np.float64], scale: Literal["log", "linear"]) -> None:
    """Name the settings that were tried, as many of them as have room, and no others."""
    axes.set_xscale(scale)
    places = np.log10(settings) if scale == "log" else settings
    span = max(places[-1] - places[0], 1e-9)
    named: list[float] = []
    last = -np.inf
    for setting, place in zip(settings.tolist(), places.tolist(), strict=True):
        if place - last > 0.09 * span:
            named.append(setting)
            last = place
    axes.xaxis.set_major_locator(FixedLocator(named))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
