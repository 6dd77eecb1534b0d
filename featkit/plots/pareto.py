"""Accuracy over latency, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from featkit.plots.labels import label_points
from featkit.plots.style import add_grid, percent_axis, set_title, shorten

_WIDTH = 7.5
_HEIGHTS = (4.2, 6.0, 8.0)
"""Heights of the figure in inches; the first one on which all labels are near is used."""
_FAR = 100.0
"""Largest distance of a label from its point, in points of 1/72 inch, on a figure that fits."""
_MANY = 15
"""Number of points above which their names are printed smaller."""
_PRINTED = 8.0
_MAX_NAME = 48
_LATENCY = "median latency, 1 image, 1 thread (ms)"
_FRONT_TEXT = "Pareto front, no other network is both faster and more accurate"
_FRONT, _OTHERS = "#0b5cad", "0.45"
"""Colours of the points, which differ in brightness too."""


@dataclass(frozen=True)
class ParetoPoint:
    """A network.

    Attributes:
        name: shown beside the point.
        latency: in milliseconds.
        accuracy: a fraction.
        interval: its 95% confidence interval.
    """

    name: str
    latency: float
    accuracy: float
    interval: tuple[float, float]


def plot_pareto(points: Sequence[ParetoPoint], *, title: str, width: float | None = None) -> Figure:
    """Draw accuracy over latency; a line joins the points of the Pareto front.

    Every point has its name beside it. Points of the front are filled, the others hollow, so that
    the plot can be read without colours.

    Args:
        points: one or more.
        title: wrapped to the width of the plot.
        width: of a printed figure, in inches, which has text of 8 points and no title; None for
            the screen.
    """
    for height in _HEIGHTS:
        figure = Figure(figsize=(width or _WIDTH, height), layout="constrained")
        axes = figure.subplots()
        _draw_points(axes, points)
        if width is None:
            axes.set_xlabel(f"{_LATENCY}\nfilled: {_FRONT_TEXT}")
            set_title(axes, title, width=_WIDTH - 0.5)
        else:
            axes.set_xlabel(f"{_LATENCY}\nfilled: Pareto front")
            _set_text_size(axes, _PRINTED)
        small = width is not None or len(points) > _MANY
        if _label(axes, points, fontsize=7 if small else 8) <= _FAR:
            break
    return figure


def _set_text_size(axes: Axes, size: float) -> None:
    axes.xaxis.label.set_fontsize(size)
    axes.yaxis.label.set_fontsize(size)
    axes.tick_params(which="both", labelsize=size)


def _draw_points(axes: Axes, points: Sequence[ParetoPoint]) -> None:
    front = pareto_front(points)
    latencies, accuracies = zip(*[(point.latency, point.accuracy) for point in front], strict=True)
    axes.plot(latencies, accuracies, color="0.7", linewidth=1, zorder=1)
    for point in points:
        is_front = point in front
        low, high = point.interval
        axes.errorbar(
            point.latency,
            point.accuracy,
            yerr=np.array([[point.accuracy - low], [high - point.accuracy]]),
            color=_FRONT if is_front else _OTHERS,
            marker="o",
            markersize=5.5,
            markerfacecolor=_FRONT if is_front else "white",
            linestyle="none",
            elinewidth=1,
            capsize=2,
            zorder=3 if is_front else 2,
        )
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.08)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    # Powers of ten alone would be too few labels.
    within_decade = max(point.latency for point in points) < 10 * min(
        point.latency for point in points
    )
    digits = "2345678" if within_decade else "25"
    axes.xaxis.set_minor_formatter(FuncFormatter(partial(_minor_label, digits=digits)))
    axes.tick_params(axis="x", which="both", length=3.5, pad=3.5)
    percent_axis(axes.yaxis)
    axes.set_ylabel("top-1 accuracy (%), 95% CI")
    add_grid(axes)


def _label(axes: Axes, points: Sequence[ParetoPoint], *, fontsize: float) -> float:
    """Write the names beside the points; return the largest distance, see ``label_points``."""
    front = pareto_front(points)
    # The front is labelled first, nearest to its points.
    ordered = [*front, *(point for point in points if point not in front)]
    return label_points(
        axes,
        [(point.latency, point.accuracy) for point in ordered],
        [point.interval for point in ordered],
        shorten([point.name for point in ordered], _MAX_NAME),
        [(point.latency, point.accuracy) for point in front],
        fontsize=fontsize,
    )


def pareto_front(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """Return the points that no other point beats in both latency and accuracy, fastest first."""
    front: list[ParetoPoint] = []
    for point in sorted(points, key=lambda point: (point.latency, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def _minor_label(value: float, _: int, *, digits: str) -> str:
    """Return the label of a tick between powers of ten, for some of the first digits."""
    name = f"{value:g}"
    return name if name.strip("0.")[0] in digits else ""
