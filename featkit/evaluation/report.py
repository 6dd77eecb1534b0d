"""Report of a classifier on a test set: values, JSON and a one-line summary."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError
from featkit.evaluation.calibration import ReliabilityBin, Temperature
from featkit.evaluation.costs import CostMatrix, DecisionCost
from featkit.evaluation.folds import FoldScores
from featkit.evaluation.intervals import Interval
from featkit.evaluation.metrics import BALANCED_ACCURACY, TOP1
from featkit.evaluation.unknown import UnknownImages


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class.

    Attributes:
        name: class name.
        n: number of test images of the class.
        precision: None for a class that was never predicted.
        recall, f1: None for a class without test images.
        recall_interval95: interval of ``recall`` over groups of images; None without groups, where
            it is the Wilson interval of ``recall * n`` of ``n`` images.
    """

    name: str
    n: int
    precision: float | None
    recall: float | None
    f1: float | None
    recall_interval95: Interval | None = None


@dataclass(frozen=True)
class ConfusedPair:
    """Number of images of one class that were predicted as another class.

    Attributes:
        true, predicted: names of the two classes.
        count: number of such images.
        share: ``count`` divided by the number of test images of the true class.
    """

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy on the many-shot, medium-shot or few-shot classes.

    Attributes:
        name: ``many``, ``medium`` or ``few``.
        classes: number of classes of the group that have test images.
        n: number of test images.
        top1: accuracy, every image counting the same.
        interval95: Wilson score interval of ``top1``.
    """

    name: str
    classes: int
    n: int
    top1: float
    interval95: Interval


@dataclass(frozen=True)
class Rejection:
    """Selective classification: accuracy on the images whose confidence reaches a threshold.

    Attributes:
        share: fraction of validation images to reject.
        threshold: confidence below which an image is rejected as unknown; in a cross-validation
            that of the final head, while the other values are at the threshold of each fold.
        answered: number of test images that are not rejected.
        coverage: their fraction of all test images. It differs from ``1 - share``: the threshold
            was chosen on other images, with a head that was fitted on fewer.
        top1: selective accuracy: top-1 on the images that are not rejected; None if all are.
        interval95: Wilson score interval of ``top1``.
        coverage_interval95: Wilson score interval of ``coverage``; None in reports of featkit 0.2.
    """

    share: float
    threshold: float
    answered: int
    coverage: float
    top1: float | None
    interval95: Interval | None
    coverage_interval95: Interval | None = None


@dataclass(frozen=True)
class AccuracyWithout:
    """Accuracy on the test images that are not copies or near copies of training images.

    Attributes:
        copies: number of test images that are left out.
        n: number of the others.
        top1: top-1 accuracy on them; None if there are none.
        interval95: Wilson score interval of ``top1``.
    """

    copies: int
    n: int
    top1: float | None
    interval95: Interval | None


class Headline(NamedTuple):
    """The number by which runs are compared.

    Attributes:
        metric: its name in tables.
        value: a fraction.
        interval95: its 95 % interval.
    """

    metric: str
    value: float
    interval95: Interval


@dataclass(frozen=True)
class Report:
    """Metrics of a classifier on n test images: fractions in 0..1 with 95 % intervals.

    Attributes:
        n: number of test images.
        top1, top5: top-1 and top-5 accuracy; ``top5`` is None for five classes or fewer.
        balanced_accuracy: mean recall over the classes that the test set contains.
        macro_f1: mean F1 over the same classes.
        interval95: interval of ``top1``: Wilson's score interval; with groups at the effective
            number of images, see ``clusters.proportion_interval``.
        balanced_interval95: interval of ``balanced_accuracy``, see ``intervals.balanced_interval``.
        per_class: metrics of each class.
        confusion: ``(k, k)`` counts, true class by row, predicted class by column.
        confused: up to ten most frequent confusions, in descending order.
        groups: accuracy on many-, medium- and few-shot classes; None if the training set is not
            imbalanced or was not given.
        nll, ece: mean negative log-likelihood in nats and expected calibration error (15 bins of
            equal mass), see ``calibration``; None if the scores are not probabilities.
        reliability: bins of ``ece``, by ascending confidence.
        temperature: temperature and smoothing fitted on the validation set; None without one. In a
            cross-validation that of the final head.
        nll_calibrated, ece_calibrated, reliability_calibrated: the same after temperature scaling,
            which changes no other number; in a cross-validation at the temperature of each fold.
        rejection: coverage and selective accuracy at a confidence threshold, if requested.
        unknown: rejection of images of none of the classes, if there are any.
        decision_cost: mean cost of an image by a cost matrix, if there is one.
        test_groups: number of groups of the test images, such as patients, which all intervals
            resample in place of images; None if the images count as independent.
        folds: accuracy over the folds of a cross-validation; all other numbers describe the pooled
            out-of-fold predictions of its first repeat. None for a test set.
        without_copies: accuracy without test images that are copies of training images; None if
            there are none or they were not searched.
        warnings: for the reader, such as a head that did not converge.
        provenance: recipe, head, seed and versions; the same for every repetition of a run.
        cost: seconds and megabytes. They differ between repetitions, so they are not part of
            ``to_dict``.
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
    unknown: UnknownImages | None = None
    decision_cost: DecisionCost | None = None
    test_groups: int | None = None
    folds: FoldScores | None = None
    without_copies: AccuracyWithout | None = None
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of ``confusion``."""
        return tuple(row.name for row in self.per_class)

    @property
    def overall(self) -> Report | FoldScores:
        """What has the ``top1`` and ``interval95`` to show: the mean over all repeats of folds."""
        return self.folds or self

    @property
    def headline(self) -> Headline:
        """The top-1 accuracy with its interval; of folds, the mean over all repeats."""
        return Headline(TOP1, self.overall.top1, self.overall.interval95)

    @property
    def second(self) -> Headline:
        """The balanced accuracy with its interval."""
        return Headline(BALANCED_ACCURACY, self.balanced_accuracy, self.balanced_interval95)

    @property
    def plotted_temperature(self) -> float | None:
        """Temperature of all calibrated scores; None without one, or if each fold has its own."""
        return self.temperature.value if self.temperature and self.folds is None else None

    def __str__(self) -> str:
        return summary(self)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields except for ``cost`` as values that JSON can hold."""
        values: dict[str, Any] = to_json_value(self)
        del values["cost"]
        return values

    def to_json(self) -> str:
        """Return ``to_dict()`` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Return the report of which this or an earlier version's ``to_dict`` returned the values.

        Other keys, such as ``run``, are ignored. Optional fields that an earlier version did not
        write are None or empty.

        Raises:
            DataError: if a required key is missing or a value is invalid.
        """
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        try:
            for name in ("interval95", "balanced_interval95", "warnings"):
                known[name] = tuple(known[name])
            k = len(known["per_class"])
            known["confusion"] = np.array(known["confusion"], dtype=np.int64).reshape(k, k)
            for name, kind in _DATACLASS_FIELDS.items():
                if known.get(name) is not None:
                    known[name] = read_fields(kind, known[name])
            return cls(**known)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"not a report ({type(error).__name__}: {error}): write it with Report.to_dict"
            ) from error

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return the report that ``to_json`` wrote.

        Raises:
            DataError: if the text is not the JSON of a report.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise DataError(f"not a report ({error}): write it with Report.to_json") from error
        if not isinstance(values, dict):
            raise DataError(
                f"not a report (a JSON {type(values).__name__}): write it with Report.to_json"
            )
        return cls.from_dict(values)


_DATACLASS_FIELDS: Mapping[str, type] = {
    "per_class": ClassMetrics,
    "confused": ConfusedPair,
    "groups": GroupAccuracy,
    "reliability": ReliabilityBin,
    "reliability_calibrated": ReliabilityBin,
    "temperature": Temperature,
    "rejection": Rejection,
    "unknown": UnknownImages,
    "decision_cost": DecisionCost,
    "folds": FoldScores,
    "without_copies": AccuracyWithout,
}


_OPTIONAL = ("unknown", "decision_cost", "test_groups", "recall_interval95", "folds")
"""Fields that are written only if there are unknown images, costs, groups or folds."""


def read_fields(kind: type, values: Any) -> Any:
    """Return the dataclass instance, or the tuple of instances, that JSON values describe."""
    if isinstance(values, list):
        return tuple(read_fields(kind, row) for row in values)
    arguments = dict(values)
    for name, value in values.items():
        if name == "matrix":
            arguments[name] = read_fields(CostMatrix, value)
        elif isinstance(value, list):
            arguments[name] = _to_tuples(value)
    return kind(**arguments)


def _to_tuples(value: Any) -> Any:
    """Return lists, and lists inside of them, as tuples."""
    return tuple(_to_tuples(each) for each in value) if isinstance(value, list) else value


def _written_fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, without optional ones that are None."""
    values = dict(vars(value))
    for name in _OPTIONAL:
        if name in values and values[name] is None:
            del values[name]
    return values


def to_json_value(value: Any) -> Any:
    """Return dataclasses, arrays and tuples as dicts and lists.

    Infinite values, NaN and unknown types become strings.
    """
    # First, as most values of a report are.
    if type(value) in _PLAIN_TYPES:
        return value
    if type(value) is float:
        return _finite(value)
    if is_dataclass(value) and not isinstance(value, type):
        return to_json_value(_written_fields(value))
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        # Integers, such as those of a confusion matrix, need not be looked at one by one.
        plain = value.tolist()
        return plain if value.dtype.kind in "biu" else to_json_value(plain)
    return _finite(value)


def _finite(value: Any) -> Any:
    """Return a number or a text; NaN, infinity and values of other types as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, float | int | str) else str(value)


_PLAIN_TYPES = {str, int, bool, type(None)}


def summary(report: Report) -> str:
    """Return the main metrics in one line, in percent, with 95 % intervals in parentheses."""
    parts = [f"top-1 {_percent(report.top1, report.interval95)}"]
    if report.top5 is not None:
        parts.append(f"top-5 {_percent(report.top5)}")
    parts.append(
        f"balanced accuracy {_percent(report.balanced_accuracy, report.balanced_interval95)}"
    )
    parts.append(f"macro F1 {_percent(report.macro_f1)}")
    for group in report.groups or ():
        parts.append(f"{group.name} {_percent(group.top1, group.interval95)}")
    if report.nll is not None and report.ece is not None:
        parts.append(f"NLL {report.nll:.3f}, ECE {_percent(report.ece)}")
    if (
        report.temperature
        and report.nll_calibrated is not None
        and report.ece_calibrated is not None
    ):
        calibrated = f"NLL {report.nll_calibrated:.3f}, ECE {_percent(report.ece_calibrated)}"
        value = f"{report.temperature.value:.3g}"
        if report.folds is None:
            parts.append(f"at temperature {value} {calibrated}")
        else:
            parts.append(f"at the temperature of each fold (final head: {value}) {calibrated}")
    parts.append(f"n = {report.n}")
    text = ", ".join(parts)
    if report.test_groups is not None:
        text += f" images of {report.test_groups} groups, which the intervals resample"
    if report.folds is not None:
        text += f"; {_folds_text(report.folds)}"
    without = report.without_copies
    if without is None:
        return text
    copied = "train or val images" if report.folds is None else "images of other folds"
    copies = f"{without.copies} copies of {copied}"
    if without.top1 is None:
        return f"{text}; no test image is left without {copies}"
    top1 = _percent(without.top1, without.interval95)
    return f"{text}; without {copies}: top-1 {top1}, n = {without.n}"


def _folds_text(folds: FoldScores) -> str:
    text = f"out-of-fold predictions of {folds.folds} folds"
    if folds.repeats == 1:
        return text
    top1 = _percent(folds.top1, folds.interval95)
    return f"{text}; over {folds.repeats} repeats: top-1 {top1}"


def _percent(share: float, interval: Interval | None = None) -> str:
    interval_text = f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    return f"{100 * share:.1f} %{interval_text}"
