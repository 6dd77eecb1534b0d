"""Positions of bars, points and colours."""

from __future__ import annotations

import pytest

from featkit.reports.components import (
    ScatterPoint,
    Table,
    TableCell,
    colour_class,
    scatter_chart,
    span_of,
)


@pytest.mark.parametrize("times", [(0.001, 900), (1, 1), (0.5, 5), (3, 3.1)])
@pytest.mark.parametrize("accuracies", [(0.0, 1.0), (0.9, 0.9), (0.991, 0.999)])
def test_all_points_and_their_intervals_lie_within_the_chart(
    times: tuple[float, float], accuracies: tuple[float, float]
) -> None:
    points = [ScatterPoint(x, y, (y, y), "p", "1") for x in times for y in accuracies]
    chart = scatter_chart(points, x_label="seconds", y_label="top-1 (%)")
    for point in chart.points:
        assert 9.9 <= point.x <= 97.1
        assert all(2.9 <= y <= 90.1 for y in (point.y, point.low, point.high))


def test_the_percent_axis_ends_at_100() -> None:
    """Also where an interval is wide and ends near there."""
    point = ScatterPoint(1, 0.9, (0.873, 0.948), "p", "1")
    chart = scatter_chart([point], x_label="seconds", y_label="top-1 (%)")
    assert [tick.label for tick in chart.y_ticks] == ["80", "85", "90", "95", "100"]


def test_labelled_points_are_drawn_last() -> None:
    points = [ScatterPoint(1, 0.9, (0.8, 1), "a", "1"), ScatterPoint(2, 0.8, (0.7, 0.9), "b")]
    chart = scatter_chart(points, x_label="seconds", y_label="top-1 (%)")
    assert [point.title for point in chart.points] == ["b", "a"]


def test_colours_rise_with_values() -> None:
    assert [colour_class(value, (0.2, 0.8)) for value in (0.2, 0.5, 0.8)] == ["h0", "h4", "h8"]


def test_a_span_holds_all_intervals_and_zero() -> None:
    low, high = span_of([(0.1, 0.3), (0.2, 0.5)], zero=True)
    assert low < 0
    assert high > 0.5
    assert span_of([]) == (0, 1)
    assert span_of([(0.5, 1.0)]) == pytest.approx((0.48, 1.0))


def test_columns_are_aligned_like_their_first_row() -> None:
    row = [TableCell("a"), TableCell("1", 1, "number"), TableCell("2", 2, "h3")]
    assert Table("t", ["a", "b", "c"], [row]).column_kinds == ["name", "number", ""]
    assert Table("t", ["a"], []).column_kinds == [""]
