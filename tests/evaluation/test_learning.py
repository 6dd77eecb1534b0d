"""The power law of a learning curve."""

from __future__ import annotations

import pytest

from featkit.evaluation.learning import fit_power_law

SHOTS = [1, 2, 4, 8, 16]


def curve(a, b, c):
    return [1 - (c + a * k**-b) for k in SHOTS]


@pytest.mark.parametrize(("a", "b", "c"), [(0.6, 0.5, 0.1), (0.4, 1.0, 0.2)])
def test_an_exact_power_law_is_found_and_the_interval_covers_its_gain(a, b, c):
    accuracy = curve(a, b, c)
    law = fit_power_law(SHOTS, accuracy, [(value - 0.005, value + 0.005) for value in accuracy])
    true_gain = a * (16**-b - 32**-b)
    assert law.gain == pytest.approx(true_gain, abs=2e-3)
    assert law.doubled == pytest.approx(1 - (c + a * 32**-b), abs=2e-3)
    low, high = law.gain_interval95
    assert low <= true_gain <= high


def test_wider_intervals_of_the_points_give_a_wider_interval_of_the_gain():
    accuracy = curve(0.6, 0.5, 0.1)

    def width(half):
        law = fit_power_law(SHOTS, accuracy, [(each - half, each + half) for each in accuracy])
        return law.gain_interval95[1] - law.gain_interval95[0]

    assert width(0.05) > 2 * width(0.005)


def test_three_points_are_too_few():
    assert fit_power_law([1, 2, 4], [0.5, 0.6, 0.7], [(0.4, 0.8)] * 3) is None


def test_a_flat_curve_gains_nothing():
    law = fit_power_law(SHOTS, [1.0] * 5, [(0.99, 1.0)] * 5)
    assert law.gain == pytest.approx(0, abs=2e-3)
