"""Charts as SVG: lengths in percent of what there is room for, so that texts keep their size on any screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from featkit.reports.markup import Html, join, tag

Range = tuple[float, float]

_LEFT, _BELOW = 10.0, 90.0
"""Where the axes of a scatter plot stand, in percent of its width and of its height."""


def interval_bar(value: float, interval: Range, span: Range, *, doubt: bool = False, zero: bool = False) -> Html:
    """Return a line for an interval, and a dot for the value within it.

    Args:
        value: within ``span``.
        interval: cut at the ends of ``span``.
        span: what the left and the right edge stand for.
        doubt: whether it is drawn hollow and grey.
        zero: whether there is a dashed line at zero.
    """
    at, low, high = (f"{_percent(point, span):.2f}%" for point in (value, *interval))
    base = [tag("line", x1=_share(0, span), x2=_share(0, span), y1=0, y2=20, class_="zero")] if zero else []
    kind = "mark doubt" if doubt else "mark"
    line = tag("line", x1=low, x2=high, y1=10, y2=10, class_=kind)
    return tag("svg", *base, line, tag("circle", cx=at, cy=10, r=4, class_=kind), height=20, aria_hidden="true")


@dataclass(frozen=True)
class ScatterPoint:
    """A place in a scatter plot: ``y`` with its interval over ``x``.

    ``title`` is said when pointed at. ``word`` stands beside the point; one without a word is drawn hollow.
    """

    x: float
    y: float
    interval: Range
    title: str
    word: str = ""


def scatter(points: Sequence[ScatterPoint], *, x_label: str, y_label: str) -> Html:
    """Return points over a logarithmic axis of positive ``x``, ``y`` being fractions that are written in percent."""
    ticks = _ticks([point.x for point in points])
    across, up = (log10(ticks[0]), log10(ticks[-1])), _span([end for point in points for end in point.interval])
    grid = [_down(_across(log10(tick), across), f"{tick:g}") for tick in ticks]
    step = (up[1] - up[0]) / 4
    grid += [_level(_up(up[0] + k * step, up), f"{100 * (up[0] + k * step):.0f}") for k in range(5)]
    names = join(
        tag("text", y_label, x="0%", y="-4"),
        tag("text", x_label, x="100%", y="99%", text_anchor="end"),
    )
    # Words in turn to the left and to the right: neighbours then do not cover each other's.
    above = sorted(points, key=lambda point: bool(point.word))
    drawn = [_dot(point, across, up, left=place % 2 == 0) for place, point in enumerate(above)]
    return tag("div", tag("svg", *grid, names, *drawn, role="img", aria_label=f"{y_label}, {x_label}"), class_="plot")


def _ticks(values: Sequence[float]) -> list[float]:
    """Return 1, 2 and 5 times powers of ten, or these powers alone where there are many, around all values."""
    low, high = floor(log10(min(values))), ceil(log10(max(values))) + 1
    steps = (1, 2, 5) if high - low < 4 else (1,)
    ticks = [step * 10.0**exponent for exponent in range(low, high + 1) for step in steps]
    first = max(place for place, tick in enumerate(ticks) if tick <= min(values))
    last = min(place for place, tick in enumerate(ticks) if tick > max(values))
    return ticks[first : last + 1]


def _span(values: Sequence[float]) -> Range:
    """Return a range of 4, 8, 20, 40, 80 or 100 points that holds all values, and ends at 100 at the latest."""
    for points in (4, 8, 20, 40, 80):
        step = points / 4
        low = min(floor(100 * min(values) / step) * step, 100 - points)
        if 100 * max(values) <= low + points:
            return low / 100, (low + points) / 100
    return 0.0, 1.0


def _dot(point: ScatterPoint, across: Range, up: Range, *, left: bool) -> Html:
    x = f"{_across(log10(point.x), across):.2f}%"
    y, low, high = (f"{_up(value, up):.2f}%" for value in (point.y, *point.interval))
    kind = "mark" if point.word else "mark doubt"
    dot = tag("circle", cx=x, cy=y, r=5, class_=kind)
    line = tag("line", x1=x, x2=x, y1=low, y2=high, class_=kind)
    anchor, beside = ("end", -9) if left else ("start", 9)
    word = tag("text", point.word, x=x, y=y, dx=beside, dy=4, text_anchor=anchor, class_="strong")
    return tag("g", tag("title", point.title), line, dot, word if point.word else "")


def _down(x: float, text: str) -> Html:
    line = tag("line", x1=f"{x:.2f}%", x2=f"{x:.2f}%", y1="0%", y2=f"{_BELOW}%", class_="axis")
    return join(line, tag("text", text, x=f"{x:.2f}%", y=f"{_BELOW}%", dy=16, text_anchor="middle"))


def _level(y: float, text: str) -> Html:
    line = tag("line", x1=f"{_LEFT}%", x2="100%", y1=f"{y:.2f}%", y2=f"{y:.2f}%", class_="axis")
    return join(line, tag("text", text, x=f"{_LEFT}%", y=f"{y:.2f}%", dx=-6, dy=4, text_anchor="end"))


def _across(exponent: float, span: Range) -> float:
    return _LEFT + (97 - _LEFT) * (exponent - span[0]) / (span[1] - span[0])


def _up(value: float, span: Range) -> float:
    return _BELOW - (_BELOW - 3) * _percent(value, span) / 100


def _percent(value: float, span: Range) -> float:
    return min(100.0, max(0.0, 100 * (value - span[0]) / (span[1] - span[0])))


def _share(value: float, span: Range) -> str:
    return f"{_percent(value, span):.2f}%"


def shade(value: float, span: Range) -> str:
    """Return the class of the colour of a value, ``h0`` to ``h8``."""
    return f"h{min(8, int(_percent(value, span) / 100 * 9))}"
