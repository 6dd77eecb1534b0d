"""Reliability diagrams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, MultipleLocator

from featkit.evaluation.calibration import ReliabilityBin, calibration_error
from featkit.plots.style import percent_axis, set_figure_title

_SIDE = 3.6
_ACCURACY_COLOUR, _GAP_COLOUR = "#3182bd", "#d95f0e"


def plot_reliability(
    bins: Sequence[ReliabilityBin],
    *,
    title: str,
    calibrated: Sequence[ReliabilityBin] = (),
    temperature: float | None = None,
) -> Figure:
    """Draw accuracy over confidence, with a histogram of the confidences below.

    Each bin is a point with its 95% confidence interval and a bar to the diagonal, the calibration
    gap. Points below the diagonal are overconfident.

    Args:
        bins: one or more bins of the uncalibrated scores.
        title: wrapped to the width of the figure.
        calibrated: bins of the calibrated scores, drawn next to the others.
        temperature: of the calibration, for the heading.
    """
    parts = [("uncalibrated", bins)]
    if calibrated:
        parts += [
            (
                "calibrated" if temperature is None else f"at temperature {temperature:.3g}",
                calibrated,
            )
        ]
    width = _SIDE * len(parts)
    figure = Figure(figsize=(width + 1.2, _SIDE + 1.9), layout=ConstrainedLayoutEngine(wspace=0.05))
    grid = figure.subplots(
        2,
        len(parts),
        squeeze=False,
        sharex=True,
        sharey="row",
        gridspec_kw={"height_ratios": [_SIDE, 0.8]},
    )
    for (name, drawn), above, below in zip(parts, *grid, strict=True):
        _draw_points(above, drawn)
        above.set_title(f"{name}: ECE {100 * calibration_error(drawn):.1f}%", fontsize=10)
        _draw_counts(below, drawn)
        below.set_xlabel("confidence (%)")
    grid[0, 0].set_ylabel("accuracy (%)")
    grid[1, 0].set_ylabel("images")
    # Below the axes: points may lie anywhere in them.
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    set_figure_title(figure, title, width=width)
    return figure


def _draw_points(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    confidence = np.array([each.confidence for each in bins])
    accuracy = np.array([each.accuracy for each in bins])
    intervals = np.array([each.interval95 for each in bins])
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", zorder=1)
    axes.vlines(
        confidence,
        confidence,
        accuracy,
        color=_GAP_COLOUR,
        linewidth=4,
        alpha=0.45,
        label="calibration gap",
        zorder=2,
    )
    axes.errorbar(
        confidence,
        accuracy,
        yerr=np.abs(intervals.T - accuracy),
        fmt="o",
        color=_ACCURACY_COLOUR,
        markersize=4,
        linewidth=1,
        label="accuracy, 95% CI",
        zorder=3,
    )
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(0.2))
        percent_axis(axis, decimals=0)
    axes.grid(color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)


def _draw_counts(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    axes.vlines(
        [each.confidence for each in bins],
        0,
        [each.count for each in bins],
        color="0.4",
        linewidth=3,
    )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    percent_axis(axes.xaxis, decimals=0)
    axes.grid(axis="y", color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
