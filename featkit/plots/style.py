"""Text, axes and titles in one style for all figures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font, get_font_names
from matplotlib.ticker import PercentFormatter

_FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
)


@cache
def font_families() -> tuple[str, ...]:
    """Return matplotlib's default font and the installed fallbacks for other scripts."""
    installed = set(get_font_names())
    return tuple(family for family in _FAMILIES if family in installed)


@cache
def _drawable() -> frozenset[int]:
    """Return the code points that one of the fonts can draw."""
    paths = [findfont(FontProperties(family=[family])) for family in font_families()]
    return frozenset().union(*(get_font(path).get_charmap() for path in paths))


def drawable(text: str) -> str:
    r"""Return the text with characters that no font can draw as escapes, such as ``\u732b``."""
    return "".join(
        char
        if char.isprintable() and ord(char) in _drawable()
        else char.encode("unicode_escape").decode()
        for char in text
    )


def shorten(names: Sequence[str], limit: int) -> list[str]:
    """Return drawable names of at most ``limit`` characters, with an ellipsis in the middle."""
    return [_shorten(drawable(name), limit) for name in names]


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2 + (limit - 1) % 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def literal_text() -> dict[str, Any]:
    """Return text properties for data: ``$`` does not start a formula, all scripts have a font."""
    return {"parse_math": False, "fontfamily": list(font_families())}


def percent_axis(axis: Axis, *, decimals: int | None = None) -> None:
    """Show an axis of fractions in percent, between 0 and 100; the axis label names the unit.

    Call this after everything was drawn: margins around the data are cut at 0 and 100 %.

    Args:
        axis: ``axes.xaxis`` or ``axes.yaxis``.
        decimals: number of decimals; None for as many as the ticks need.
    """
    axis.set_major_formatter(PercentFormatter(1, decimals, symbol=""))
    low, high = axis.get_view_interval()
    set_limits = axis.axes.set_xlim if isinstance(axis, XAxis) else axis.axes.set_ylim
    set_limits(max(0.0, low), min(1.0, high))
    # Markers and bars at 0 or 100 % would be cut in half.
    for artist in (*axis.axes.lines, *axis.axes.collections):
        artist.set_clip_on(False)


def add_grid(axes: Axes, which: Literal["both", "x", "y"] = "both") -> None:
    """Draw a light grid behind the data and remove the top and right spines."""
    axes.grid(axis=which, color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(axes: Axes, *, title: str = "") -> None:
    """Draw the legend to the right of the axes, its names as literal text."""
    legend = axes.legend(
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        fontsize=8,
        title=drawable(title),
        title_fontsize=8,
        alignment="left",
    )
    for text in (legend.get_title(), *legend.get_texts()):
        text.set(**literal_text())


def series_colour(index: int, count: int) -> tuple[float, float, float, float]:
    """Return the colour of one of ``count`` lines or points."""
    if count <= 10:
        return colormaps["tab10"](index)
    return colormaps["turbo"](index / (count - 1))


def set_title(axes: Axes, title: str, *, width: float, note: str = "") -> None:
    """Set the title above the left edge of the axes, wrapped to ``width`` inches.

    Args:
        axes: of a figure.
        title: any text.
        width: in inches.
        note: written below the title, on lines of its own.
    """
    axes.set_title(_wrapped(title, width, note), loc="left", fontsize=11, **literal_text())


def set_figure_title(figure: Figure, title: str, *, width: float, note: str = "") -> None:
    """Set the title above all axes of a figure, as ``set_title`` does above one."""
    figure.suptitle(_wrapped(title, width, note), x=0.02, ha="left", fontsize=11, **literal_text())


def _wrapped(title: str, width: float, note: str) -> str:
    lines: list[str] = []
    for text in (title, note):
        lines += textwrap.wrap(drawable(text), width=max(20, int(width / 0.095)))
    return "\n".join(lines)
