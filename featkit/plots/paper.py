"""Publication style: the width of a column or a page, text of 8 points, no title."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text

from featkit.plots.style import literal_text

COLUMN = 3.35
"""Width of one column of a two-column page, in inches (85 mm)."""
PAGE = 6.9
"""Width of the text of a page, in inches (175 mm)."""

TEXT = 8.0
"""Size of text, in points."""
_SMALLEST_TEXT = 6.0
_LINE_WIDTH = 1.0
_MARKER_SIZE = 3.5
# Sizes of a legend, in inches.
_LEGEND_BESIDE = 1.9
_LEGEND_ENTRY = 1.6
_LEGEND_LINE = 0.17


def fit_to_paper(figure: Figure, width: float) -> None:
    """Change a figure in place to the style of a printed article.

    The figure gets the given width, in the same proportions. Text has 8 points, or at least 6 where
    it was smaller than 8 before. Titles are removed, since an article has captions, and a legend
    beside the axes is moved below them.

    Args:
        figure: a figure of ``featkit.plots``.
        width: in inches, such as ``COLUMN`` or ``PAGE``.
    """
    natural_width, natural_height = figure.get_size_inches()
    figure.suptitle("")
    extra_height = 0.0
    for axes in figure.axes:
        axes.set_title("", loc="left")
        legend = axes.get_legend()
        if legend is not None and _is_beside(legend):
            natural_width -= _LEGEND_BESIDE
            extra_height += _move_below(figure, legend, width)
    figure.set_size_inches(width, natural_height * width / natural_width + extra_height)
    for text in figure.findobj(Text):
        size = float(text.get_fontsize())  # a number, though the setter takes names too
        text.set_fontsize(TEXT if size >= TEXT else max(_SMALLEST_TEXT, size))
    for line in figure.findobj(Line2D):
        line.set_linewidth(min(_LINE_WIDTH, line.get_linewidth()))
        line.set_markersize(min(_MARKER_SIZE, line.get_markersize()))


def _is_beside(legend: Legend) -> bool:
    """Return whether a legend lies to the right of its axes."""
    axes = legend.axes
    assert axes is not None
    left = axes.transAxes.inverted().transform(legend.get_bbox_to_anchor().get_points())[0, 0]
    return bool(left > 1.0)


def _move_below(figure: Figure, legend: Legend, width: float) -> float:
    """Replace a legend beside its axes by one below; return its height in inches."""
    handles = [handle for handle in legend.legend_handles if handle is not None]
    names = [text.get_text() for text in legend.get_texts()]
    columns = max(1, min(len(names), int(width / _LEGEND_ENTRY)))
    legend.remove()
    below = figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=TEXT
    )
    for text in below.get_texts():
        text.set(**literal_text())
    return _LEGEND_LINE * -(-len(names) // columns)
