"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from featkit.plots.style import add_grid, drawable, literal_text, percent_axis, shorten

_PANELS = (
    ("loss", "loss"),
    ("top1", "top-1 accuracy (%)"),
    ("top5", "top-5 accuracy (%)"),
)
_MAX_NAME = 40

History = Sequence[Mapping[str, float]]
"""Rows of ``history.csv``: ``epoch``, ``train_loss``, ``val_top1``, ...; NaN without validation."""


def plot_histories(histories: Mapping[str, History], *, title: str) -> Figure:
    """Draw loss, top-1 and top-5 accuracy over epochs; train (augmented) dashed, validation solid.

    A panel without a value, such as top-5 accuracy of two classes, is left out.

    Args:
        histories: by name of the run, one colour each.
        title: of the figure.
    """
    panels = [(part, label) for part, label in _PANELS if _has_values(histories, part)]
    figure = Figure(figsize=(3.5 * len(panels), 3.9), layout="constrained")
    names = shorten(list(histories), _MAX_NAME)
    colours = colormaps["tab10"]
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (part, label) in zip(all_axes, panels, strict=True):
        for place, history in enumerate(histories.values()):
            _draw(axes, history, part, colours(place % 10))
        _finish(axes, label, is_percent=part != "loss")
    handles = [
        Line2D([], [], color=colours(place % 10), label=name) for place, name in enumerate(names)
    ]
    handles += [Line2D([], [], color="0.3", linestyle="--", label="train")]
    has_val = any(_has_val(history) for history in histories.values())
    if has_val:
        handles += [Line2D([], [], color="0.3", label="val")]
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False
    )
    for text in legend.get_texts():
        text.set(**literal_text())
    figure.suptitle(drawable(title), fontsize=11, **literal_text())
    return figure


def _has_values(histories: Mapping[str, History], part: str) -> bool:
    """Return whether an epoch of any history has a value; the loss is always drawn."""
    if part == "loss":
        return True
    for history in histories.values():
        for row in history:
            if np.isfinite([row[f"train_{part}"], row[f"val_{part}"]]).any():
                return True
    return False


def _has_val(history: History) -> bool:
    return any(np.isfinite(row["val_loss"]) for row in history)


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


def _finish(axes: Axes, label: str, *, is_percent: bool) -> None:
    if is_percent:
        axes.set_ylim(top=1)
        percent_axis(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_title(label, fontsize=10)
    add_grid(axes)
