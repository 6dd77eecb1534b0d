"""Small images in rows and columns: filters, feature maps, perturbations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featkit.plots.style import literal_text, set_figure_title, shorten

_MAX_NAME = 22


def plot_image_grid(
    rows: Sequence[Sequence[NDArray[Any]]],
    *,
    title: str,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    side: float = 0.9,
    colour_map: str = "viridis",
) -> Figure:
    """Draw images in a grid; a row may be shorter than the others.

    Args:
        rows: images ``(h, w, 3)``, uint8 or in 0..1, or values ``(h, w)``, whose range in each
            image is mapped to the colours.
        title: wrapped to the width of the figure.
        row_names: names beside the images.
        column_names: names above the images.
        side: of an image, in inches.
        colour_map: for values.
    """
    across = max(map(len, rows))
    names_width = 1.5 if row_names else 0.0
    width = max(3.5, across * side + names_width)
    figure = Figure(figsize=(width, len(rows) * side + 0.7), layout="constrained")
    grid = figure.subplots(len(rows), across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, images in enumerate(rows):
        for column, image in enumerate(images):
            grid[place, column].imshow(image, cmap=colour_map, interpolation="nearest")
    for place, name in enumerate(shorten(row_names, _MAX_NAME)):
        grid[place, 0].text(
            -0.08,
            0.5,
            name,
            transform=grid[place, 0].transAxes,
            ha="right",
            va="center",
            fontsize=8,
            **literal_text(),
        )
    for column, name in enumerate(shorten(column_names, _MAX_NAME)):
        grid[0, column].set_title(name, fontsize=8, **literal_text())
    set_figure_title(figure, title, width=width)
    return figure


def filters_to_images(filters: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Scale kernels ``(n, h, w, 3)`` to colours in 0..1, each by its largest weight; 0 is grey."""
    largest = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    scaled: NDArray[np.float64] = 0.5 + 0.5 * filters / np.where(largest == 0, 1, largest)
    return scaled
