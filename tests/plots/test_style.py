from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from featkit.evaluation.calibration import ReliabilityBin
from featkit.plots.curve import Line, plot_curve
from featkit.plots.files import png_bytes
from featkit.plots.pareto import ParetoPoint, plot_pareto
from featkit.plots.precision import LabelPrecision, plot_average_precision
from featkit.plots.reliability import plot_reliability
from featkit.plots.search import plot_search
from featkit.plots.style import drawable, font_families, literal_text, set_title, shorten
from featkit.plots.training import plot_histories


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


def history_figure() -> Figure:
    parts = ("loss", "top1", "top5")
    values = {f"{split}_{part}": 1.0 for split in ("train", "val") for part in parts}
    return plot_histories({"a": [{"epoch": epoch, **values} for epoch in (1, 2)]}, title="t")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_curve(
            [Line("a", np.array([1.0, 2.0]), np.array([0.0, 1.0]))],
            title="t",
            x_label="x",
            y_label="y",
        ),
        lambda: plot_pareto([ParetoPoint("a", 1.0, 1.0, (0.0, 1.0))], title="t"),
        lambda: plot_reliability([ReliabilityBin(1.0, 1.0, 9, (0.7, 1.0))], title="t"),
        lambda: plot_average_precision([LabelPrecision("a", 1.0, (0.0, 1.0), 9)], title="t"),
        lambda: plot_search(
            [({"metric": "cosine"}, 1.0), ({"metric": "euclidean"}, 0.0)], title="t"
        ),
        history_figure,
    ],
    ids=["curve", "pareto", "reliability", "precision", "search", "history"],
)
def test_percent_axes_end_at_0_and_100_and_cut_no_marker(draw: Callable[[], Figure]) -> None:
    checked = 0
    for axes in draw().axes:
        for axis in (axes.xaxis, axes.yaxis):
            if not isinstance(axis.get_major_formatter(), PercentFormatter):
                continue
            low, high = axis.get_view_interval()
            assert low >= 0
            assert high == 1
            assert not any(line.get_clip_on() for line in axes.lines)
            checked += 1
    assert checked
