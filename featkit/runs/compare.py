"""Compare saved runs on the same test images, and one run over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featkit.errors import DataError, SpecError
from featkit.evaluation import PairedComparison, Predictions, Report, compare
from featkit.evaluation.clusters import Clusters, proportion_interval
from featkit.evaluation.costs import CostComparison, CostMatrix, compare_costs
from featkit.evaluation.display import data_frame, html_table
from featkit.evaluation.effects import SEED, average, score_cells
from featkit.evaluation.folds import FoldComparison, FoldPrecisions, FoldScores, compare_folds
from featkit.evaluation.intervals import Interval
from featkit.evaluation.metrics import MEAN_AVERAGE_PRECISION, TOP1
from featkit.evaluation.multilabel import MultiLabelReport, compare_precision
from featkit.runs.names import distinct_names, run_details
from featkit.runs.results import read_any_run
from featkit.storage import (
    resolve_folders,
    safe_cell,
    without_apostrophe,
)

_NamedRun = tuple[str, Report | MultiLabelReport, Predictions, Path]
"""Name, report, predictions and directory of a run."""

UNEQUAL_DATA = (
    "Heads are fitted on the training and validation images, trained networks on the training "
    "images only."
)
"""Note on a comparison of heads with trained networks."""


class CommonAccuracy(NamedTuple):
    """Top-1 accuracy of a run on the images that it is compared on.

    Attributes:
        top1: the accuracy.
        interval95: its 95 % interval, over images or groups.
        n: number of these images.
    """

    top1: float
    interval95: Interval
    n: int


@dataclass(frozen=True)
class RunComparison:
    """Reports of runs by name, best first, and the comparison of each pair.

    Attributes:
        runs: name and report of each run.
        pairs: every two of them.
        folds: corrected t-test of every two of them that were evaluated on the same folds.
        directories: of the runs, in their order; empty for runs that were not read from disk.
        costs: difference in mean cost of every two of them, if all have the same cost matrix.
        common: accuracy of each run on the images that all of them were evaluated on, which
            ``pairs`` and ``costs`` are about; empty if these are all images of each run.
    """

    runs: tuple[tuple[str, Report | MultiLabelReport], ...]
    pairs: tuple[PairedComparison, ...]
    directories: tuple[Path, ...] = ()
    folds: tuple[FoldComparison, ...] = ()
    costs: tuple[CostComparison, ...] = ()
    common: tuple[CommonAccuracy, ...] = ()

    @property
    def values(self) -> dict[str, float]:
        """The metric of each run on the images that they are compared on, by name."""
        if self.common:
            names = [name for name, _ in self.runs]
            return {name: each.top1 for name, each in zip(names, self.common, strict=True)}
        return {name: report.headline.value for name, report in self.runs}

    def to_dict(self) -> dict[str, Any]:
        """Return runs and pairs as JSON can represent them."""
        pairs = [pair.to_dict() for pair in self.pairs]
        values = {"runs": self._rows(), "pairs": pairs, "note": self.note}
        if self.folds:
            values["folds"] = [pair.to_dict() for pair in self.folds]
        if self.costs:
            values["costs"] = [pair.to_dict() for pair in self.costs]
        return values

    @property
    def note(self) -> str:
        """Return what a reader must know: training images, groups, common images, folds."""
        trained = ["training" in report.provenance for _, report in self.runs]
        notes = [UNEQUAL_DATA] if any(trained) and not all(trained) else []
        groups = self.pairs[0].groups if self.pairs else None
        if groups is not None:
            notes.append(f"Tests and intervals of differences resample {groups} groups of images.")
        notes += self._fold_notes()
        if not self.costs and any(report.decision_cost for _, report in self.runs):
            notes.append("Mean costs are not compared: not all runs have the same cost matrix.")
        return " ".join(notes)

    def _fold_notes(self) -> list[str]:
        """Return what pairs of runs on different folds, or on folds and a test set, are about."""
        folded = _folded([(name, report) for name, report in self.runs])
        notes = []
        if self.common:
            tested = [name for name, _ in self.runs if name not in folded]
            notes.append(
                f"Differences are over the {self.common[0].n} images that all runs were evaluated "
                "on, each by a classifier that was not trained on it: test images of "
                f"{_listed(tested)}, out-of-fold predictions of {_listed(list(folded))}."
            )
        if len({scores.assignment for scores in folded.values()}) > 1:
            notes.append(
                f"{_listed(list(folded))} have different folds. The paired tests over images hold, "
                "but the corrected resampled t-test needs the same folds and is left out for such "
                "runs: for it, repeat one with the --folds, --repeats, --seed and --group of the "
                "other."
            )
        return notes

    @property
    def further_sentences(self) -> list[str]:
        """Return a line for each pair of runs on the same folds, and of runs with costs."""
        return [pair.sentence for pair in self.folds] + [pair.sentence for pair in self.costs]

    def to_frame(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row per run.

        Raises:
            FeatkitError: if pandas is not installed.
        """
        return data_frame(self._rows())

    def _repr_html_(self) -> str:
        found = [pair.sentence for pair in self.pairs]
        found += self.further_sentences
        pairs = "".join(f"<li>{escape(sentence)}</li>" for sentence in found)
        return f"{html_table(self._rows())}<ul>{pairs}</ul>"

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for name, report in self.runs:
            key = "top1" if isinstance(report, Report) else "mean_average_precision"
            row = {"name": name, "n": report.n, key: report.headline.value}
            row["interval95"] = report.headline.interval95
            if report.decision_cost is not None:
                row["mean_cost"] = report.decision_cost.mean
                row["cost_interval95"] = report.decision_cost.interval95
            rows.append(row)
        for row, common in zip(rows, self.common, strict=False):
            row["common_n"] = common.n
            row["common_top1"] = common.top1
            row["common_interval95"] = common.interval95
        return rows


def _folded(
    runs: Sequence[tuple[str, Report | MultiLabelReport]],
) -> dict[str, FoldScores | FoldPrecisions]:
    """Return the scores of the runs that were evaluated on folds, by name."""
    found: dict[str, FoldScores | FoldPrecisions] = {}
    for name, report in runs:
        if report.folds is not None:
            found[name] = report.folds
    return found


def _listed(names: Sequence[str]) -> str:
    """Return names as text: ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


@dataclass(frozen=True)
class OverSeeds:
    """Metric over several seeds of the split and of the head.

    Attributes:
        values: metric of each seed: top-1 accuracy, or mean average precision with several labels
            per image.
        mean, deviation: mean and standard deviation (n - 1).
        interval95: of the mean, over test images and seeds, see ``evaluation.effects.average``; of
            two seeds over test images only.
        n: number of distinct test images of all seeds.
        metric: its name.
    """

    values: tuple[float, ...]
    mean: float
    deviation: float
    interval95: Interval
    n: int
    metric: str = TOP1

    @property
    def top1(self) -> tuple[float, ...]:
        """Top-1 accuracy of each seed; empty for another metric."""
        return self.values if self.metric == TOP1 else ()

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON can represent them."""
        return {
            "top1" if self.metric == TOP1 else "mean_average_precision": self.values,
            "mean": self.mean,
            "deviation": self.deviation,
            "interval95": self.interval95,
            "images": self.n,  # "n" is the number of test images of each run
            "seeds": len(self.values),
        }


def over_seeds(predictions: Sequence[Predictions]) -> OverSeeds:
    """Return mean, standard deviation and interval of the metric over seeds.

    It is the top-1 accuracy, or with several labels per image the mean average precision.

    The test images of several seeds may be the same, may overlap or may differ. In none of these
    cases are the accuracies independent values, as Student's t over the seeds would assume: random
    splits draw from the same images.

    Args:
        predictions: of each seed, two or more, on its test images.
    """
    cells = [({SEED: seed}, each) for seed, each in enumerate(predictions)]
    pooled = average(score_cells(cells))
    terms = [each.correct if each.scores is None else each.scores for each in predictions]
    values = [float(np.mean(each)) for each in terms]
    return OverSeeds(
        tuple(values),
        float(np.mean(values)),
        float(np.std(values, ddof=1)),
        pooled.interval95,
        pooled.n,
        TOP1 if predictions[0].scores is None else MEAN_AVERAGE_PRECISION,
    )


def compare_runs(directories: Sequence[Path]) -> RunComparison:
    """Compare saved runs pairwise.

    Runs are shown by the name that they were given, else by head and backbone. Equal names get what
    the runs differ in, such as the seed.

    Runs on a folder and on a CSV file that lists its images name them differently. If the names of
    the test images differ, runs are paired by the files of the images.

    Runs on folds have a prediction of every image by a head that was not trained on it, whatever
    the folds. They are compared with runs on a test set over the images that all of them were
    evaluated on.

    Raises:
        SpecError: if there are fewer than two runs, or one is given twice.
        RunError: if a directory is not a run directory, or has no predictions.
        DataError: if two runs were evaluated on different images or labels.
    """
    named, is_part = _on_common_images(_load_named(directories))
    accuracy = {name: _common_accuracy(found) for name, _, found, _ in named} if is_part else {}
    if is_part:
        named.sort(key=lambda run: -accuracy[run[0]].top1)
    else:
        named.sort(key=lambda run: -run[1].headline.value)
    reports = tuple((name, report) for name, report, _, _ in named)
    pairs = _compare_alike({name: predictions for name, _, predictions, _ in named})
    return RunComparison(
        reports,
        tuple(pairs),
        tuple(directory for _, _, _, directory in named),
        compare_folds(_folded(reports)),
        _compare_costs([(name, report, predictions) for name, report, predictions, _ in named]),
        tuple(accuracy[name] for name, _ in reports if name in accuracy),
    )


def _load_named(directories: Sequence[Path]) -> list[_NamedRun]:
    """Return the runs of directories with different names.

    Raises:
        SpecError: if there are fewer than two, or one is given twice.
        RunError: if a directory is not a run directory, or has no predictions.
    """
    places: set[Path] = set()
    for directory in directories:
        place = directory.resolve()
        if place in places:
            raise SpecError(f"{directory} is given twice: a run cannot be compared with itself")
        places.add(place)
    if len(directories) < 2:
        raise SpecError("a comparison needs two runs or more: give their directories")
    loaded = _named_alike([read_any_run(directory) for directory in directories])
    details = [run_details(report.provenance) for _, report, _ in loaded]
    names = distinct_names([name for name, _, _ in loaded], details)
    named = []
    for directory, name, (_, report, predictions) in zip(directories, names, loaded, strict=True):
        named.append((name, report, predictions, directory))
    return named


def _compare_alike(runs: Mapping[str, Predictions]) -> tuple[PairedComparison, ...]:
    """Compare runs by accuracy, or by mean average precision if they have several labels.

    Raises:
        DataError: if some have several labels per image and others one.
    """
    several = [name for name, predictions in runs.items() if predictions.scores is not None]
    if not several:
        return compare(runs)
    for name in runs:
        if name not in several:
            raise DataError(
                f"run {several[0]} has several labels per image, and run {name} one: compare runs "
                "with the same labels"
            )
    return compare_precision(runs)


def _on_common_images(named: list[_NamedRun]) -> tuple[list[_NamedRun], bool]:
    """Return the predictions of runs on folds and on test sets for the images that all have.

    Every prediction is of a classifier that was not trained on the image, so that they can be
    compared wherever all runs have one.

    Returns:
        The runs, and whether predictions of any were left out. Runs that are all on folds, or all
        on test sets, are returned as they are.

    Raises:
        DataError: if there is no such image, or if images have several labels.
    """
    images = [set(predictions.ids) for _, _, predictions, _ in named]
    folded = _folded([(name, report) for name, report, _, _ in named])
    tested = [name for name, _, _, _ in named if name not in folded]
    several = any(predictions.scores is not None for _, _, predictions, _ in named)
    if not folded or not tested or all(each == images[0] for each in images):
        return named, False
    if several:  # the terms of a mean average precision are relative to all images of its run
        raise DataError(
            f"run {next(iter(folded))} was evaluated by --folds on all images, and run {tested[0]} "
            "on test images only: repeat one of them with or without --folds, as the other"
        )
    common = set.intersection(*images)
    if not common:
        raise DataError(
            f"run {next(iter(folded))} was evaluated by --folds and run {tested[0]} on a test set, "
            "and no image was evaluated by all of the runs: there is none that no classifier was "
            "trained on; compare runs on the same data"
        )
    restricted = []
    for name, report, predictions, directory in named:
        rows = [row for row, image in enumerate(predictions.ids) if image in common]
        restricted.append((name, report, predictions.take(np.array(rows, np.int64)), directory))
    return restricted, True


def _common_accuracy(predictions: Predictions) -> CommonAccuracy:
    """Return the top-1 accuracy of predictions with its interval."""
    correct = predictions.correct
    clusters = Clusters.of(predictions.groups, len(correct))
    return CommonAccuracy(
        float(correct.mean()), proportion_interval(correct, clusters), len(correct)
    )


def _compare_costs(
    named: Sequence[tuple[str, Report | MultiLabelReport, Predictions]],
) -> tuple[CostComparison, ...]:
    """Compare the mean costs of runs on the same images; nothing unless all have the same costs."""
    shared = _shared_costs([report for _, report, _ in named])
    if shared is None:
        return ()
    classes, matrix = shared
    place = {safe_cell(label): number for number, label in enumerate(classes)}
    costs, groups = {}, None
    y = np.array([], np.int64)
    for name, _, predictions in named:
        order = np.argsort(np.asarray(predictions.ids, np.str_))
        y = np.array([place[label] for label in predictions.y[order]], np.int64)
        predicted = np.array([place[label] for label in predictions.predicted[order]], np.int64)
        costs[name] = matrix.of(y, predicted)
        if groups is None and predictions.groups is not None:
            groups = predictions.groups[order]
    return compare_costs(costs, matrix.typical_excess(y), groups)


def _shared_costs(
    reports: Sequence[Report | MultiLabelReport],
) -> tuple[tuple[str, ...], CostMatrix] | None:
    """Return classes and cost matrix of reports; None if they differ, or one has none."""
    found = []
    for report in reports:
        if not isinstance(report, Report) or report.decision_cost is None:
            return None
        found.append((report.classes, report.decision_cost.matrix))
    classes, matrix = found[0]
    alike = all((names, other.rows) == (classes, matrix.rows) for names, other in found)
    return (classes, matrix) if alike else None


def _named_alike(
    loaded: Sequence[tuple[str, Report | MultiLabelReport, Predictions]],
) -> Sequence[tuple[str, Report | MultiLabelReport, Predictions]]:
    """Return runs with the paths of files as names of images, if their own names differ."""
    names = [set(predictions.ids) for _, _, predictions in loaded]
    if all(each == names[0] for each in names):
        return loaded
    named = []
    for title, report, predictions in loaded:
        files = _image_files(predictions.ids, report.provenance["request"]["data"])
        named.append((title, report, replace(predictions, ids=files)))
    return named


def _image_files(names: Sequence[str], data: str) -> Sequence[str]:
    """Return the path of the file of each image; the names themselves if they are no files.

    Args:
        names: as in ``predictions.csv``.
        data: spec of the images of the run.
    """
    source = Path(data)
    if not source.is_absolute() or not source.exists():
        return names
    folder = source if source.is_dir() else source.parent
    files = resolve_folders(folder / without_apostrophe(name) for name in names)
    return [str(file) for file in files]
