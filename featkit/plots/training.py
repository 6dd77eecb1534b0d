"""The course of one training or of several, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from featkit.plots.labels import as_written, drawable, shortened

_PANELS = (("loss", "loss"), ("top1", "top-1"), ("top5", "top-5"))
_LONGEST = 40

History = Sequence[Mapping[str, float]]
"""Lines of a ``history.csv``: ``epoch``, ``train_loss``, ``val_top1``, ...; NaN where there is no val."""


def plot_histories(histories: Mapping[str, History], *, title: str) -> Figure:
    """Draw loss, top-1 and top-5 over the epochs; train dashed (as the images were seen, augmented), val solid.

    Args:
        histories: by name of the run; each has its own colour.
        title: over all.
    """
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    names = shortened(list(histories), _LONGEST)
    colours = colormaps["tab10"]
    for axes, (part, label) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        for place, history in enumerate(histories.values()):
            _draw(axes, history, part, colours(place % 10))
        _finish(axes, label, shares=part != "loss")
    handles = [
        Line2D([], [], color=colours(place % 10), label=name) for place, name in enumerate(names)
    ]
    handles += [Line2D([], [], color="0.3", linestyle="--", label="train")]
    if any(np.isfinite(row["val_loss"]) for history in histories.values() for row in history):
        handles += [Line2D([], [], color="0.3", label="val")]
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False
    )
    for text in legend.get_texts():
        text.set(**as_written())
    figure.suptitle(drawable(title), fontsize=11, **as_written())
    return figure


def _draw(axes: Axes, history: History, part: str, colour: object) -> None:
    epochs = np.array([row["epoch"] for row in history])
    for split, style in (("train", "--"), ("val", "-")):
        values = np.array([row[f"{split}_{part}"] for row in history])
        known = np.isfinite(values)
        marker = "o" if known.sum() == 1 else None
        axes.plot(
            epochs[known],
            values[known],
            color=colour,
            linestyle=style,
            linewidth=1.6,
            marker=marker,
        )


def _finish(axes: Axes, label: str, *, shares: bool) -> None:
    if shares:
        axes.yaxis.set_major_formatter(PercentFormatter(1, None, " %"))
        axes.set_ylim(top=1.01)
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_title(label, fontsize=10)
    axes.grid(color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
