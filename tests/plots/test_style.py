from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from featkit.plots.files import png_bytes
from featkit.plots.style import drawable, font_families, literal_text, set_title, shorten


def test_latin_names_are_unchanged() -> None:
    name = "Überraschung, naïve $x$ _under_ ^2 100 % Ελλάδα"
    assert drawable(name) == name


def test_characters_without_a_font_are_escaped_as_in_json() -> None:
    assert drawable("\ue000a") == r"\ue000a" == json.dumps("\ue000a")[1:-1]
    assert drawable("two\nlines\tand \x07") == r"two\nlines\tand \x07"


def test_long_names_keep_both_ends() -> None:
    assert shorten(["resnet18", "abcdefghijklmnop"], 9) == ["resnet18", "abcd…mnop"]
    assert shorten(["abcdefghijk"], 8) == ["abcd…ijk"]


@given(st.text(max_size=30), st.integers(2, 30))
def test_shortened_names_never_exceed_the_limit(name: str, limit: int) -> None:
    (short,) = shorten([name], limit)
    assert len(short) <= limit
    assert short == drawable(name) or "…" in short


def test_matplotlibs_own_font_comes_first() -> None:
    assert font_families()[0] == "DejaVu Sans"


def test_any_text_can_be_drawn_without_a_warning() -> None:
    figure = Figure(layout="constrained")
    texts = ["$\\frac{1$ {", "猫と犬", "ไทย", "😀", "\ue000", "\x00\x1f", "a\nb", "", "\ud800"]
    for place, name in enumerate(shorten(texts, 40)):
        figure.text(0.1, place / 10, name, **literal_text())
    set_title(figure.subplots(), "$" + "猫 " * 40, width=3)
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_long_titles_are_wrapped() -> None:
    axes = Figure().subplots()
    set_title(axes, "one two three four five six seven eight nine ten", width=2.5)
    assert axes.get_title(loc="left").count("\n") == 1
