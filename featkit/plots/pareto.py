"""What accuracy costs, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from featkit.plots.labels import as_written, drawable, set_title, shortened

_SIZE = (7.5, 4.2)
_LONGEST = 40
_MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class ParetoPoint:
    """A network: its name, its latency in milliseconds, its accuracy with the ends of its interval, as fractions."""

    name: str
    latency: float
    accuracy: float
    interval: tuple[float, float]


def plot_pareto(points: Sequence[ParetoPoint], *, title: str) -> Figure:
    """Draw accuracy over latency; a line joins the networks that no other beats in both.

    Args:
        points: one or more.
        title: wrapped where it is longer than the plot is wide.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    front = pareto_front(points)
    axes.plot(
        [each.latency for each in front], [each.accuracy for each in front], color="0.7", zorder=1
    )
    colours = colormaps["tab10" if len(points) <= 10 else "turbo"]
    names = shortened([each.name for each in points], _LONGEST)
    for place, (each, name) in enumerate(zip(points, names, strict=True)):
        axes.errorbar(
            each.latency,
            each.accuracy,
            yerr=np.array([[each.accuracy - each.interval[0]], [each.interval[1] - each.accuracy]]),
            color=colours(place if len(points) <= 10 else place / (len(points) - 1)),
            marker=_MARKERS[place % len(_MARKERS)],
            linestyle="none",
            capsize=3,
            label=drawable(name),
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(_minor) if _narrow(points) else NullFormatter())
    axes.tick_params(axis="x", which="both", length=3.5, pad=3.5)
    axes.yaxis.set_major_formatter(PercentFormatter(1, None, " %"))
    axes.set_xlabel("latency of one image on one thread, ms (median)")
    axes.set_ylabel("top-1, with its 95 % interval")
    axes.grid(color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for text in axes.legend(
        loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8
    ).get_texts():
        text.set(**as_written())
    set_title(axes, title, width=5.0)
    return figure


def pareto_front(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """Return the points that no other beats in both latency and accuracy, fastest first."""
    front: list[ParetoPoint] = []
    for each in sorted(points, key=lambda point: (point.latency, -point.accuracy)):
        if not front or each.accuracy > front[-1].accuracy:
            front.append(each)
    return front


def _minor(value: float, _: int) -> str:
    """Return the name of a tick between powers of ten; 9 would run into 10."""
    name = f"{value:g}"
    return "" if name.strip("0.").startswith("9") else name


def _narrow(points: Sequence[ParetoPoint]) -> bool:
    """Whether the latencies lie within a power of ten, where the usual ticks would be too few."""
    latencies = [each.latency for each in points]
    return max(latencies) < 10 * min(latencies)
