"""Pareto plots of accuracy over latency."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from featkit.plots.files import png_bytes
from featkit.plots.pareto import ParetoPoint, pareto_front, plot_pareto


def point(name, latency, accuracy):
    return ParetoPoint(name, latency, accuracy, (accuracy - 0.01, min(1, accuracy + 0.01)))


POINTS = [
    point("fp32", 40, 0.925),
    point("int8", 11, 0.924),
    point("pruned $x$ <b>", 20, 0.9),
    point("猫", 60, 0.925),
]


def test_the_front_holds_the_points_that_no_other_dominates():
    assert [each.name for each in pareto_front(POINTS)] == ["int8", "fp32"]


def test_one_of_two_equal_points_is_on_the_front():
    assert len(pareto_front([point("a", 1, 0.5), point("b", 1, 0.5)])) == 1


def labels(figure):
    """Return the names in a plot and their boxes, in pixels, as they are drawn."""
    figure.draw_without_rendering()
    found = [text for text in figure.axes[0].texts if text.get_text()]
    # An annotation's own extent would include its arrow, of which these have none.
    return [text.get_text() for text in found], [text.get_window_extent() for text in found]


def crowded(count):
    """Make networks whose points lie close together, as those of a compression study do."""
    rng = np.random.default_rng(count)
    forms = ("", ", int8", ", bf16", ", pruned to 50% of MACs", ", 80% of weights pruned")
    points = []
    for number in range(count):
        latency = 10 ** rng.uniform(1, 2.2)
        accuracy = 0.97 - 0.5 / latency**0.8 - abs(rng.normal(0, 0.012))
        name = f"ResNet-{18 + number // len(forms)}{forms[number % len(forms)]}"
        points.append(point(name, latency, accuracy))
    return points


def test_every_network_is_named_literally_beside_its_point():
    figure = plot_pareto(POINTS, title="linear on caltech101, n = 2893")
    assert figure.axes[0].get_legend() is None
    texts, _ = labels(figure)
    assert {"fp32", "int8", "pruned $x$ <b>"} < set(texts)
    assert len(texts) == len(POINTS)
    again = plot_pareto(POINTS, title="linear on caltech101, n = 2893")
    assert png_bytes(figure) == png_bytes(again)


@pytest.mark.parametrize("count", [3, 30])
def test_no_name_covers_another_name_or_a_point(count):
    points = crowded(count)
    figure = plot_pareto(points, title="")
    texts, boxes = labels(figure)
    assert sorted(texts) == sorted(each.name for each in points)
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    axes = figure.axes[0]
    places = axes.transData.transform([(each.latency, each.accuracy) for each in points])
    inside = axes.get_window_extent()
    for box in boxes:
        assert not box.count_contains(places)
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1 + 1
        assert inside.y0 <= box.y0
        assert box.y1 <= inside.y1


def test_the_front_is_told_from_the_others_without_colour():
    axes = plot_pareto(POINTS, title="").axes[0]
    fills = [line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"]
    assert fills.count("white") == len(POINTS) - len(pareto_front(POINTS))


def test_a_single_network_can_be_drawn():
    assert png_bytes(plot_pareto(POINTS[:1], title="")).startswith(b"\x89PNG")
