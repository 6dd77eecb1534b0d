"""Features in two dimensions."""

from __future__ import annotations

import numpy as np
from matplotlib.offsetbox import AnnotationBbox

from featkit.plots.projection import plot_projection


def test_thumbnails_have_a_frame_in_the_colour_of_their_group() -> None:
    positions = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    thumbnails = [np.zeros((8, 8, 3), np.uint8)] * 3
    groups = np.array([1, 0, 1])
    names = ["right", "wrong"]
    figure = plot_projection(positions, groups, names, title="t", thumbnails=thumbnails)
    axes = figure.axes[0]
    points = {each.get_label(): each.get_facecolor()[0][:3] for each in axes.collections}
    boxes = [each for each in axes.artists if isinstance(each, AnnotationBbox)]
    assert len(boxes) == 3
    for box, group in zip(boxes, groups, strict=True):
        assert box.patch.get_visible()
        np.testing.assert_array_equal(box.patch.get_edgecolor()[:3], points[names[group]])
