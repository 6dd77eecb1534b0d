"""Long tails: what each correction is worth, against none, on the same test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from featkit.ablation.cells import CellResult
from featkit.ablation.grid import AxisValue, Grid
from featkit.errors import SpecError
from featkit.evaluation.gains import balanced_gain
from featkit.evaluation.intervals import Interval
from featkit.heads import CORRECTIONS


@dataclass(frozen=True)
class TailRow:
    """One correction on one tail; fractions in 0..1.

    Attributes:
        values: place on every axis of the grid.
        n: number of test images.
        top1, balanced_accuracy: with their 95 % intervals, as in ``Report``.
        many, medium, few: top-1 on classes with so many training images, with its interval; None where there are none.
        val_score: balanced accuracy on val, which alone chooses.
        best_on_val: whether it is the highest of all corrections of the same tail, head and seed.
        gain: balanced accuracy less that without a correction, and its paired interval; None without such a cell.
    """

    values: dict[str, AxisValue]
    n: int
    top1: float
    interval95: Interval
    balanced_accuracy: float
    balanced_interval95: Interval
    many: tuple[float, Interval] | None
    medium: tuple[float, Interval] | None
    few: tuple[float, Interval] | None
    val_score: float | None
    best_on_val: bool
    gain: float | None
    gain_interval95: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON can hold them."""
        return asdict(self)


def longtail_grid(
    given: dict[str, Sequence[AxisValue]], factors: Sequence[float], fixed: dict[str, Any]
) -> Grid:
    """Return the grid of a long-tail study: imbalance factors x corrections, over the axes that are given.

    Raises:
        SpecError: as ``Grid``.
    """
    if any(factor < 1 for factor in factors):
        raise SpecError(f"imbalance factor {min(factors):g}: give a number from 1 up")
    subsets = tuple(f"longtail:if={factor:g}" for factor in factors)
    corrections = given.get("balance") or CORRECTIONS.names()
    return Grid(
        "longtail",
        {"subset": subsets, "tune": (True,), **given, "balance": tuple(corrections)},
        fixed,
    )


def tail_rows(cells: Sequence[CellResult]) -> list[TailRow]:
    """Return a row for each cell with a result, in their order."""
    groups: dict[tuple[AxisValue, ...], list[CellResult]] = {}
    for cell in cells:
        if cell.report and cell.predictions:
            groups.setdefault(_tail(cell), []).append(cell)
    return [_row(cell, groups[_tail(cell)]) for cell in cells if cell.report and cell.predictions]


def _tail(cell: CellResult) -> tuple[AxisValue, ...]:
    return tuple(value for axis, value in cell.values.items() if axis not in ("balance", "tune"))


def _row(cell: CellResult, group: Sequence[CellResult]) -> TailRow:
    report, predictions = cell.report, cell.predictions
    assert report is not None
    assert predictions is not None
    scored = [other for other in group if other.val_score is not None]
    best = max(scored, key=lambda other: other.val_score or 0.0, default=None)
    plain = next((other.predictions for other in group if other.values["balance"] == "none"), None)
    found = None
    if plain and cell.values["balance"] != "none":
        found = balanced_gain(
            predictions.y, predictions.predicted == predictions.y, plain.predicted == plain.y
        )
    sizes = {row.name: (row.top1, row.interval95) for row in report.groups or ()}
    return TailRow(
        values=dict(cell.values),
        n=report.n,
        top1=report.top1,
        interval95=report.interval95,
        balanced_accuracy=report.balanced_accuracy,
        balanced_interval95=report.balanced_interval95,
        many=sizes.get("many"),
        medium=sizes.get("medium"),
        few=sizes.get("few"),
        val_score=cell.val_score,
        best_on_val=cell is best,
        gain=found[0] if found else None,
        gain_interval95=found[1] if found else None,
    )
