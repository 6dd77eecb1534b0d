"""Accuracy over latency, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from featkit.plots.style import (
    add_grid,
    add_legend,
    drawable,
    percent_axis,
    series_colour,
    set_title,
    shorten,
)

_SIZE = (7.5, 4.2)
_MAX_NAME = 40
_MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class ParetoPoint:
    """A network.

    Attributes:
        name: shown in the legend.
        latency: in milliseconds.
        accuracy: a fraction.
        interval: its 95% confidence interval.
    """

    name: str
    latency: float
    accuracy: float
    interval: tuple[float, float]


def plot_pareto(points: Sequence[ParetoPoint], *, title: str) -> Figure:
    """Draw accuracy over latency; a line joins the points of the Pareto front.

    Args:
        points: one or more.
        title: wrapped to the width of the plot.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    front = pareto_front(points)
    latencies, accuracies = zip(*[(point.latency, point.accuracy) for point in front], strict=True)
    axes.plot(latencies, accuracies, color="0.7", zorder=1)
    names = shorten([point.name for point in points], _MAX_NAME)
    for index, (point, name) in enumerate(zip(points, names, strict=True)):
        low, high = point.interval
        axes.errorbar(
            point.latency,
            point.accuracy,
            yerr=np.array([[point.accuracy - low], [high - point.accuracy]]),
            color=series_colour(index, len(points)),
            marker=_MARKERS[index % len(_MARKERS)],
            linestyle="none",
            capsize=3,
            label=drawable(name),
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    # Within one power of ten the major ticks alone would be too few.
    within_decade = max(point.latency for point in points) < 10 * min(
        point.latency for point in points
    )
    axes.xaxis.set_minor_formatter(FuncFormatter(_minor) if within_decade else NullFormatter())
    axes.tick_params(axis="x", which="both", length=3.5, pad=3.5)
    percent_axis(axes.yaxis)
    axes.set_xlabel("median latency, 1 image, 1 thread (ms)")
    axes.set_ylabel("top-1 accuracy (%), 95% CI")
    add_grid(axes)
    add_legend(axes)
    set_title(axes, title, width=5.0)
    return figure


def pareto_front(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """Return the points that no other point beats in both latency and accuracy, fastest first."""
    front: list[ParetoPoint] = []
    for point in sorted(points, key=lambda point: (point.latency, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def _minor(value: float, _: int) -> str:
    """Return the label of a tick between powers of ten; 9 has none, as it would overlap 10."""
    name = f"{value:g}"
    return "" if name.strip("0.").startswith("9") else name
