"""Validation accuracy of the candidates of a hyperparameter search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from featkit.plots.curve import Line, plot_curve
from featkit.plots.style import drawable, literal_text, percent_axis, set_title, shorten

_MAX_NAME = 60
_WIDTH = 7.0

Candidates = Sequence[tuple[Mapping[str, Any], float]]
"""Hyperparameters by name, and the validation metric with them."""


def plot_search(
    candidates: Candidates, *, title: str, metric: str = "validation top-1 accuracy"
) -> Figure:
    """Draw the validation accuracy of every candidate.

    The numeric option with the most values is the x axis, and every combination of the other
    options a line. If no option has three values, the candidates are bars, the best one on top.

    Args:
        candidates: options and validation metric, a fraction.
        title: wrapped to the width of the plot.
        metric: name of the metric, for the axis.
    """
    label = f"{metric} (%)"
    x_option = _x_option([options for options, _ in candidates])
    if x_option is None:
        return _bars(candidates, title, label)
    points: dict[str, list[tuple[float, float]]] = {}
    for options, score in candidates:
        others = [f"{name} {value}" for name, value in options.items() if name != x_option]
        points.setdefault(", ".join(others), []).append((float(options[x_option]), score))
    lines = [Line(name, *np.array(found).T) for name, found in points.items()]
    return plot_curve(lines, title=title, x_label=x_option, y_label=label)


def _x_option(options: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the option with the most values, if they are positive numbers and three or more."""
    counts = {}
    for name in options[0]:
        values = {each.get(name) for each in options}
        if all(_is_positive_number(value) for value in values):
            counts[name] = len(values)
    best = max(counts, key=lambda name: counts[name], default=None)
    return best if best is not None and counts[best] > 2 else None


def _is_positive_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _bars(candidates: Candidates, title: str, label: str) -> Figure:
    ascending = sorted(candidates, key=lambda candidate: candidate[1])
    names = []
    for options, _ in ascending:
        described = ", ".join(f"{name} {value}" for name, value in options.items())
        names.append(described or "defaults")
    scores = [score for _, score in ascending]
    figure = Figure(figsize=(_WIDTH, 1.2 + 0.24 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(names)), scores, color="#3182bd", height=0.7)
    labels = [drawable(name) for name in shorten(names, _MAX_NAME)]
    axes.set_yticks(range(len(names)), labels, fontsize=8, **literal_text())
    axes.set_xlabel(label)
    # Start below the lowest bar instead of at zero, so that small differences can be seen.
    margin = max(0.01, 0.3 * (max(scores) - min(scores)))
    axes.set_xlim(min(scores) - margin, None)
    percent_axis(axes.xaxis)
    axes.spines[["top", "right"]].set_visible(False)
    set_title(axes, title, width=_WIDTH)
    return figure
