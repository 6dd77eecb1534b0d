"""Training curves."""

import numpy as np

from featkit.plots.files import png_bytes
from featkit.plots.training import plot_histories


def history(n, val=True):
    lines = []
    for epoch in range(1, n + 1):
        share = 1 - 1 / (epoch + 1)
        line = {"epoch": epoch, "rate": 1.0}
        for split in ("train", "val"):
            known = val or split == "train"
            for part, value in (("loss", 1 / epoch), ("top1", share), ("top5", share)):
                line[f"{split}_{part}"] = value if known else float("nan")
        lines.append(line)
    return lines


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_run_has_a_colour_and_each_panel_its_lines():
    figure = plot_histories({"deep": history(5), "full": history(3)}, title="two")
    assert legend(figure) == ["deep", "full", "train", "val"]
    for axes in figure.axes:
        assert len(axes.lines) == 4
        assert len({line.get_color() for line in axes.lines}) == 2
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_without_val_there_is_no_val_in_the_legend():
    figure = plot_histories({"deep": history(2, val=False)}, title="one")
    assert legend(figure) == ["deep", "train"]


def test_run_names_are_drawn_literally():
    figure = plot_histories({"$x$ <b>": history(1)}, title="$y$")
    assert legend(figure)[0] == "$x$ <b>"
    assert not figure.legends[0].get_texts()[0].get_parse_math()


def test_there_is_no_panel_for_top5_of_two_classes():
    lines = [{**line, "train_top5": np.nan, "val_top5": np.nan} for line in history(3)]
    figure = plot_histories({"deep": lines}, title="two classes")
    assert [axes.get_title() for axes in figure.axes] == ["loss", "top-1 accuracy (%)"]
