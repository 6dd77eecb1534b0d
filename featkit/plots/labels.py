"""Names of classes and heads as a figure can draw them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font, get_font_names

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
def families() -> tuple[str, ...]:
    """Return matplotlib's own font, then those of its fallbacks for other scripts that this machine has."""
    installed = set(get_font_names())
    return tuple(family for family in _FAMILIES if family in installed)


@cache
def _drawable() -> frozenset[int]:
    """Return the code points that some font of ``families`` can draw."""
    paths = [findfont(FontProperties(family=[family])) for family in families()]
    return frozenset().union(*(get_font(path).get_charmap() for path in paths))


def drawable(text: str) -> str:
    r"""Return the text with characters that no font can draw written as escapes, such as ``\u732b``."""
    return "".join(
        char
        if char.isprintable() and ord(char) in _drawable()
        else char.encode("unicode_escape").decode()
        for char in text
    )


def shortened(names: Sequence[str], limit: int) -> list[str]:
    """Return drawable names of at most ``limit`` characters; what is cut away in the middle leaves an ellipsis."""
    return [_shorten(drawable(name), limit) for name in names]


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2 + (limit - 1) % 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def as_written() -> dict[str, Any]:
    """Return text properties for names that users chose: no ``$`` starts a formula, other scripts find a font."""
    return {"parse_math": False, "fontfamily": list(families())}


def set_title(axes: Axes, title: str, *, width: float) -> None:
    """Write a title above the left edge of a plot, wrapped to ``width`` inches."""
    axes.set_title(_wrapped(title, width), loc="left", fontsize=11, **as_written())


def set_figure_title(figure: Figure, title: str, *, width: float) -> None:
    """Write a title above all plots of a figure, wrapped to ``width`` inches."""
    figure.suptitle(_wrapped(title, width), x=0.02, ha="left", fontsize=11, **as_written())


def _wrapped(title: str, width: float) -> str:
    return "\n".join(textwrap.wrap(drawable(title), width=max(20, int(width / 0.095))))
