"""The value that a study, a table and a page print: what a classifier is worth on a test set."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featkit.errors import DataError
from featkit.evaluation import metrics
from featkit.evaluation.intervals import Interval, balanced_interval, wilson


@dataclass(frozen=True)
class ClassRow:
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
        values = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "cost"}
        values["per_class"] = [vars(row) for row in self.per_class]
        return {name: _plain(value) for name, value in values.items()}

    def to_json(self) -> str:
        """Return ``to_dict`` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Read back what ``to_dict`` wrote; keys that are not of a report, such as ``run``, are left alone.

        Raises:
            DataError: if a part is missing or is not what it should be.
        """
        known = {part.name: values[part.name] for part in fields(cls) if part.name in values}
        try:
            rows = tuple(ClassRow(**row) for row in known["per_class"])
            counts = np.array(known["confusion"], dtype=np.int64).reshape(len(rows), len(rows))
            tuples = {name: tuple(known[name]) for name in ("interval95", "balanced_interval95", "warnings")}
            return cls(**{**known, **tuples, "per_class": rows, "confusion": counts})
        except (KeyError, TypeError, ValueError) as error:
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


def _plain(value: Any) -> Any:
    """Turn NumPy values and tuples into what JSON has; numbers it has not (inf, nan) and other values into text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, bool | int | str | None) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def evaluate(
    scores: ArrayLike,
    y: ArrayLike,
    classes: Sequence[str],
    *,
    columns: ArrayLike | None = None,
    warnings: Iterable[str] = (),
    provenance: Mapping[str, Any] | None = None,
    cost: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Report:
    """Judge scores against the truth.

    Args:
        scores: ``(n, m)``, higher is likelier; any monotone scale. Of equal scores the first is predicted, and among
            the first five a tie counts as a miss (see ``metrics.top_k``).
        y: ``(n,)`` whole numbers, positions in ``classes``.
        classes: k class names.
        columns: ``(m,)`` the class of each column, such as a head's ``classes_``; 0..k-1 if None. A class without a
            column is missed whenever it is the true one.
        warnings: lines that a reader must know.
        provenance: what made the scores.
        cost: seconds and megabytes.
        seed: of the bootstrap.

    Raises:
        DataError: if there is no row, a shape does not fit, a label or column is not a class, or a score is NaN.
    """
    table, truth, named = _checked(scores, y, len(classes), columns)
    counts = metrics.confusion_matrix(truth, metrics.predict(table, named), len(classes))
    hits, totals = np.diag(counts), counts.sum(axis=1)
    right, n = int(hits.sum()), len(truth)
    return Report(
        n=n,
        top1=right / n,
        top5=metrics.top_k(table, truth, named, 5) if len(classes) > 5 else None,
        balanced_accuracy=metrics.balanced_accuracy(counts),
        macro_f1=metrics.macro_f1(counts),
        interval95=wilson(right, n),
        balanced_interval95=balanced_interval(hits, totals, seed=seed),
        per_class=_rows(classes, totals, metrics.per_class(counts)),
        confusion=counts,
        warnings=tuple(warnings),
        provenance=dict(provenance or {}),
        cost=dict(cost or {}),
    )


def _checked(
    scores: ArrayLike, y: ArrayLike, k: int, columns: ArrayLike | None
) -> tuple[metrics.Scores, metrics.Labels, metrics.Labels]:
    table, truth = np.asarray(scores, dtype=np.float64), np.asarray(y)
    named = np.arange(k) if columns is None else np.asarray(columns)
    if not truth.size or not named.size:
        raise DataError(
            f"nothing to judge in scores {table.shape}: a report needs at least one test image and one class"
        )
    if table.shape != (*truth.shape, len(named)) or truth.ndim != 1:
        raise DataError(
            f"scores {table.shape} do not fit y {truth.shape}: expected (n, {len(named)}) scores, (n,) labels"
        )
    for what, values in (("label", truth), ("column", named)):
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= k:
            raise DataError(f"a {what} is not one of the {k} classes: {what}s must be whole numbers in 0..{k - 1}")
    if len(np.unique(named)) < len(named):
        raise DataError("two columns of scores are about the same class: give one column for each class")
    if np.isnan(table).any():
        row = int(np.flatnonzero(np.isnan(table).any(axis=1))[0])
        raise DataError(f"the scores of row {row} hold NaN: look for NaN in the vectors or an unfitted head")
    return table, truth.astype(np.int64), named.astype(np.int64)


def _rows(classes: Sequence[str], totals: metrics.Labels, values: metrics.PerClass) -> tuple[ClassRow, ...]:
    columns = [[None if math.isnan(value) else value for value in part.tolist()] for part in values]
    return tuple(ClassRow(*row) for row in zip(map(str, classes), totals.tolist(), *columns, strict=True))


def summary(report: Report) -> str:
    """Write the report's numbers in one line, in percent with one decimal, 95 % intervals in brackets."""
    parts = [f"top-1 {_percent(report.top1, report.interval95)}"]
    parts += [] if report.top5 is None else [f"top-5 {_percent(report.top5)}"]
    parts += [f"balanced accuracy {_percent(report.balanced_accuracy, report.balanced_interval95)}"]
    return ", ".join([*parts, f"macro F1 {_percent(report.macro_f1)}", f"n = {report.n}"])


def _percent(share: float, interval: Interval | None = None) -> str:
    beside = f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    return f"{100 * share:.1f} %{beside}"
