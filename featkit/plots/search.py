"""Validation accuracy of the candidates of a hyperparameter search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from featkit.plots.curve import Line, Mark, plot_curve
from featkit.plots.style import literal_text, percent_axis, set_figure_title, shorten

_WIDTH = 7.0
_MOST_NAMED = 10
"""Lines with a colour and a name: those with the best candidates."""
_CHARACTER = 0.068
"""Width of a character of the names of bars, in inches."""
_MAX_NAME = 120
_BAR, _CHOSEN_BAR = "#9ecae1", "#08519c"
"""Colours of the bars, which differ in brightness too."""

Candidates = Sequence[tuple[Mapping[str, Any], float]]
"""Hyperparameters by name, and the validation metric with them."""


def plot_search(
    candidates: Candidates,
    *,
    title: str,
    metric: str = "validation top-1 accuracy",
    chosen: int | None = None,
) -> Figure:
    """Draw the validation accuracy of every candidate, and mark the chosen one.

    The numeric option with the most values is the x axis, and every combination of the other
    options a line. The lines with the best candidates are named, the others are grey. If no option
    has three values, the candidates are bars, the best one on top.

    Args:
        candidates: options and validation metric, a fraction.
        title: wrapped to the width of the plot.
        metric: name of the metric, for the axis.
        chosen: position of the chosen candidate, which is named below the title; None to mark none.
    """
    label = f"{metric} (%)"
    note = "" if chosen is None else _chosen_text(*candidates[chosen])
    x_option = _x_option([options for options, _ in candidates])
    if x_option is None:
        return _bars(candidates, title, label, note, chosen)
    names = _varying([options for options, _ in candidates])
    varying = [name for name in names if name != x_option]
    points: dict[str, list[tuple[float, float]]] = {}
    for options, score in candidates:
        name = _line_name(options, varying)
        points.setdefault(name, []).append((float(options[x_option]), score))
    mark, chosen_line = None, ""
    if chosen is not None:
        options, score = candidates[chosen]
        mark = Mark("chosen", float(options[x_option]), score)
        chosen_line = _line_name(options, varying)
    return plot_curve(
        _lines(points, chosen_line),
        title=title,
        x_label=x_option,
        y_label=label,
        note=note,
        legend_title=", ".join(varying),
        mark=mark,
    )


def _line_name(options: Mapping[str, Any], varying: Sequence[str]) -> str:
    """Return the values of the options that tell the lines apart."""
    return ", ".join(_value_text(options, name) for name in varying)


def _chosen_text(options: Mapping[str, Any], score: float) -> str:
    named = ", ".join(f"{name} {_value_text(options, name)}" for name in options)
    return f"chosen: {named or 'defaults'} ({100 * score:.1f}%)"


def _varying(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the options that do not have the same value in all candidates."""
    names = list(dict.fromkeys(chain.from_iterable(options)))
    return [name for name in names if len({_value_text(each, name) for each in options}) > 1]


def _value_text(options: Mapping[str, Any], name: str) -> str:
    value = options.get(name, "default")
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _lines(points: Mapping[str, Sequence[tuple[float, float]]], first: str) -> list[Line]:
    """Return the lines by their best candidate; those after the first ten are grey.

    Args:
        points: of each line, by its name.
        first: name of the line that comes first, whatever its candidates.
    """
    best = {name: max(score for _, score in found) for name, found in points.items()}
    ordered = sorted(points, key=lambda name: (name != first, -best[name]))
    rest = len(ordered) - _MOST_NAMED
    lines = []
    for place, name in enumerate(ordered):
        x, y = np.array(points[name]).T
        muted = place >= _MOST_NAMED
        label = name
        if muted:
            label = f"{rest} others" if place == _MOST_NAMED else ""
        lines.append(Line(label, x, y, muted=muted))
    return lines


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


def _bars(candidates: Candidates, title: str, label: str, note: str, chosen: int | None) -> Figure:
    ascending = sorted(range(len(candidates)), key=lambda place: candidates[place][1])
    varying = _varying([options for options, _ in candidates])
    names = []
    for place in ascending:
        options = candidates[place][0]
        described = ", ".join(
            f"{name} {_value_text(options, name)}" for name in varying if name in options
        )
        names.append(described or "defaults")
    labels = shorten(names, _MAX_NAME)
    scores = [candidates[place][1] for place in ascending]
    colours = [_CHOSEN_BAR if place == chosen else _BAR for place in ascending]
    width = max(_WIDTH, _WIDTH / 2 + _CHARACTER * max(map(len, labels)))
    height = 1.2 + 0.24 * len(names) + (0.2 if note else 0)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(names)), scores, color=colours, height=0.7)
    axes.set_yticks(range(len(names)), labels, fontsize=8, **literal_text())
    for place, text in zip(ascending, axes.get_yticklabels(), strict=True):
        text.set_fontweight("bold" if place == chosen else "normal")
    axes.set_xlabel(label)
    # Start below the lowest bar instead of at zero, so that small differences can be seen.
    margin = max(0.01, 0.3 * (max(scores) - min(scores)))
    axes.set_xlim(min(scores) - margin, max(scores) + margin)
    percent_axis(axes.xaxis)
    axes.spines[["top", "right"]].set_visible(False)
    set_figure_title(figure, title, width=width, note=note)
    return figure
