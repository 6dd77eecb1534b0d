"""Robustness: what perturbed test images cost, by family and level, and how far their vectors move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.ablation.cells import CellResult
from featkit.ablation.grid import AxisValue, Grid
from featkit.evaluation.gains import gain, ratio_interval
from featkit.evaluation.intervals import Interval
from featkit.images.perturb import LEVELS, PERTURBATIONS, Perturbation, parse_perturbation
from featkit.registry import unknown


@dataclass(frozen=True)
class LevelRow:
    """One family at one level; fractions in 0..1, each with its 95 % interval.

    Attributes:
        values: place on every axis of the grid.
        family, level: of the perturbation.
        n: number of test images.
        top1: on the perturbed images.
        drop: top-1 on the same images as they are, less that; None without such a cell.
        relative_drop: the drop over top-1 on the images as they are.
        cosine: mean cosine between the vectors of an image and of the same one perturbed.
    """

    values: dict[str, AxisValue]
    family: str
    level: str
    n: int
    top1: float
    interval95: Interval
    drop: float | None
    drop_interval95: Interval | None
    relative_drop: float | None
    relative_drop_interval95: Interval | None
    cosine: float
    cosine_interval95: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON can hold them."""
        return asdict(self)


@dataclass(frozen=True)
class HeadRow:
    """One fitted head over all perturbations.

    Attributes:
        values: place on every axis but that of the perturbation.
        n, perturbations: number of test images, and of perturbations.
        clean: top-1 on the images as they are, with its interval; None without such a cell.
        perturbed: mean top-1 over the perturbations; intervals of means are bootstraps over images.
        worst_family: the one with the lowest mean top-1 over its levels, and that mean.
        baseline: the network that errors are measured against.
        mce: mean corruption error: for each family the errors, summed over levels, over those of the same head on the
            baseline; their mean over families. None where the baseline has no such cells, or makes no error.

    Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
    ICLR 2019, section 4.
    """

    values: dict[str, AxisValue]
    n: int
    perturbations: int
    clean: float | None
    clean_interval95: Interval | None
    perturbed: float
    perturbed_interval95: Interval
    worst_family: str
    worst_top1: float
    baseline: str
    mce: float | None
    mce_interval95: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON can hold them."""
        return asdict(self)


def robustness_grid(
    given: Mapping[str, Sequence[AxisValue]],
    families: Sequence[str],
    levels: Sequence[str],
    fixed: Mapping[str, Any],
) -> Grid:
    """Return the grid of a robustness study: the images as they are, and every family at every level.

    Raises:
        SpecError: as ``Grid``, and if a family or a level is unknown.
    """
    for kind, names, known in (
        ("family", families, list(PERTURBATIONS)),
        ("level", levels, list(LEVELS)),
    ):
        for name in names:
            if name not in known:
                raise unknown(kind, name, known)
    specs = [
        f"{family}:level={level}"
        for family in families or PERTURBATIONS
        for level in levels or LEVELS
    ]
    return Grid("robustness", {**given, "perturb": ("none", *specs)}, fixed)


Group = dict[Perturbation, CellResult]
"""Cells of one fitted head, by perturbation."""


def _groups(cells: Sequence[CellResult]) -> dict[tuple[tuple[str, AxisValue], ...], Group]:
    groups: dict[tuple[tuple[str, AxisValue], ...], Group] = {}
    for cell in cells:
        if cell.report and cell.predictions:
            group = groups.setdefault(_head(cell.values), {})
            group[parse_perturbation(str(cell.values["perturb"]))] = cell
    return groups


def _head(values: Mapping[str, AxisValue]) -> tuple[tuple[str, AxisValue], ...]:
    return tuple((axis, value) for axis, value in values.items() if axis != "perturb")


def level_rows(cells: Sequence[CellResult]) -> list[LevelRow]:
    """Return a row for each cell with perturbed test images and a result."""
    return [
        _level(group.get(Perturbation()), perturbation, cell)
        for group in _groups(cells).values()
        for perturbation, cell in group.items()
        if perturbation
    ]


def _level(clean: CellResult | None, perturbation: Perturbation, cell: CellResult) -> LevelRow:
    report = cell.report
    assert report
    shift = report.provenance["cosine_to_clean"]
    drop = relative = None
    if clean:
        before, after = _right(clean), _right(cell, clean)
        drop = gain(before, after)
        lost = before.astype(np.float64) - after
        ends = ratio_interval(lost[None], before[None].astype(np.float64))
        relative = (drop[0] / before.mean(), ends) if before.any() else None
    return LevelRow(
        values=dict(cell.values),
        family=perturbation.family,
        level=perturbation.level,
        n=report.n,
        top1=report.top1,
        interval95=report.interval95,
        drop=drop[0] if drop else None,
        drop_interval95=drop[1] if drop else None,
        relative_drop=float(relative[0]) if relative else None,
        relative_drop_interval95=relative[1] if relative else None,
        cosine=shift["mean"],
        cosine_interval95=(shift["low"], shift["high"]),
    )


def _right(cell: CellResult, like: CellResult | None = None) -> NDArray[np.bool_]:
    """Return ``(n,)`` whether each test image was right, in the order of another cell's images."""
    predictions, order = cell.predictions, (like or cell).predictions
    assert predictions is not None
    assert order is not None
    right = dict(
        zip(predictions.ids, (predictions.predicted == predictions.y).tolist(), strict=True)
    )
    return np.array([right[name] for name in order.ids], bool)


def head_rows(cells: Sequence[CellResult], baseline: str) -> list[HeadRow]:
    """Return a row for each fitted head that was judged on perturbed images.

    Args:
        cells: of a matrix.
        baseline: the backbone whose errors are the measure.
    """
    groups = _groups(cells)
    rows = []
    for key, group in groups.items():
        reference = groups.get(
            tuple((axis, baseline if axis == "backbone" else value) for axis, value in key), {}
        )
        if any(group):
            rows.append(_row(dict(key), group, reference, baseline))
    return rows


def _row(values: dict[str, AxisValue], group: Group, reference: Group, baseline: str) -> HeadRow:
    clean, first = group.get(Perturbation()), next(iter(group.values()))
    right = {
        perturbation: _right(cell, first) for perturbation, cell in group.items() if perturbation
    }
    families: dict[str, list[Perturbation]] = {}
    for perturbation in right:
        families.setdefault(perturbation.family, []).append(perturbation)
    means = {
        family: float(np.mean([right[each] for each in own])) for family, own in families.items()
    }
    worst = min(means, key=lambda family: means[family])
    mean = np.mean(list(right.values()), axis=0)[None]
    error = _mce(families, right, reference, first)
    return HeadRow(
        values=values,
        n=mean.shape[1],
        perturbations=len(right),
        clean=clean.report.top1 if clean and clean.report else None,
        clean_interval95=clean.report.interval95 if clean and clean.report else None,
        perturbed=float(mean.mean()),
        perturbed_interval95=ratio_interval(mean, np.ones_like(mean)),
        worst_family=worst,
        worst_top1=means[worst],
        baseline=baseline,
        mce=error[0] if error else None,
        mce_interval95=error[1] if error else None,
    )


def _mce(
    families: Mapping[str, Sequence[Perturbation]],
    right: Mapping[Perturbation, NDArray[np.bool_]],
    reference: Group,
    first: CellResult,
) -> tuple[float, Interval] | None:
    if not right.keys() <= reference.keys():
        return None
    own = np.array([sum(~right[each] * 1.0 for each in levels) for levels in families.values()])
    base = np.array(
        [
            sum(~_right(reference[each], first) * 1.0 for each in levels)
            for levels in families.values()
        ]
    )
    if not base.sum(axis=1).all():
        return None
    return float(np.mean(own.sum(axis=1) / base.sum(axis=1))), ratio_interval(own, base)
