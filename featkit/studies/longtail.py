"""The grid of a long-tail study; ``featkit.ablation.conditions.long_tail`` analyses its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featkit.ablation.grid import LONG_TAIL, AxisValue, Grid
from featkit.errors import SpecError
from featkit.heads import CORRECTIONS


def longtail_grid(
    given: Mapping[str, Sequence[AxisValue]], factors: Sequence[float], fixed: Mapping[str, Any]
) -> Grid:
    """Return the grid of imbalance factors and corrections.

    Args:
        given: values of other axes; ``subset`` replaces the factors, ``balance`` the corrections.
        factors: size of the largest class over that of the smallest, each from 1.
        fixed: options that are the same in all cells.

    Raises:
        SpecError: if a factor is below 1, and as ``Grid``.
    """
    if any(factor < 1 for factor in factors):
        raise SpecError(f"imbalance factor {min(factors):g}: give a number from 1")
    subsets = tuple(f"longtail:if={factor:g}" for factor in factors)
    corrections = tuple(given.get("balance") or CORRECTIONS.names())
    return Grid(
        LONG_TAIL, {"subset": subsets, "tune": (True,), **given, "balance": corrections}, fixed
    )
