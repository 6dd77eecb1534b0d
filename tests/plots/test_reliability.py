"""Reliability diagrams."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from featkit.evaluation.calibration import ReliabilityBin, calibration_error
from featkit.plots.files import png_bytes
from featkit.plots.reliability import plot_reliability

BINS = (ReliabilityBin(0.5, 0.4, 10, (0.2, 0.6)), ReliabilityBin(0.9, 0.95, 20, (0.8, 0.99)))


def texts(figure: Figure) -> list[str]:
    return [artist.get_text() for artist in figure.findobj(Text)]


def test_each_bin_is_a_point_with_its_interval_gap_and_count() -> None:
    """Without calibration there is one panel."""
    above, below = plot_reliability(BINS, title="t").axes
    points = next(line for line in above.lines if line.get_marker() == "o")
    np.testing.assert_allclose(points.get_xydata(), [[0.5, 0.4], [0.9, 0.95]])
    gaps, intervals = (np.array(part.get_segments()) for part in above.collections)
    np.testing.assert_allclose(gaps[..., 1], [[0.5, 0.4], [0.9, 0.95]])
    np.testing.assert_allclose(intervals[..., 1], [[0.2, 0.6], [0.8, 0.99]])
    np.testing.assert_allclose(
        np.array(below.collections[0].get_segments())[:, 1], [[0.5, 10], [0.9, 20]]
    )


def test_the_headings_show_the_calibration_error_before_and_after() -> None:
    """Computed from the bins."""
    figure = plot_reliability(BINS, title="photos, $svm$", calibrated=BINS[:1], temperature=0.6123)
    assert len(figure.axes) == 4
    assert calibration_error(BINS) == pytest.approx(2 / 30)
    assert {"uncalibrated: ECE 6.7%", "at temperature 0.612: ECE 10.0%", "photos, $svm$"} <= set(
        texts(figure)
    )


@pytest.mark.parametrize("bins", [(ReliabilityBin(1.0, 1.0, 1, (0.2, 1.0)),), BINS * 8])
def test_any_bins_are_drawn_reproducibly_without_warnings(
    bins: tuple[ReliabilityBin, ...],
) -> None:
    """With a title of any length and script."""
    first, second = (
        png_bytes(plot_reliability(bins, title="$x 猫 " * 30, calibrated=bins)) for _ in range(2)
    )
    assert first == second
