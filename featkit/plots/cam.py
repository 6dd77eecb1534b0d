"""Class activation maps over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from featkit.plots.style import literal_text, set_figure_title, shorten

_COLOURS = colormaps["inferno"]
_OPACITY = 0.7
CAM_SIDE = 1.5
"""Default edge of an image, in inches."""
_MAX_NAME = 24


@dataclass(frozen=True)
class MappedImage:
    """An image with its class activation map.

    Attributes:
        image: uint8 ``(h, w, 3)``.
        heat: ``(h, w)``, signed.
        lines: text below the image.
    """

    image: NDArray[np.uint8]
    heat: NDArray[np.floating[Any]]
    lines: tuple[str, ...]


def overlay(image: NDArray[np.uint8], heat: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return the image, in grey, with the positive part of a map over it.

    The largest value of the map is yellow, zero and negative values show the image. A map without a
    positive value leaves the image without colour.

    Args:
        image: uint8 ``(h, w, 3)``.
        heat: ``(h, w)``.
    """
    positive = np.maximum(np.nan_to_num(heat), 0)
    largest = positive.max(initial=0.0)
    strength = positive / largest if largest > 0 else positive
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    colour = 255 * _COLOURS(strength)[:, :, :3]
    opacity = _OPACITY * strength[:, :, None]
    mixed: NDArray[np.uint8] = (
        np.clip((1 - opacity) * grey + opacity * colour, 0, 255).round().astype(np.uint8)
    )
    return mixed


def plot_cam(
    images: Sequence[MappedImage], *, title: str, columns: int = 6, side: float = CAM_SIDE
) -> Figure:
    """Draw images in rows, each with its class activation map below.

    Args:
        images: one or more.
        title: wrapped to the width of the figure.
        columns: number of images in a row.
        side: of an image, in inches.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    text = 0.16 * max(len(each.lines) for each in images)
    width = columns * side
    figure = Figure(
        figsize=(max(width, 4.0), rows * (2 * side + text) + 0.4),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, hspace=0.0, wspace=0.0),
    )
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, each in enumerate(images):
        row, column = divmod(number, columns)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        above.imshow(each.image)
        below.imshow(overlay(each.image, each.heat))
        below.text(
            0.5,
            -0.04,
            "\n".join(shorten(each.lines, _MAX_NAME)),
            transform=below.transAxes,
            ha="center",
            va="top",
            fontsize=7.5,
            **literal_text(),
        )
    set_figure_title(figure, title, width=max(width, 4.0))
    return figure
