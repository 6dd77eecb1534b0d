"""Contact sheets."""

from __future__ import annotations

import numpy as np
import pytest

from featkit.plots.contact import Section, Tile, plot_contact, thumbnail
from featkit.plots.files import png_bytes


def grey_image(height=20, width=30, grey=128):
    return np.full((height, width, 3), grey, np.uint8)


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_every_picture_keeps_its_aspect_ratio_and_has_its_lines():
    """Every image lies inside the sheet."""
    tiles = [Tile((grey_image(), grey_image(60, 20)), ("cat", "0.99"))] * 7
    figure = plot_contact([Section("pairs", tiles)], title="audit")
    (axes,) = figure.axes
    assert len(axes.images) == 14
    for image in axes.images:
        left, right, bottom, top = image.get_extent()
        height, width = image.get_array().shape[:2]
        assert (right - left) / (bottom - top) == pytest.approx(width / height)
        assert axes.get_xlim()[0] < left < right < axes.get_xlim()[1]
        assert axes.get_ylim()[1] < top < bottom < axes.get_ylim()[0]
    assert texts(figure).count("cat") == 7


def test_names_are_drawn_literally():
    """Dollars start no formula, control characters are escaped, long names shortened."""
    tile = Tile((grey_image(),), ("$\\frac{$", "a\x1b[31m", "x" * 99))
    figure = plot_contact([Section("suspects", [tile])], title="$ \n audit")
    assert "$\\frac{$" in texts(figure)
    assert "a\\x1b[31m" in texts(figure)
    assert not any("x" * 30 in text for text in texts(figure))
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_a_section_without_tiles_has_a_note():
    """A sheet without sections is valid too."""
    assert "suspects: none" in texts(plot_contact([Section("suspects", [])], title="audit"))


def test_thumbnails_keep_their_aspect_ratio():
    """A small image is unchanged."""
    assert thumbnail(grey_image(600, 1200)).shape == (120, 240, 3)
    np.testing.assert_array_equal(thumbnail(grey_image()), grey_image())
