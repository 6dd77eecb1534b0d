"""One image under every perturbation."""

from __future__ import annotations

import numpy as np

from featkit.images.perturb import PERTURBATIONS, Perturbation, image_rng, perturb
from featkit.plots.files import png_bytes
from featkit.plots.perturbations import plot_perturbations

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def test_every_family_is_drawn_at_every_level_with_its_parameters():
    """The clean image, then three pictures for each family: those that a study of the same seed embeds."""
    figure = plot_perturbations(PIXELS, name="cat/$1$.png", seed=7)
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == 1 + 3 * len(PERTURBATIONS)
    np.testing.assert_array_equal(drawn[0].images[0].get_array(), PIXELS)
    strong = perturb(PIXELS, Perturbation("gaussian_noise", "strong"), image_rng(7, "cat/$1$.png"))
    np.testing.assert_array_equal(drawn[3].images[0].get_array(), strong)
    assert drawn[3].texts[0].get_text() == "sd\N{NO-BREAK SPACE}0.38"
    assert [axes.get_title("left") for axes in drawn[1::3]] == list(PERTURBATIONS)


def test_a_tall_and_narrow_image_is_drawn():
    """An image of any shape makes a figure that can be written."""
    figure = plot_perturbations(PIXELS[:1, :8].repeat(90, 0), name="cat")
    assert png_bytes(figure).startswith(b"\x89PNG")
