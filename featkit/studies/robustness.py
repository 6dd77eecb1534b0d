"""The grid of a robustness study; ``featkit.ablation.conditions`` analyses its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from featkit.ablation.grid import AxisValue, Grid
from featkit.images.perturb import LEVELS, PERTURBATIONS
from featkit.registry import unknown


def robustness_grid(
    given: Mapping[str, Sequence[AxisValue]],
    families: Sequence[str],
    levels: Sequence[str],
    fixed: Mapping[str, Any],
) -> Grid:
    """Return the grid of clean test images and every family of perturbations at every level.

    Args:
        given: values of other axes.
        families: names of perturbations; empty for all.
        levels: ``mild``, ``medium``, ``strong``; empty for all three.
        fixed: options that are the same in all cells.

    Raises:
        SpecError: if a family or a level is unknown, and as ``Grid``.
    """
    for kind, names, known in (("family", families, PERTURBATIONS), ("level", levels, LEVELS)):
        for name in names:
            if name not in known:
                raise unknown(kind, name, list(known))
    combinations = product(families or PERTURBATIONS, levels or LEVELS)
    specs = [f"{family}:level={level}" for family, level in combinations]
    return Grid("robustness", {**given, "perturb": ("none", *specs)}, fixed)
