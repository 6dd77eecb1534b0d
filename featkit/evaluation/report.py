"""The value that a study, a table and a page print: what a classifier is worth on a test set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError
from featkit.evaluation.calibration import ReliabilityBin, Temperature
from featkit.evaluation.groups import GroupAccuracy
from featkit.evaluation.intervals import Interval
from featkit.evaluation.rejection import Rejection


@dataclass(frozen=True)
class ClassMetrics:
    """One class in a report: its ``n`` test images, and how they and the predictions for it fared.

    ``precision`` is None for a class that was never predicted, ``recall`` and ``f1`` for one without test images:
    there is nothing to divide by.
    """

    name: str
    n: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class ConfusedPair:
    """How many images of one class were taken for another, and their share of the true class's test images."""

    true: str
    predicted: str
    count: int
    share: float


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
        balanced_interval95: interval of ``balanced_accuracy``: bootstrap over test images, at least Wilson's.
        per_class: one row for each class.
        confusion: ``(k, k)`` counts, true class by row, predicted class by column.
        confused: up to ten kinds of mistake, the most frequent first.
        groups: accuracy on classes with many, medium and few training images; None where train is not imbalanced or
            was not given.
        nll, ece: mean negative log likelihood in nats and expected calibration error (15 bins of equal mass), as
            ``calibration`` has them; None where the scores are not probabilities.
        reliability: the bins of ``ece``, by rising confidence.
        temperature: fitted on val, and its smoothing; None where there was none to fit it on.
        nll_calibrated, ece_calibrated, reliability_calibrated: the same at that temperature. Every other number is
            the same with and without it.
        rejection: what becomes of the images when those of low confidence are called unknown, if that was asked for.
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
    per_class: tuple[ClassMetrics, ...]
    confusion: NDArray[np.int64]
    confused: tuple[ConfusedPair, ...] = ()
    groups: tuple[GroupAccuracy, ...] | None = None
    nll: float | None = None
    ece: float | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    temperature: Temperature | None = None
    nll_calibrated: float | None = None
    ece_calibrated: float | None = None
    reliability_calibrated: tuple[ReliabilityBin, ...] = ()
    rejection: Rejection | None = None
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of ``confusion``."""
        return tuple(row.name for row in self.per_class)

    def __str__(self) -> str:
        return summary(self)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; the same for the same seed on the same machine."""
        values = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "cost"}
        return {name: _plain(value) for name, value in values.items()}

    def to_json(self) -> str:
        """Return ``to_dict`` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Read back what this or an earlier version's ``to_dict`` wrote.

        Keys that are not of a report, such as ``run``, are left alone; what an earlier version did not write is as if
        it had not been asked for.

        Raises:
            DataError: if a part is missing or is not what it should be.
        """
        known = {part.name: values[part.name] for part in fields(cls) if part.name in values}
        try:
            tuples = {name: tuple(known[name]) for name in ("interval95", "balanced_interval95", "warnings")}
            rows = {name: _read(kind, known[name]) for name, kind in _ROWS.items() if known.get(name) is not None}
            k = len(known["per_class"])
            counts = np.array(known["confusion"], dtype=np.int64).reshape(k, k)
            return cls(**{**known, **tuples, **rows, "confusion": counts})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a report ({type(error).__name__}: {error}): write it with Report.to_dict") from error

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read back what ``to_json`` wrote.

        Raises:
            DataError: if the text is not the JSON of a report.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise DataError(f"not a report ({error}): write it with Report.to_json") from error
        if not isinstance(values, dict):
            raise DataError(f"not a report (a JSON {type(values).__name__}): write it with Report.to_json")
        return cls.from_dict(values)


_ROWS: Mapping[str, type] = {
    "per_class": ClassMetrics,
    "confused": ConfusedPair,
    "groups": GroupAccuracy,
    "reliability": ReliabilityBin,
    "reliability_calibrated": ReliabilityBin,
    "temperature": Temperature,
    "rejection": Rejection,
}


def _read(kind: type, values: Any) -> Any:
    """Turn what JSON had for a value, or a list of values, of one kind into that."""
    if isinstance(values, list):
        return tuple(_read(kind, row) for row in values)
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _plain(value: Any) -> Any:
    """Turn rows, NumPy values and tuples into what JSON has; numbers it has not (inf, nan) and all else into text."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, bool | int | str | None) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def summary(report: Report) -> str:
    """Write the report's numbers in one line, in percent with one decimal, 95 % intervals in brackets."""
    parts = [f"top-1 {_percent(report.top1, report.interval95)}"]
    parts += [] if report.top5 is None else [f"top-5 {_percent(report.top5)}"]
    parts += [f"balanced accuracy {_percent(report.balanced_accuracy, report.balanced_interval95)}"]
    parts += [f"macro F1 {_percent(report.macro_f1)}"]
    parts += [f"{row.name} {_percent(row.top1, row.interval95)}" for row in report.groups or ()]
    parts += _calibration(report.nll, report.ece)
    if report.temperature is not None:
        at, *rest = _calibration(report.nll_calibrated, report.ece_calibrated)
        parts += [f"at temperature {report.temperature.value:.3g} {at}", *rest]
    return ", ".join([*parts, f"n = {report.n}"])


def _calibration(nll: float | None, ece: float | None) -> list[str]:
    return [] if nll is None or ece is None else [f"NLL {nll:.3f}", f"ECE {_percent(ece)}"]


def _percent(share: float, interval: Interval | None = None) -> str:
    beside = f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    return f"{100 * share:.1f} %{beside}"
