from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from featkit.plots.confusion import plot_confusion
from featkit.plots.files import png_bytes

ODD = [
    "a$x$b",
    "Übermaß",
    "猫",
    "tab\tnew\nline",
    "x" * 80,
    "100 %",
    "\\alpha_{",
    "😀",
    "",
    "العربية",
]


def counts(k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(0.05, (k, k)) + 20 * np.eye(k, dtype=np.int64)


def names(k: int) -> list[str]:
    return [f"quite_a_long_class_name_{place}" for place in range(k)]


def texts(figure: Figure) -> list[str]:
    return [artist.get_text() for artist in figure.findobj(Text)]


@pytest.mark.parametrize("k", [1, 2, 10, 15, 16, 37, 101, 300])
def test_class_names_do_not_overlap_for_any_number_of_classes(k: int) -> None:
    figure = plot_confusion(counts(k), names(k), title="photos, linear")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    down = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(below.y1 <= above.y0 for above, below in pairwise(down))
    across = [label.get_window_extent() for label in axes.get_xticklabels()]
    slanted = axes.get_xticklabels()[0].get_rotation() == 45
    assert slanted or all(left.x1 <= right.x0 for left, right in pairwise(across))
    assert axes.get_xticklabels()[0].get_fontsize() >= 5.5
    assert figure.get_size_inches().max() < 20


def test_a_small_matrix_shows_counts_in_its_cells() -> None:
    figure = plot_confusion(
        np.array([[143, 9], [12, 1234567]]), ["cat", "dog"], title="photos, linear"
    )
    assert {
        "143",
        "9",
        "12",
        "1234567",
        "cat",
        "dog",
        "photos, linear",
        "true class",
        "predicted class",
    } <= set(texts(figure))
    size = next(
        text for text in figure.findobj(Text) if text.get_text() == "1234567"
    ).get_fontsize()
    assert 5 < size <= 10


def test_rows_are_normalized_and_a_row_without_images_is_empty() -> None:
    figure = plot_confusion(np.array([[9, 1, 0], [0, 0, 0], [1, 1, 2]]), ["a", "b", "c"], title="t")
    shares = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    np.testing.assert_allclose(shares, [[0.9, 0.1, 0], [np.nan] * 3, [0.25, 0.25, 0.5]])


def test_a_large_matrix_lists_the_most_confused_pairs() -> None:
    confusion = 10 * np.eye(20, dtype=np.int64)
    confusion[3, 7], confusion[2, 1], confusion[5, 6] = 4, 1, 4
    confusion[5, 5] = 2
    listed = texts(plot_confusion(confusion, [f"c{place}" for place in range(20)], title="t"))
    pairs = [text for text in listed if "→" in text]
    assert pairs == ["Most confused: true → predicted", "c5 → c6", "c3 → c7", "c2 → c1"]
    assert {"4 of 6", "4 of 14", "1 of 11"} <= set(listed)
    assert "10" not in listed


def test_confused_pairs_that_do_not_fit_are_counted() -> None:
    listed = texts(plot_confusion(np.ones((40, 40), dtype=np.int64), names(40), title="t"))
    shown = sum("→" in text for text in listed) - 1
    assert f"and {40 * 39 - shown} more pairs" in listed


def test_a_matrix_without_errors_has_a_note_instead_of_a_list() -> None:
    assert "No confused classes" in texts(
        plot_confusion(np.eye(16, dtype=np.int64), names(16), title="t")
    )


@pytest.mark.parametrize("repeats", [1, 2])
def test_unusual_class_names_are_drawn_literally_without_warnings(repeats: int) -> None:
    classes = ODD * repeats
    figure = plot_confusion(counts(len(classes)), classes, title="$price$ of 猫")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png_bytes(figure)
    assert "a$x$b" in texts(figure)
    assert not any(text.get_parse_math() for text in figure.axes[0].get_yticklabels())


def test_the_png_is_reproducible() -> None:
    first, second = (png_bytes(plot_confusion(counts(5), names(5), title="t")) for _ in range(2))
    assert first == second
    assert not any(chunk in first for chunk in (b"tEXt", b"iTXt", b"tIME", b"matplotlib"))
