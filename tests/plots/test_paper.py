"""The style of printed articles."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.text import Text

from featkit.plots.confusion import plot_confusion
from featkit.plots.contact import Section, Tile, plot_contact
from featkit.plots.curve import Line, plot_curve
from featkit.plots.files import figure_bytes
from featkit.plots.paper import COLUMN, PAGE, fit_to_paper

X = np.array([1.0, 2.0, 5.0])


def curve(lines):
    drawn = [Line(f"head {number}", X, X / 10, None) for number in range(lines)]
    return plot_curve(drawn, title="A title", x_label="images", y_label="accuracy (%)")


@pytest.mark.parametrize("lines", [1, 4])
def test_a_curve_gets_the_width_of_a_column_and_text_of_eight_points(lines, tmp_path):
    figure = curve(lines)
    fit_to_paper(figure, COLUMN)
    assert figure.get_figwidth() == COLUMN
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert texts
    assert {text.get_fontsize() for text in texts} == {8.0}
    assert "A title" not in {text.get_text() for text in texts}
    page = figure_bytes(figure, tmp_path / "figure.pdf", crop=False)
    (box,) = re.findall(rb"/MediaBox \[([^]]*)\]", page)
    assert float(box.split()[2]) == pytest.approx(72 * COLUMN, abs=0.5)


def test_fonts_are_embedded_as_true_type(tmp_path):
    figure = curve(2)
    fit_to_paper(figure, COLUMN)
    page = figure_bytes(figure, tmp_path / "figure.pdf", crop=False)
    assert b"/Subtype /Type3" not in page
    assert b"/FontFile2" in page


def test_a_legend_beside_the_axes_is_moved_below_them():
    figure = curve(4)
    axes = figure.axes[0]
    assert axes.get_legend() is not None
    fit_to_paper(figure, COLUMN)
    assert axes.get_legend() is None
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"head {n}" for n in range(4)]
    figure.draw_without_rendering()
    assert legend.get_window_extent().y1 <= axes.get_window_extent().y0


@pytest.mark.parametrize("classes", [3, 10, 40, 200])
def test_nothing_of_a_confusion_matrix_is_cut_off(tmp_path, classes):
    confusion = np.eye(classes, dtype=np.int64) * 7
    width = COLUMN if classes <= 10 else PAGE
    names = [f"a rather long name {number}" for number in range(classes)]
    figure = plot_confusion(confusion, names, title="A title", width=width)
    fit_to_paper(figure, width)
    figure_bytes(figure, tmp_path / "figure.pdf", crop=False)
    content = figure.get_tightbbox()
    assert content.width <= width + 0.01


def test_a_contact_sheet_has_as_many_images_in_a_row_as_asked_for():
    image = np.zeros((8, 8, 3), np.uint8)
    tiles = [Tile((image, image), ("name",))] * 3
    wide, narrow = (
        plot_contact([Section("", tiles)], title="", across=across) for across in (6, 4)
    )
    assert narrow.get_figwidth() < wide.get_figwidth()
    assert narrow.get_figheight() > wide.get_figheight()
    one = plot_contact([Section("", tiles)], title="", across=1)
    assert one.get_figheight() > narrow.get_figheight()
