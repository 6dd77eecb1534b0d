"""Pareto plots of accuracy over latency."""

from __future__ import annotations

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


def test_the_legend_names_every_network_literally():
    figure = plot_pareto(POINTS, title="linear on caltech101, n = 2893")
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts[:3] == ["fp32", "int8", "pruned $x$ <b>"]
    assert png_bytes(figure) == png_bytes(
        plot_pareto(POINTS, title="linear on caltech101, n = 2893")
    )


def test_a_single_network_can_be_drawn():
    assert png_bytes(plot_pareto(POINTS[:1], title="")).startswith(b"\x89PNG")
