"""The grid of a matrix: values along axes, options that stay the same, and which cells are left out and why."""

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
from featkit.registry import check_names
from featkit.runs.fit import FitConfig
from featkit.storage import digest, read_toml

AxisValue = str | int | bool

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
"""Every axis with the value that it has unless others are given. The last one varies fastest.

``data``, ``backbone``, ``weights``, ``layer`` and ``precision`` are as in ``Request``, ``subset``, ``balance`` and
``tune`` as in ``FitConfig``, ``head`` as in ``make_head``. ``perturb`` is done to the test images. With
``train_perturb`` a head is fitted on a perturbed view of each train image as well. ``seed`` is that of the split, the
limit, the subset, the perturbation and the head. ``tune`` chooses options on val: those of the head, or in a grid of
several corrections those of the correction, of which ``none`` has none: the same head in all of them.
"""

HEADS = ("linear", "svm", "knn", "mlp", "prototypical")
BUILT_IN: Mapping[str, Sequence[AxisValue]] = {"weights": ("imagenet", "random"), "head": HEADS}
"""What `featkit ablate` runs when it is told nothing."""

FIXED = tuple(part.name for part in fields(Request) if part.name not in (*AXES, "part"))
"""Names of options that may stay the same in every cell."""


@dataclass(frozen=True)
class Skip:
    """A rule that leaves cells out: those with one of the values listed on every axis that it names."""

    when: Mapping[str, Sequence[AxisValue]]
    why: str

    def covers(self, values: Mapping[str, AxisValue]) -> bool:
        """Return whether a cell is left out."""
        return all(values[axis] in these for axis, these in self.when.items())


@dataclass(frozen=True)
class Grid:
    """Values along each axis, and options that stay the same in every cell.

    Attributes:
        name: short name of the study, fit for a folder.
        axes: values of some of ``AXES``; the others have their one value.
        fixed: other fields of ``Request``.
        skips: which cells of the product are left out.

    Raises:
        SpecError: if an axis, an option or a value is none that anyone knows, or no cell is left.
    """

    name: str
    axes: Mapping[str, Sequence[AxisValue]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    skips: Sequence[Skip] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise SpecError(f"name {self.name!r} of the grid: letters, digits, dots, dashes and underscores, please")
        for named in (self.axes, *(rule.when for rule in self.skips)):
            check_names("axis", named, list(AXES))
            for axis, values in named.items():
                _check(axis, values)
        check_names("fixed option", self.fixed, list(FIXED))
        if all(self.why_skipped(values) for values in self.cells()):
            raise SpecError(f"grid {self.name} has no cell left: its rules skip all {len(self.cells())}")

    @property
    def id(self) -> str:
        """12 hex digits over all but the name."""
        rules = [[dict(rule.when), rule.why] for rule in self.skips]
        return digest([json.dumps([dict(self.axes), dict(self.fixed), rules], sort_keys=True)])[:12]

    def values(self, axis: str) -> Sequence[AxisValue]:
        """Return the values of an axis, given or not."""
        return tuple(dict.fromkeys(self.axes.get(axis, (AXES[axis],))))

    def cells(self) -> list[dict[str, AxisValue]]:
        """Return the product of the axes, skipped or not; neighbours share vectors, and then a head."""
        return [dict(zip(AXES, values, strict=True)) for values in product(*map(self.values, AXES))]

    def fit_config(self, values: Mapping[str, AxisValue]) -> FitConfig:
        """Return how the head of a cell is fitted."""
        subset, balance, tune = str(values["subset"]), str(values["balance"]), bool(values["tune"])
        plain = balance == "none" and not (tune and len(self.values("balance")) > 1)
        return FitConfig(tune, None if subset == "all" else subset, None if plain else balance)

    def why_skipped(self, values: Mapping[str, AxisValue]) -> str:
        """Return why a cell is left out, empty if it is not."""
        return next((rule.why for rule in self.skips if rule.covers(values)), "")


def read_grid(path: Path) -> Grid:
    """Read ``name``, ``[axes]``, ``[fixed]`` and ``[[skip]]`` from a TOML file.

    Environment variables, as in ``$HOME/photos``, are replaced by their values when a cell is run.

    Raises:
        SpecError: if the file is not there, is not TOML, or is not a grid.
    """
    document = read_toml(path, "a grid")
    try:
        check_names("part of a grid", document, ["name", "axes", "fixed", "skip"])
        axes, fixed = (_table(document, part) for part in ("axes", "fixed"))
        return Grid(str(document.get("name", path.stem)), axes, fixed, _skips(document.get("skip", [])))
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def _skips(rules: Any) -> list[Skip]:
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise SpecError('skip must be a list of tables: write [[skip]], when = {axis = "value"} and why = "..."')
    found = []
    for rule in rules:
        check_names("part of a skip", rule, ["when", "why"])
        when, why = _table(rule, "when"), rule.get("why")
        if not when or not isinstance(why, str) or not why:
            raise SpecError('a skip says when and why: when = {axis = "value"} and why = "..."')
        found.append(Skip({axis: these if isinstance(these, list) else [these] for axis, these in when.items()}, why))
    return found


def _table(document: Mapping[str, Any], part: str) -> dict[str, Any]:
    found = document.get(part, {})
    if not isinstance(found, dict):
        raise SpecError(f"{part} must be a table: write [{part}] and, below it, name = value")
    return found


def _check(axis: str, values: Any) -> None:
    if not isinstance(values, list | tuple) or not values:
        raise SpecError(f"axis {axis} must be a list of at least one value, such as {axis} = [...]")
    kind = type(AXES[axis])
    for value in values:
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            wanted = {bool: "true or false", int: "a whole number from 0 up", str: "text"}[kind]
            raise SpecError(f"{axis} = {value!r} is not {wanted}")
