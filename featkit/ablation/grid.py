"""Grids of experiments: axes, options common to all cells, and rules that skip cells."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from featkit.embeddings.request import Request
from featkit.errors import SpecError
from featkit.heads import CORRECTIONS, make_head, parse_correction
from featkit.images.perturb import parse_perturbation
from featkit.images.subsets import parse_subset
from featkit.registry import check_names, check_types
from featkit.runs.fit import FitConfig
from featkit.storage import digest, read_toml

AxisValue = str | int | bool
"""Value on an axis of a grid."""

LONG_TAIL = "longtail"
"""Name of the grid of a long-tail study."""

AXES: Mapping[str, AxisValue] = {
    "data": "digits",
    "backbone": "resnet18",
    "weights": "imagenet",
    "layer": "",
    "precision": "auto",
    "seed": 0,
    "subset": "all",
    "train_perturb": "none",
    "head": "linear",
    "balance": "none",
    "tune": False,
    "perturb": "none",
}
"""Every axis with its default value; the last axis varies fastest.

``data``, ``backbone``, ``weights``, ``layer`` and ``precision`` are as in ``Request``; ``subset``,
``balance`` and ``tune`` as in ``FitConfig``; ``head`` as in ``make_head``. ``perturb`` is applied
to the test images. With ``train_perturb``, a perturbed copy of each train image is added to train.
``seed`` is the seed of split, limit, subset, perturbation and head. ``tune`` tunes the
hyperparameters of the head; in a grid with several corrections those of the correction instead, so
that the head is the same for all.
"""

HEADS = ("linear", "svm", "knn", "mlp", "prototypical")
BUILT_IN: Mapping[str, Sequence[AxisValue]] = {"weights": ("imagenet", "random"), "head": HEADS}
"""The axes of `featkit ablate` without options."""

FIXED = tuple(part.name for part in fields(Request) if part.name not in (*AXES, "part"))
"""Names of the options that are not axes and may be the same in every cell."""


@dataclass(frozen=True)
class Skip:
    """A rule that skips the cells which have one of the listed values on every axis it names."""

    when: Mapping[str, Sequence[AxisValue]]
    why: str

    def covers(self, values: Mapping[str, AxisValue]) -> bool:
        """Return whether the rule skips a cell."""
        return all(values[axis] in skipped for axis, skipped in self.when.items())


@dataclass(frozen=True)
class Grid:
    """Values along each axis, and options that are the same in every cell.

    Attributes:
        name: short name, which is also the name of a folder.
        axes: values of some of ``AXES``; the others have their default.
        fixed: other fields of ``Request``.
        skips: rules that skip cells of the product.

    Raises:
        SpecError: if an axis, an option or a value is unknown, or if all cells are skipped.
    """

    name: str
    axes: Mapping[str, Sequence[AxisValue]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    skips: Sequence[Skip] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise SpecError(
                f"name {self.name!r} of the grid: use letters, digits, dots, dashes and underscores"
            )
        for named in (self.axes, *(rule.when for rule in self.skips)):
            check_names("axis", named, list(AXES))
            for axis, values in named.items():
                _check_values(axis, values)
        check_names("fixed option", self.fixed, list(FIXED))
        check_types(Request, self.fixed)
        cells = self.cells()
        if all(self.why_skipped(values) for values in cells):
            raise SpecError(f"grid {self.name} has no cells: its skip rules match all {len(cells)}")

    @property
    def id(self) -> str:
        """12 hex digits over everything but the name."""
        rules = [[dict(rule.when), rule.why] for rule in self.skips]
        content = json.dumps([dict(self.axes), dict(self.fixed), rules], sort_keys=True)
        return digest([content])[:12]

    def values(self, axis: str) -> Sequence[AxisValue]:
        """Return the values of an axis without duplicates; its default if none were given."""
        return tuple(dict.fromkeys(self.axes.get(axis, (AXES[axis],))))

    def cells(self) -> list[dict[str, AxisValue]]:
        """Return the product of all axes, skipped cells included; neighbours share features."""
        axes = [self.values(axis) for axis in AXES]
        return [dict(zip(AXES, values, strict=True)) for values in product(*axes)]

    def fit_config(self, values: Mapping[str, AxisValue]) -> FitConfig:
        """Return how the head of a cell is fitted."""
        subset, balance, tune = str(values["subset"]), str(values["balance"]), bool(values["tune"])
        # With several corrections, "none" is tuned as a correction too (it has no hyperparameters):
        # otherwise it would be compared as a tuned head with untuned heads.
        tunes_correction = tune and len(self.values("balance")) > 1
        return FitConfig(
            tune=tune,
            subset=None if subset == "all" else subset,
            balance=None if balance == "none" and not tunes_correction else balance,
        )

    def why_skipped(self, values: Mapping[str, AxisValue]) -> str:
        """Return the reason why a rule skips a cell; empty if none does."""
        for rule in self.skips:
            if rule.covers(values):
                return rule.why
        return ""


def check_specs(grid: Grid) -> None:
    """Check what a user may have mistyped on the axes of a grid, before any cell is computed.

    A correction that does not apply to one of the heads is not an error: its cells are skipped.

    Raises:
        SpecError: if a head, a correction, a subset, a perturbation, an option or a value is
            unknown.
    """
    for head in grid.values("head"):
        make_head(str(head))
    for balance in grid.values("balance"):
        CORRECTIONS.make(parse_correction(str(balance)))
    for subset in grid.values("subset"):
        if subset != "all":
            parse_subset(str(subset))
    for axis in ("perturb", "train_perturb"):
        for perturbation in grid.values(axis):
            parse_perturbation(str(perturbation))


def read_grid(path: Path) -> Grid:
    """Read ``name``, ``[axes]``, ``[fixed]`` and ``[[skip]]`` from a TOML file.

    Environment variables, as in ``$HOME/photos``, are replaced when a cell is planned.

    Raises:
        SpecError: if the file does not exist, is not TOML, or does not define a grid.
    """
    document = read_toml(path, "a grid")
    try:
        check_names("part of a grid", document, ["name", "axes", "fixed", "skip"])
        name = str(document.get("name", path.stem))
        rules = _read_rules(document.get("skip", []))
        return Grid(name, _read_table(document, "axes"), _read_table(document, "fixed"), rules)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def _read_rules(rules: Any) -> list[Skip]:
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise SpecError(
            'skip must be a list of tables: write [[skip]], when = {axis = "value"} and why = "..."'
        )
    return [_read_rule(rule) for rule in rules]


def _read_rule(rule: dict[str, Any]) -> Skip:
    check_names("part of a skip", rule, ["when", "why"])
    when, why = _read_table(rule, "when"), rule.get("why")
    if not when or not isinstance(why, str) or not why:
        raise SpecError('a skip rule needs when and why: when = {axis = "value"} and why = "..."')
    listed = {}
    for axis, values in when.items():
        listed[axis] = values if isinstance(values, list) else [values]
    return Skip(listed, why)


def _read_table(document: Mapping[str, Any], part: str) -> dict[str, Any]:
    found = document.get(part, {})
    if not isinstance(found, dict):
        raise SpecError(f"{part} must be a table: write [{part}] and, below it, name = value")
    return found


def _check_values(axis: str, values: Any) -> None:
    if not isinstance(values, list | tuple) or not values:
        raise SpecError(f"axis {axis} must be a list of at least one value, such as {axis} = [...]")
    kind = type(AXES[axis])
    expected = {bool: "true or false", int: "a whole number from 0 up", str: "text"}[kind]
    for value in values:
        # type(), not isinstance(): True is an int, but not a seed.
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise SpecError(f"{axis} = {value!r} is not {expected}")
