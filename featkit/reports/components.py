"""Tables and charts of a page as plain values; ``templates/components.html`` draws them.

Charts are SVG with lengths in percent of the space available, so that text keeps its size on every
screen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil, floor, log10
from typing import Literal

Range = tuple[float, float]

# The plot area of a scatter chart, in percent of its width and height: the rest holds the tick
# labels.
_LEFT, _RIGHT, _TOP, _BOTTOM = 10.0, 97.0, 3.0, 90.0
_COLOURS = 9
_COLUMN_KINDS = ("name", "text", "number", "chart")


@dataclass(frozen=True)
class IntervalBar:
    """A value with its confidence interval, drawn as a dot on a line.

    Attributes:
        value, low, high: positions in percent of the width.
        zero: position of a dashed line at zero, if any.
        significant: whether it is drawn filled; otherwise hollow and grey.
    """

    value: float
    low: float
    high: float
    zero: float | None = None
    significant: bool = True


@dataclass(frozen=True)
class TableCell:
    """One cell of a table.

    Attributes:
        text: shown in the cell.
        sort: value that the column is sorted by; ``text`` if None.
        kind: CSS class: ``name``, ``text`` (long), ``number``, ``chart``, ``error`` or a colour
            such as ``h3``.
        title: tooltip.
        is_header: whether the cell names its row.
        detail: second line in small type.
        bar: drawn instead of ``text``.
    """

    text: str = ""
    sort: float | str | None = None
    kind: str = "name"
    title: str = ""
    is_header: bool = False
    detail: str = ""
    bar: IntervalBar | None = None


@dataclass(frozen=True)
class Table:
    """A table; where scripts run, a click on a column header sorts it.

    Attributes:
        caption: description for screen readers.
        columns: column headers.
        rows: one cell for each column.
        sortable: whether the columns can be sorted.
        is_heat_map: whether the cells are coloured by value.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    sortable: bool = True
    is_heat_map: bool = False

    @property
    def column_kinds(self) -> list[str]:
        """Kind of each column, by its first row: headers are aligned like the cells below them."""
        if not self.rows:
            return [""] * len(self.columns)
        return [cell.kind if cell.kind in _COLUMN_KINDS else "" for cell in self.rows[0]]


@dataclass(frozen=True)
class ScatterPoint:
    """A point of a scatter chart.

    Attributes:
        x: positive value.
        y, interval: fraction and its confidence interval.
        title: tooltip.
        label: text next to the point; a point without a label is drawn hollow.
    """

    x: float
    y: float
    interval: Range
    title: str
    label: str = ""


@dataclass(frozen=True)
class Tick:
    """A grid line: its position in percent and its label."""

    position: float
    label: str


@dataclass(frozen=True)
class PlacedPoint:
    """A point of a scatter chart with its positions in percent of the chart."""

    x: float
    y: float
    low: float
    high: float
    title: str
    label: str
    label_side: Literal["left", "right"]


@dataclass(frozen=True)
class ScatterChart:
    """A scatter chart: logarithmic x axis, y axis in percent."""

    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    points: Sequence[PlacedPoint]


def number_cell(text: str, value: float | str) -> TableCell:
    """Return a right-aligned cell that is sorted by ``value``."""
    return TableCell(text, value, "number")


def interval_cell(
    value: float, interval: Range, span: Range, *, significant: bool = True, zero: bool = False
) -> TableCell:
    """Return a cell with an interval bar.

    Args:
        value: the estimate.
        interval: its confidence interval; clipped to ``span``.
        span: values at the left and the right edge.
        significant: whether the bar is drawn filled.
        zero: whether there is a line at zero.
    """
    bar = IntervalBar(
        value=_percent(value, span),
        low=_percent(interval[0], span),
        high=_percent(interval[1], span),
        zero=_percent(0, span) if zero else None,
        significant=significant,
    )
    return TableCell(sort=value, kind="chart", bar=bar)


def span_of(intervals: Iterable[Range], *, zero: bool = False) -> Range:
    """Return a range that holds all intervals with a margin.

    Args:
        intervals: of fractions, or of differences of fractions.
        zero: whether they are differences; the range then holds zero, else it ends at 0 and 1.
    """
    ends = list(chain.from_iterable(intervals))
    if zero:
        ends.append(0.0)
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    margin = max(0.04 * (high - low), 0.002)
    low, high = low - margin, high + margin
    return (low, high) if zero else (max(0.0, low), min(1.0, high))


def colour_class(value: float, span: Range) -> str:
    """Return the CSS class of a value's colour in a heat map, ``h0`` to ``h8``."""
    return f"h{min(_COLOURS - 1, int(_percent(value, span) / 100 * _COLOURS))}"


def scatter_chart(points: Sequence[ScatterPoint], *, x_label: str, y_label: str) -> ScatterChart:
    """Place points on a logarithmic x axis and a y axis in percent.

    Args:
        points: one or more.
        x_label: title of the x axis.
        y_label: title of the y axis.
    """
    x_values = _log_ticks([point.x for point in points])
    x_span = (log10(x_values[0]), log10(x_values[-1]))
    y_span = _percent_span(list(chain.from_iterable(point.interval for point in points)))
    y_values = [y_span[0] + quarter * (y_span[1] - y_span[0]) / 4 for quarter in range(5)]

    def across(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * _percent(log10(value), x_span) / 100

    def up(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * _percent(value, y_span) / 100

    placed = []
    # Labelled points come last, on top of the others. Labels alternate between left and right, so
    # that the labels of neighbours do not overlap.
    for index, point in enumerate(sorted(points, key=lambda point: bool(point.label))):
        low, high = point.interval
        side: Literal["left", "right"] = "left" if index % 2 == 0 else "right"
        placed.append(
            PlacedPoint(
                across(point.x), up(point.y), up(low), up(high), point.title, point.label, side
            )
        )
    return ScatterChart(
        x_label=x_label,
        y_label=y_label,
        x_ticks=[Tick(across(value), f"{value:g}") for value in x_values],
        y_ticks=[Tick(up(value), f"{100 * value:.0f}") for value in y_values],
        points=placed,
    )


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Return ticks around all values: 1, 2, 5 times powers of ten, or only the powers."""
    low, high = floor(log10(min(values))), ceil(log10(max(values))) + 1
    steps = (1, 2, 5) if high - low < 4 else (1,)
    ticks: list[float] = []
    for exponent in range(low, high + 1):
        ticks.extend(step * 10.0**exponent for step in steps)
    first = max(index for index, tick in enumerate(ticks) if tick <= min(values))
    last = min(index for index, tick in enumerate(ticks) if tick > max(values))
    return ticks[first : last + 1]


def _percent_span(values: Sequence[float]) -> Range:
    """Return a range of 4, 8, 20, 40, 80 or 100 points that holds all values, up to 100%.

    Four steps of such a range are whole percentages.
    """
    for width in (4, 8, 20, 40, 80):
        step = width / 4
        low = min(floor(100 * min(values) / step) * step, 100 - width)
        if 100 * max(values) <= low + width:
            return low / 100, (low + width) / 100
    return 0.0, 1.0


def _percent(value: float, span: Range) -> float:
    """Return the position of a value in a range, 0 to 100."""
    return min(100.0, max(0.0, 100 * (value - span[0]) / (span[1] - span[0])))
