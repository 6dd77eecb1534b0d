"""Contrast of text in the pages, computed from the colours of their style sheet."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

ON_PAGE = [("text", "background"), ("secondary", "background"), ("accent", "background")]
ON_SURFACE = [("text", "surface"), ("secondary", "surface"), ("error", "background")]
ON_CELLS = [("low", f"h{level}") for level in range(5)] + [
    ("high", f"h{level}") for level in range(6, 9)
]
MARKS = [("accent", "background"), ("muted", "background")]
"""Points and lines of figures: 3:1 is enough for them."""
CSS = files("featkit").joinpath("reports/templates/report.css").read_text(encoding="utf-8")


def colours(scheme):
    """Return the variables of the light or the dark scheme by name."""
    light, dark = (
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", CSS, re.S)
    )
    return light if scheme == "light" else {**light, **dark}


def luminance(colour):
    """Return the relative luminance of a colour, https://www.w3.org/TR/WCAG22/."""
    channels = []
    for place in (1, 3, 5):
        value = int(colour[place : place + 2], 16) / 255
        channels.append(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    red, green, blue = channels
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    darker, brighter = sorted((luminance(one), luminance(other)))
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("pair", ON_PAGE + ON_SURFACE + ON_CELLS, ids="-on-".join)
def test_text_has_a_contrast_of_at_least_four_and_a_half(scheme, pair):
    text, ground = (colours(scheme)[name] for name in pair)
    assert contrast(text, ground) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_middle_colour_of_heat_maps_has_its_own_text_colour(scheme):
    (text,) = set(re.findall(r"\.h5 \{ color: (#[0-9a-f]{6})", CSS))
    assert contrast(text, colours(scheme)["h5"]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("pair", MARKS, ids="-on-".join)
def test_marks_of_figures_have_a_contrast_of_at_least_three(scheme, pair):
    mark, ground = (colours(scheme)[name] for name in pair)
    assert contrast(mark, ground) >= 3


def test_the_contrast_of_black_on_white_is_twenty_one():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_text_has_no_other_colour():
    """Every colour of text is one of the variables above, or the text of the middle colour."""
    given = set(re.findall(r"(?<![-\w])(?:color|fill): ([^;}]+)", CSS))
    named = {f"var(--{name})" for pair in (*ON_PAGE, *ON_SURFACE, *ON_CELLS) for name in pair}
    grounds = {"var(--muted)", "var(--h5)"}
    assert given - {"inherit", "#10151b"} <= named | grounds
