"""Average precision of each of several labels per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from featkit.evaluation.intervals import Interval
from featkit.plots.style import drawable, literal_text, percent_axis, set_title, shorten

_MAX_NAME = 40
_WIDTH = 7.0
_MOST_LABELS = 60
"""Labels that are drawn: the best and the worst half of more."""


class LabelPrecision(NamedTuple):
    """Average precision of one label.

    Attributes:
        name: of the label.
        value: a fraction.
        interval95: of it.
        n: number of test images with the label.
    """

    name: str
    value: float
    interval95: Interval
    n: int


def plot_average_precision(labels: Sequence[LabelPrecision], *, title: str) -> Figure:
    """Draw the average precision of each label with its 95 % interval, the best on top.

    Args:
        labels: one or more.
        title: wrapped to the width of the plot.
    """
    ascending = sorted(labels, key=lambda label: label.value)
    if len(ascending) > _MOST_LABELS:
        half = _MOST_LABELS // 2
        ascending = [*ascending[:half], *ascending[-half:]]
        title = f"{title} ({half} best and {half} worst of {len(labels)} labels)"
    figure = Figure(figsize=(_WIDTH, 1.2 + 0.24 * len(ascending)), layout="constrained")
    axes = figure.subplots()
    values = np.array([label.value for label in ascending])
    ends = np.array([label.interval95 for label in ascending])
    places = np.arange(len(ascending))
    axes.errorbar(
        values, places, xerr=np.abs(ends.T - values), fmt="o", color="#3182bd", markersize=4
    )
    names = shorten([label.name for label in ascending], _MAX_NAME)
    ticks = [drawable(f"{name}, n = {x.n}") for name, x in zip(names, ascending, strict=True)]
    axes.set_yticks(places, ticks, fontsize=8, **literal_text())
    axes.set(xlim=(0, 1), ylim=(-0.7, len(ascending) - 0.3))
    axes.set_xlabel("average precision (%), 95% CI")
    percent_axis(axes.xaxis, decimals=0)
    axes.grid(axis="x", color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    set_title(axes, title, width=_WIDTH)
    return figure
