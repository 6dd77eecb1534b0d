"""Contact sheets: thumbnails in rows with lines of text below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featkit.images.thumbnails import shrink
from featkit.plots.style import drawable, literal_text, shorten

# Sizes in inches.
_SIDE = 1.25
_GAP = 0.12
_LINE = 0.14
_TITLE = 0.35
_HEADING = 0.42
ACROSS = 10
"""Default number of images in a row."""
_MAX_NAME = 19
_PIXELS = 240
"""Longest side of a thumbnail."""


@dataclass(frozen=True)
class Tile:
    """One or more images side by side with lines of text below.

    Attributes:
        images: uint8 ``(h, w, 3)``, one or more; all tiles of a section have the same number.
        lines: text below the images; the first line is bold.
    """

    images: tuple[NDArray[np.uint8], ...]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """Tiles under a heading."""

    heading: str
    tiles: Sequence[Tile]


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image ``(h, w, 3)`` scaled down to fit a tile; smaller ones are unchanged."""
    return shrink(image, _PIXELS)


def plot_contact(sections: Sequence[Section], *, title: str, across: int = ACROSS) -> Figure:
    """Draw sections below each other, with their tiles in rows.

    A section without tiles has a note. Text is drawn literally: ``$`` does not start a formula.

    Args:
        sections: one or more.
        title: above all sections; empty for none.
        across: number of images in a row; a tile with more images has a row of its own.
    """
    for section in sections:
        across = max(across, _images_per_tile(section))
    width = across * (_SIDE + _GAP) - _GAP
    top = _TITLE if title else 0.0
    height = top + sum(_height(section, across) for section in sections)
    figure = Figure(figsize=(width + 0.4, height + 0.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.2, width + 0.2), ylim=(height + 0.2, -0.2), autoscale_on=False)
    axes.set_axis_off()
    axes.text(0, 0, drawable(title), va="top", fontsize=14, weight="bold", **literal_text())
    for section in sections:
        _draw_section(axes, section, top, across)
        top += _height(section, across)
    return figure


def _images_per_tile(section: Section) -> int:
    return len(section.tiles[0].images) if section.tiles else 1


def _columns(section: Section, across: int) -> int:
    return across // _images_per_tile(section)


def _heading_height(section: Section) -> float:
    return _HEADING if section.heading or not section.tiles else _GAP


def _row_height(section: Section) -> float:
    return _SIDE + _LINE * max(len(tile.lines) for tile in section.tiles) + 2 * _GAP


def _height(section: Section, across: int) -> float:
    if not section.tiles:
        return _HEADING + 2 * _GAP
    rows = -(-len(section.tiles) // _columns(section, across))
    return _heading_height(section) + rows * _row_height(section)


def _draw_section(axes: Axes, section: Section, top: float, across: int) -> None:
    heading = section.heading if section.tiles else f"{section.heading}: none"
    axes.text(0, top + 0.12, drawable(heading), va="top", fontsize=11, **literal_text())
    for number, tile in enumerate(section.tiles):
        row, column = divmod(number, _columns(section, across))
        left = column * len(tile.images) * (_SIDE + _GAP)
        below = top + _heading_height(section) + row * _row_height(section)
        _draw_tile(axes, tile, left, below)


def _draw_tile(axes: Axes, tile: Tile, left: float, top: float) -> None:
    """Draw the images centred in squares and the text below the first one."""
    for place, image in enumerate(tile.images):
        height, width = image.shape[:2]
        w, h = (_SIDE * side / max(height, width) for side in (width, height))
        x = left + place * (_SIDE + 0.03) + (_SIDE - w) / 2
        y = top + (_SIDE - h) / 2
        axes.imshow(image, extent=(x, x + w, y + h, y), aspect="auto", interpolation="antialiased")
    longest = _MAX_NAME * len(tile.images) + 2 * (len(tile.images) - 1)
    for number, line in enumerate(shorten(tile.lines, longest)):
        weight = "bold" if number == 0 else "normal"
        below = top + _SIDE + 0.05 + number * _LINE
        axes.text(left, below, line, va="top", fontsize=7.5, weight=weight, **literal_text())
