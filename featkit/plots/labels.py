"""Labels beside the points of a plot, without overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from math import cos, inf, radians, sin

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featkit.plots.style import literal_text

_Floats = NDArray[np.float64]

_DIRECTIONS = (0, 30, -30, 180, 150, 210, 60, -60, 120, 240, 90, 270, 15, -15, 165, 195)
"""Degrees from a point to its label, the best readable first."""
_DISTANCES = (7, 13, 20, 28, 38, 50, 64, 80, 98, 118, 140, 165, 195, 230, 270)
"""Distances between a point and its label, in points of 1/72 inch."""
_LEADER_FROM = 12
"""Distance from which a line joins a label with its point."""
_MARKER, _BAR, _TEXT = 4.5, 1.5, 1.5
"""Free space around a point, an error bar and a label, in points of 1/72 inch."""
_CROSSING = 25.0
"""Cost of a leader line that crosses a label or a point, in points of distance."""
_SAMPLES = np.linspace(0.1, 0.95, 18)[:, None, None]
"""Places along a leader line, as fractions of its length."""


def label_points(
    axes: Axes,
    places: Sequence[tuple[float, float]],
    bars: Sequence[tuple[float, float]],
    texts: Sequence[str],
    line: Sequence[tuple[float, float]],
    *,
    fontsize: float,
) -> float:
    """Write a text beside each point, where it covers neither a point nor another text.

    Each label takes the best free place in turn; those that are not beside their point are joined
    with it by a line. The size of the figure and the limits of the axes must be final.

    Args:
        axes: of a figure.
        places: of the points, in data coordinates.
        bars: lower and upper end of the error bar of each point, in data coordinates.
        texts: one line for each point; the first ones get the places nearest to their points.
        line: a line of the plot, in data coordinates, that labels leave free if they can.
        fontsize: in points.

    Returns:
        The largest distance of a label from its point, in points of 1/72 inch; infinity if there
        was no free place for one of them, which then overlaps as little as possible.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # sets the layout, on which the transformations depend
    to_points = 72 / figure.dpi
    points = axes.transData.transform(np.array(places)) * to_points
    ends = np.array([(x, *bar) for (x, _), bar in zip(places, bars, strict=True)])
    low = axes.transData.transform(ends[:, [0, 1]]) * to_points
    high = axes.transData.transform(ends[:, [0, 2]]) * to_points
    taken = np.concatenate([_grown(points, points, _MARKER), _grown(low, high, _BAR)])
    inside = np.array(axes.get_window_extent().extents) * to_points
    leaders = _sampled(axes.transData.transform(np.array(line)) * to_points)
    longest = 0.0
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for point, place, text in zip(points, places, texts, strict=True):
        boxes, ends_of_lines, distances = _candidates(
            point, _text_size(figure, renderer, text, fontsize)
        )
        lines = point + _SAMPLES * (ends_of_lines - point)
        has_line = distances >= _LEADER_FROM
        overlap = _overlaps(_grown(boxes[:, :2], boxes[:, 2:], _TEXT), taken)
        overlap = overlap + _outside(boxes, inside)
        crossings = has_line * _contained(lines, taken[_not_at(taken, point)])
        crossings = crossings + _points_in(boxes, leaders)
        best = int(np.lexsort((distances + _CROSSING * crossings, np.round(overlap)))[0])
        longest = max(longest, distances[best] if overlap[best] < 1 else inf)
        taken = np.concatenate([taken, _grown(boxes[best, None, :2], boxes[best, None, 2:], _TEXT)])
        if has_line[best]:
            leaders = np.concatenate([leaders, lines[:, best]])
        _write(axes, text, place, boxes[best] - np.tile(point, 2), fontsize, line=has_line[best])
    return longest


def _sampled(line: _Floats) -> _Floats:
    """Return points ``(p, 2)`` along a line of several segments, close enough to find in a box."""
    steps = np.linspace(0, 1, 60)[:, None]
    parts = [start + steps * (end - start) for start, end in pairwise(line)]
    return np.concatenate(parts) if parts else np.empty((0, 2))


def _text_size(
    figure: Figure, renderer: RendererAgg, text: str, fontsize: float
) -> tuple[float, float]:
    """Return width and height of a text in points of 1/72 inch."""
    drawn = figure.text(0, 0, text, fontsize=fontsize, **literal_text())
    extent = drawn.get_window_extent(renderer)
    drawn.remove()
    return extent.width * 72 / figure.dpi, extent.height * 72 / figure.dpi


def _candidates(
    point: _Floats, size: tuple[float, float]
) -> tuple[_Floats, _Floats, NDArray[np.int64]]:
    """Return possible boxes of a label ``(c, 4)``, where its line ends, and the distances."""
    width, height = size
    boxes, ends, distances = [], [], []
    for distance, degrees in product(_DISTANCES, _DIRECTIONS):
        across, up = cos(radians(degrees)), sin(radians(degrees))
        x, y = point + distance * np.array([across, up])
        # The nearest point of the box is at (x, y): a corner, or the middle of an edge.
        left = x - width * (0.5 if abs(across) < 0.1 else across < 0)
        bottom = y - height * (0.5 if abs(up) < 0.3 else up < 0)
        boxes.append((left, bottom, left + width, bottom + height))
        ends.append((x, y))
        distances.append(distance)
    return np.array(boxes), np.array(ends), np.array(distances)


def _grown(low: _Floats, high: _Floats, space: float) -> _Floats:
    """Return boxes ``(m, 4)`` around lower left and upper right corners ``(m, 2)``."""
    return np.concatenate([low - space, high + space], axis=1)


def _overlaps(boxes: _Floats, taken: _Floats) -> _Floats:
    """Return the area ``(c,)`` of each box that is covered by others, in square points."""
    low = np.maximum(boxes[:, None, :2], taken[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], taken[None, :, 2:])
    areas: _Floats = np.clip(high - low, 0, None).prod(axis=2).sum(axis=1)
    return areas


def _outside(boxes: _Floats, inside: _Floats) -> _Floats:
    """Return how far each box reaches out of a rectangle, weighted so that it is a last resort."""
    below = np.clip(inside[:2] - boxes[:, :2], 0, None).sum(axis=1)
    above = np.clip(boxes[:, 2:] - inside[2:], 0, None).sum(axis=1)
    reach: _Floats = 1000 * (below + above)
    return reach


def _not_at(taken: _Floats, point: _Floats) -> NDArray[np.bool_]:
    """Return which boxes ``(m, 4)`` do not contain a point."""
    starts_before = np.all(taken[:, :2] <= point, axis=1)
    ends_after = np.all(point <= taken[:, 2:], axis=1)
    outside: NDArray[np.bool_] = np.logical_not(starts_before & ends_after)
    return outside


def _contained(lines: _Floats, taken: _Floats) -> _Floats:
    """Return in how many boxes the points of each line ``(s, c, 2)`` lie, ``(c,)``."""
    low = np.all(lines[:, :, None] >= taken[None, None, :, :2], axis=3)
    high = np.all(lines[:, :, None] <= taken[None, None, :, 2:], axis=3)
    counts: _Floats = np.any(low & high, axis=0).sum(axis=1).astype(np.float64)
    return counts


def _points_in(boxes: _Floats, points: _Floats) -> _Floats:
    """Return 1 for each box with one of the points ``(p, 2)`` in it, else 0, ``(c,)``."""
    low = np.all(points[None] >= boxes[:, None, :2], axis=2)
    high = np.all(points[None] <= boxes[:, None, 2:], axis=2)
    counts: _Floats = np.any(low & high, axis=1).astype(np.float64)
    return counts


def _write(
    axes: Axes,
    text: str,
    place: tuple[float, float],
    box: _Floats,
    fontsize: float,
    *,
    line: bool,
) -> None:
    """Write a label; ``box`` is relative to its point, in points of 1/72 inch."""
    axes.annotate(
        text,
        place,
        xytext=(box[0], (box[1] + box[3]) / 2),
        textcoords="offset points",
        fontsize=fontsize,
        va="center",
        ha="left",
        annotation_clip=False,
        zorder=4,
        **literal_text(),
    )
    if line:
        end = (min(max(0.0, box[0]), box[2]), min(max(0.0, box[1]), box[3]))
        axes.annotate(
            "",
            place,
            xytext=end,
            textcoords="offset points",
            arrowprops={
                "arrowstyle": "-",
                "color": "0.6",
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 3,
            },
            annotation_clip=False,
            zorder=1,
        )
