"""The value that a study, a table and a page print: what a classifier is worth on a test set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]


@dataclass(frozen=True)
class ClassRow:
    """One class in a report: its test images, and how they and the predictions for it fared."""

    name: str
    n: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Report:
    """What a classifier is worth on n test images; fractions in 0..1, 95 % intervals beside them.

    Attributes:
        n: number of test images.
        top1, top5: share of images whose class is the first, or among the first five; ``top5`` is None where
            there are at most five classes.
        balanced_accuracy: mean recall over the classes that the test set contains.
        macro_f1: mean F1 over the same classes.
        interval95: Wilson score interval of ``top1``.
        balanced_interval95: bootstrap interval of ``balanced_accuracy`` over test images.
        per_class: one row for each class.
        confusion: ``(k, k)`` counts, true class by row, predicted class by column.
        warnings: what a reader must know, such as a head that did not converge.
        provenance: what made the numbers: recipe, head, seed, versions. The same from run to run.
        cost: seconds and megabytes. Never the same twice, so it is not part of ``to_dict``.
    """

    n: int
    top1: float
    top5: float | None
    balanced_accuracy: float
    macro_f1: float
    interval95: Interval
    balanced_interval95: Interval
    per_class: tuple[ClassRow, ...]
    confusion: NDArray[np.int64]
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of ``confusion``."""
        return tuple(row.name for row in self.per_class)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; the same for the same seed on the same machine."""
        values = asdict(self)
        del values["cost"]
        return {**values, "confusion": self.confusion.tolist()}

    def to_json(self) -> str:
        """Return ``to_dict`` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)
