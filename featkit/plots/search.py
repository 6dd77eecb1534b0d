"""What a search over the settings of a head found, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from featkit.plots.curve import Line, plot_curve
from featkit.plots.labels import as_written, drawable, set_title, shortened

_LONGEST = 60


def plot_search(tried: Sequence[tuple[Mapping[str, Any], float]], *, title: str) -> Figure:
    """Draw the share of right answers on val of every setting that was tried.

    The option with most positive values lies along the axis, and every combination of the others is a line; where no
    option has three of them, the settings are listed as bars, the best first.

    Args:
        tried: options, and their top-1 on val.
        title: wrapped where it is longer than the plot is wide.
    """
    along = _along([options for options, _ in tried])
    if along is None:
        return _bars(tried, title)
    lines: dict[str, list[tuple[float, float]]] = {}
    for options, top1 in tried:
        others = ", ".join(f"{name} {value}" for name, value in options.items() if name != along)
        lines.setdefault(others, []).append((float(options[along]), top1))
    drawn = [Line(name, *np.array(points).T) for name, points in lines.items()]
    return plot_curve(drawn, title=title, x_label=along, y_label="top-1 on val")


def _along(tried: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the option with most values, all of them positive numbers, if it has three or more."""
    values = {name: {options.get(name) for options in tried} for name in tried[0]}
    numbers = {
        name: len(found)
        for name, found in values.items()
        if all(
            isinstance(value, int | float) and not isinstance(value, bool) and value > 0
            for value in found
        )
    }
    best = max(numbers, key=lambda name: numbers[name], default=None)
    return best if best is not None and numbers[best] > 2 else None


def _bars(tried: Sequence[tuple[Mapping[str, Any], float]], title: str) -> Figure:
    order = sorted(range(len(tried)), key=lambda place: tried[place][1])
    names = [
        ", ".join(f"{name} {value}" for name, value in tried[place][0].items()) or "defaults"
        for place in order
    ]
    top1 = [tried[place][1] for place in order]
    figure = Figure(figsize=(7.0, 1.2 + 0.24 * len(tried)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(tried)), [100 * value for value in top1], color="#3182bd", height=0.7)
    shown = [drawable(name) for name in shortened(names, _LONGEST)]
    axes.set_yticks(range(len(tried)), shown, fontsize=8, **as_written())
    axes.set_xlabel("top-1 on val, %")
    low = 100 * min(top1)
    axes.set_xlim(max(0.0, low - max(1.0, 0.3 * (100 * max(top1) - low))), None)
    axes.spines[["top", "right"]].set_visible(False)
    set_title(axes, title, width=7.0)
    return figure
