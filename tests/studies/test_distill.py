"""How much of the gap between teacher and student is closed."""

import numpy as np
import pytest

from featkit.evaluation.predictions import Predictions
from featkit.studies import distill

N = 400


def gap(monkeypatch, correct, groups=None):
    """Return the closed gap and its interval for what teacher, student and distilled got right."""
    names = tuple(f"{row:03d}" for row in range(N))
    runs = {}
    for name, right in zip(("teacher", "alone", "distilled"), correct, strict=True):
        # The runs list the images in orders of their own.
        order = np.random.default_rng(len(name)).permutation(N)
        own = None if groups is None else groups[order].astype(str)
        ids = [names[row] for row in order]
        runs[name] = Predictions(ids, np.zeros(N, int), np.where(right[order], 0, 1), groups=own)
    monkeypatch.setattr(distill, "read_run", lambda name: (name, None, runs[name]))
    found = distill.compare_students({name: name for name in runs})
    return found.gap, found.gap_interval


def test_the_interval_is_over_groups_if_there_are_any(monkeypatch):
    """With groups of one image it is that over images."""
    patients = np.repeat(np.arange(20), 20)
    rng = np.random.default_rng(0)
    teacher = np.ones(N, bool)
    alone, distilled = (rng.random((2, 20)) < [[0.5], [0.8]])[:, patients]
    value, over_images = gap(monkeypatch, (teacher, alone, distilled))
    same, over_groups = gap(monkeypatch, (teacher, alone, distilled), patients)
    assert value == pytest.approx(same)
    assert np.diff(over_groups) > 2.5 * np.diff(over_images)
    alone_in_group = gap(monkeypatch, (teacher, alone, distilled), np.arange(N) + 1000)[1]
    assert alone_in_group == pytest.approx(over_images)


def test_without_a_gap_there_is_no_interval(monkeypatch):
    right = np.arange(N) < 300
    assert gap(monkeypatch, (right, right, right)) == (None, None)
