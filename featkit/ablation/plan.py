"""Cells of a grid and the features that they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featkit.ablation.grid import AxisValue
from featkit.embeddings.request import Request
from featkit.images.perturb import parse_perturbation
from featkit.storage import expand_variables

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
