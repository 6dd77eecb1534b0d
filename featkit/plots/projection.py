"""Features in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import NDArray

from featkit.plots.style import add_legend, literal_text, series_colour, set_title, shorten

_SIZE = (8.0, 6.4)
_MAX_NAME = 24
_MAX_LEGEND = 20
_MARKERS = "os^DPvX*<>"
_THUMBNAILS_ACROSS = 18


def plot_projection(
    positions: NDArray[np.float64],
    groups: NDArray[np.int64],
    names: Sequence[str],
    *,
    title: str,
    thumbnails: Sequence[NDArray[np.uint8]] = (),
) -> Figure:
    """Draw points in two dimensions, one colour and marker for each group.

    With up to 20 groups a legend names them; with more, names stand at the median of their group,
    where they do not overlap.

    Args:
        positions: ``(n, 2)``.
        groups: ``(n,)`` positions in ``names``.
        names: of the groups, such as classes.
        title: wrapped to the width of the plot.
        thumbnails: one small image per point; drawn instead of points where there is space, in a
            frame of the colour of the group.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    present = [group for group in range(len(names)) if (groups == group).any()]
    shown = shorten(names, _MAX_NAME)
    size = 14 if len(positions) <= 3_000 else 5
    for index, group in enumerate(present):
        members = positions[groups == group]
        axes.scatter(
            members[:, 0],
            members[:, 1],
            s=size,
            color=[series_colour(index, len(present))],
            marker=_MARKERS[index % len(_MARKERS)],
            linewidths=0,
            alpha=0.75,
            label=shown[group],
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", "datalim")
    if thumbnails:
        colours = {group: series_colour(index, len(present)) for index, group in enumerate(present)}
        _draw_thumbnails(axes, positions, thumbnails, [colours[group] for group in groups.tolist()])
    if len(present) <= _MAX_LEGEND:
        add_legend(axes)
    else:
        _name_groups(axes, positions, groups, [(group, shown[group]) for group in present])
    set_title(axes, title, width=_SIZE[0] - 1.5)
    return figure


def _name_groups(
    axes: Axes,
    positions: NDArray[np.float64],
    groups: NDArray[np.int64],
    named: Sequence[tuple[int, str]],
) -> None:
    """Write names at the medians of the groups, the largest group first, unless they overlap."""
    extent = np.ptp(positions, axis=0).max()
    height, per_character = 0.018 * extent, 0.011 * extent
    placed: list[tuple[float, float, float]] = []
    for group, name in sorted(named, key=lambda pair: -int((groups == pair[0]).sum())):
        x, y = np.median(positions[groups == group], axis=0)
        width = per_character * len(name)
        overlaps = [
            abs(x - other_x) < (width + other_width) / 2 and abs(y - other_y) < height
            for other_x, other_y, other_width in placed
        ]
        if any(overlaps):
            continue
        placed.append((x, y, width))
        axes.text(
            x,
            y,
            name,
            ha="center",
            va="center",
            fontsize=6.5,
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.6},
            **literal_text(),
        )


def _draw_thumbnails(
    axes: Axes,
    positions: NDArray[np.float64],
    thumbnails: Sequence[NDArray[np.uint8]],
    colours: Sequence[tuple[float, float, float, float]],
) -> None:
    """Draw the thumbnail of one point in each occupied cell of a grid, in a frame of its colour."""
    low = positions.min(axis=0)
    cell = max(float(np.ptp(positions, axis=0).max()) / _THUMBNAILS_ACROSS, 1e-12)
    taken: set[tuple[int, int]] = set()
    for (x, y), image, colour in zip(positions, thumbnails, colours, strict=False):
        place = (int((x - low[0]) // cell), int((y - low[1]) // cell))
        if place in taken:
            continue
        taken.add(place)
        zoom = 20 / max(image.shape[:2])
        frame = {"edgecolor": colour, "facecolor": colour, "linewidth": 2.5}
        box = AnnotationBbox(OffsetImage(image, zoom=zoom), (x, y), pad=0, bboxprops=frame)
        axes.add_artist(box)
