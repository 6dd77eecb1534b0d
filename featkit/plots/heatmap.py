"""Heat maps of results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from featkit.plots.style import literal_text, set_title, shorten

_COLOURS = colormaps["Blues"]
_CELL = (1.15, 0.55)
_MAX_NAME = 48


def plot_heatmap(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    label: str,
    intervals: NDArray[np.float64] | None = None,
    missing: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Draw fractions as coloured cells with their values in percent.

    Args:
        values: ``(r, c)`` fractions, NaN for a cell without a result, which is hatched.
        rows: r names.
        columns: c names.
        title: wrapped to the width of the grid.
        label: name of the values, next to the colour bar.
        intervals: ``(r, c, 2)`` lower and upper ends, written below the values.
        missing: ``(r, c)`` words for the cells without a result, such as ``failed``; ``no result``
            if None.
    """
    width, height = _CELL[0] * len(columns), _CELL[1] * len(rows)
    left, below = (0.075 * min(_MAX_NAME, max(map(len, names))) for names in (rows, columns))
    figure = Figure(
        figsize=(width + max(left, below) + 1.6, height + below / 2 + 1.2), layout="constrained"
    )
    axes = figure.subplots()
    percent = 100 * values
    scale = _scale(percent)
    image = axes.imshow(percent, cmap=_COLOURS, norm=scale, aspect="auto")
    _name_ticks(axes, rows, columns)
    for (row, column), value in np.ndenumerate(percent):
        if np.isnan(value):
            _hatch(axes, row, column, missing[row][column] if missing else "no result")
        else:
            interval = None if intervals is None else 100 * intervals[row, column]
            _write(axes, (row, column), value, interval, "white" if scale(value) > 0.6 else "black")
    figure.colorbar(
        image, ax=axes, pad=0.02, ticks=MaxNLocator(6, integer=True), label=f"{label} (%)"
    )
    set_title(axes, title, width=width)
    return figure


def _scale(percent: NDArray[np.float64]) -> Normalize:
    """Return the colour scale within 0 to 100: five points or more, so that noise is not seen."""
    found = percent[~np.isnan(percent)]
    low, high = (found.min(), found.max()) if len(found) else (0.0, 100.0)
    missing = max(0.0, 5 - (high - low)) / 2
    low, high = low - missing, high + missing
    # Values outside of 0 to 100 % do not exist: move the scale instead of cutting it.
    moved = max(0.0, -low) - max(0.0, high - 100)
    return Normalize(low + moved, high + moved)


def _name_ticks(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    names = shorten(columns, _MAX_NAME)
    turned = max(map(len, names)) > 14
    across: dict[str, Any] = (
        {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    )
    axes.set_xticks(range(len(columns)), names, fontsize=9, **across, **literal_text())
    axes.set_yticks(range(len(rows)), shorten(rows, _MAX_NAME), fontsize=9, **literal_text())
    axes.set_xticks(np.arange(0.5, len(columns) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)


def _hatch(axes: Axes, row: int, column: int, word: str) -> None:
    corner = (column - 0.5, row - 0.5)
    axes.add_patch(
        Rectangle(corner, 1, 1, facecolor="0.95", edgecolor="0.8", hatch="///", linewidth=0)
    )
    paper = {"facecolor": "0.95", "edgecolor": "none", "pad": 1.5}
    text = shorten([word], 16)[0]
    axes.text(
        column,
        row,
        text,
        ha="center",
        va="center",
        fontsize=8,
        color="0.3",
        bbox=paper,
        **literal_text(),
    )


def _write(
    axes: Axes,
    place: tuple[int, int],
    value: float,
    interval: NDArray[np.float64] | None,
    colour: str,
) -> None:
    row, column = place
    above = 0.0 if interval is None else 0.13
    axes.text(
        column, row - above, f"{value:.1f}", ha="center", va="center", fontsize=11, color=colour
    )
    if interval is not None:
        ends = f"{interval[0]:.1f} to {interval[1]:.1f}"
        axes.text(column, row + 0.24, ends, ha="center", va="center", fontsize=7.5, color=colour)
