"""One image under every perturbation: what the levels of a robustness study look like."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from featkit.images.base import Pixels
from featkit.images.perturb import LEVELS, PERTURBATIONS, Perturbation, image_rng, perturb
from featkit.plots.contact import thumbnail
from featkit.plots.labels import as_written, drawable

_SIDE = 1.6
_TEXT = 0.56
_ACROSS = 3
_LONGEST = 24
_NO_BREAK = "\N{NO-BREAK SPACE}"


def plot_perturbations(pixels: Pixels, *, name: str, seed: int = 0) -> Figure:
    """Draw an image as it is, then under every family at its three levels, with their parameters.

    Args:
        pixels: uint8 ``(h, w, 3)``.
        name: the image's id, which with the seed decides directions, places and noise, as in ``perturbed``.
        seed: that of the study.
    """
    height, width = pixels.shape[:2]
    tall = _SIDE * float(np.clip(height / width, 0.5, 1.5))
    rows = 1 + -(-len(PERTURBATIONS) // _ACROSS)
    figure = Figure(figsize=(_ACROSS * (len(LEVELS) + 0.2) * _SIDE, rows * (tall + _TEXT)))
    spaces = {"left": 0, "right": 1, "bottom": 0, "top": 1, "hspace": _TEXT / tall, "wspace": 0.08}
    grid = figure.add_gridspec(rows, _ACROSS, **spaces)
    _draw(figure, grid[0, 0], "clean", [(pixels, f"{width} x {height} pixels")])
    title = figure.add_subplot(grid[0, :])
    title.set_axis_off()
    title.text(0.12, 1, drawable(name), va="top", fontsize=16, weight="bold", **as_written())
    about = f"Each family at three levels, from left to right: {', '.join(LEVELS)}. Seed {seed}."
    title.annotate(
        about,
        (0.12, 1),
        (0, -24),
        "axes fraction",
        textcoords="offset points",
        va="top",
        fontsize=11,
    )
    for place, family in enumerate(PERTURBATIONS):
        row, column = divmod(place, _ACROSS)
        _draw(figure, grid[row + 1, column], family, _levels(pixels, family, name, seed))
    return figure


def _levels(pixels: Pixels, family: str, name: str, seed: int) -> list[tuple[Pixels, str]]:
    """Return the image at each level, with what its parameters are."""
    return [
        (
            perturb(pixels, Perturbation(family, level), image_rng(seed, name)),
            ", ".join(
                f"{key}{_NO_BREAK}{value}"
                for key, value in PERTURBATIONS[family].parameters(level).items()
            ),
        )
        for level in LEVELS
    ]


def _draw(
    figure: Figure, place: SubplotSpec, heading: str, pictures: list[tuple[Pixels, str]]
) -> None:
    """Draw pictures side by side, unstretched, each with a text below, and a heading above the first."""
    cells = place.subgridspec(1, len(LEVELS), wspace=0.03)
    for column, (picture, text) in enumerate(pictures):
        axes = figure.add_subplot(cells[0, column], anchor="NW")
        axes.imshow(thumbnail(picture), interpolation="antialiased")
        axes.set_axis_off()
        caption = "\n".join(textwrap.wrap(text, _LONGEST))
        axes.annotate(
            caption,
            (0, 0),
            (0, -2),
            "axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=8,
        )
        if column == 0:
            axes.set_title(heading, loc="left", fontsize=10, weight="bold", pad=3)
