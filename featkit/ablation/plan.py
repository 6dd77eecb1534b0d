"""Plan of a grid: features and file name of each cell, and the cells that share a head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from featkit.ablation.cells import SCHEMA
from featkit.ablation.grid import LONG_TAIL, AxisValue, Grid
from featkit.embeddings.extract import Extractor
from featkit.embeddings.request import Request
from featkit.errors import SpecError
from featkit.images.multilabel import refuse_multilabel
from featkit.images.perturb import parse_perturbation
from featkit.runs.fit import RESULTS_VERSION, FitConfig, check_head, group_parts
from featkit.runs.multilabel import check_multilabel_config
from featkit.storage import digest, expand_variables

_REQUEST_AXES = ("data", "backbone", "weights", "layer", "precision", "seed")


@dataclass(frozen=True)
class CellFeatures:
    """Requests for the features of a cell.

    Attributes:
        clean: all images, unperturbed, possibly with augmented views.
        train_views: perturbed views of the train images, or None.
        test: the perturbed test images, or None.
    """

    clean: Request
    train_views: Request | None
    test: Request | None

    @property
    def requests(self) -> tuple[Request, ...]:
        """All requests of the cell."""
        return tuple(each for each in (self.clean, self.train_views, self.test) if each)


@dataclass(frozen=True)
class PlannedCell:
    """A cell whose features are available or can be extracted.

    Attributes:
        index: position in ``grid.cells()``.
        values: value on each axis.
        features: requests for its features.
        name: name of its file, see ``cell_name``.
    """

    index: int
    values: Mapping[str, AxisValue]
    features: CellFeatures
    name: str


@dataclass(frozen=True)
class UnavailableCell:
    """A cell that cannot be computed.

    Attributes:
        index: position in ``grid.cells()``.
        values: value on each axis.
        reason: why not.
        error: the error of its features; None if a rule of the grid skips the cell.
    """

    index: int
    values: Mapping[str, AxisValue]
    reason: str
    error: Exception | None = None


@dataclass(frozen=True)
class GridPlan:
    """The cells of a grid, by whether they can be computed."""

    cells: list[PlannedCell]
    unavailable: list[UnavailableCell]


def plan_grid(grid: Grid, extractor: Extractor, without: Iterable[int] = ()) -> GridPlan:
    """Plan the cells of a grid; nothing is extracted.

    Args:
        grid: the grid.
        extractor: plans the cache files.
        without: positions of cells to leave out.
    """
    excluded = set(without)
    plan = GridPlan([], [])
    for index, values in enumerate(grid.cells()):
        if index in excluded:
            continue
        reason = grid.why_skipped(values)
        if reason:
            plan.unavailable.append(UnavailableCell(index, values, reason))
            continue
        try:
            features = cell_features(values, grid.fixed)
            name = cell_name(grid, values, features, extractor)
            check = check_head
            images = extractor.plan(features.clean).images
            if grid.name == LONG_TAIL:
                refuse_multilabel(images, "a long-tail study")
            if images.multilabel:
                check = check_multilabel_config
            check(str(values["head"]), grid.fit_config(values))
        except Exception as error:  # of any kind: it must not stop the other cells
            plan.unavailable.append(UnavailableCell(index, values, str(error), error))
        else:
            plan.cells.append(PlannedCell(index, values, features, name))
    _refuse_both_kinds(plan, extractor)
    return plan


def _refuse_both_kinds(plan: GridPlan, extractor: Extractor) -> None:
    """Raise SpecError if some images of a grid have several labels, and others one."""
    names: dict[bool, str] = {}
    for cell in plan.cells:
        images = extractor.plan(cell.features.clean).images
        names[images.multilabel] = images.name
    if len(names) > 1:
        raise SpecError(
            f"{names[True]} has several labels per image, and {names[False]} one: their metrics "
            "cannot be compared, so run a grid for each"
        )


def cell_features(values: Mapping[str, AxisValue], fixed: Mapping[str, Any]) -> CellFeatures:
    """Return the features that a cell needs; environment variables in its values are replaced.

    Args:
        values: value on each axis of the grid.
        fixed: options that are the same in every cell.

    Raises:
        SpecError: if a perturbation is unknown.
    """
    options = {**fixed, **{name: values[name] for name in _REQUEST_AXES}}
    options = {name: expand_variables(value) for name, value in options.items()}
    options["layer"] = options["layer"] or None
    clean = Request(**options)
    train = parse_perturbation(str(values["train_perturb"]))
    test = parse_perturbation(str(values["perturb"]))
    return CellFeatures(
        clean,
        clean.perturbed("train", str(train)) if train else None,
        clean.perturbed("test", str(test)) if test else None,
    )


def cell_name(
    grid: Grid, values: Mapping[str, AxisValue], features: CellFeatures, extractor: Extractor
) -> str:
    """Return 16 hex digits over everything that determines the numbers of a cell.

    Raises:
        Exception: the error of features that cannot be extracted.
    """
    parts = [str(values["head"]), str(values["seed"]), _config_text(grid.fit_config(values))]
    for request in (features.clean, features.train_views, features.test):
        parts.append(extractor.plan(request).recipe.fingerprint if request else "none")
    images = extractor.plan(features.clean).images
    has_views = bool(features.clean.augment or features.train_views)
    groups = group_parts(str(values["head"]), images.groups, has_views=has_views)
    labels = ["multilabel"] if images.multilabel else []
    splits = images.splits.tolist()
    return digest([*parts, *groups, *labels, *splits, RESULTS_VERSION, str(SCHEMA)])[:16]


def _config_text(config: FitConfig) -> str:
    """Return a fit configuration as version 0.1.0 wrote it, so that its cells are found."""
    return (
        f"Protocol(tune={config.tune!r}, subset={config.subset!r}, balance={config.balance!r}, "
        f"reject={config.reject!r}, progress=None)"
    )


def feature_requests(cells: Iterable[PlannedCell]) -> list[Request]:
    """Return the requests of all features that cells need."""
    requests: list[Request] = []
    for cell in cells:
        requests.extend(cell.features.requests)
    return requests


def group_by_head(cells: Iterable[PlannedCell]) -> list[list[PlannedCell]]:
    """Group cells that share a fitted head: only the perturbation of their test images differs."""
    groups: dict[tuple[AxisValue, ...], list[PlannedCell]] = {}
    for cell in cells:
        key = tuple(value for axis, value in cell.values.items() if axis != "perturb")
        groups.setdefault(key, []).append(cell)
    return list(groups.values())
