"""Audit a data set: duplicates, label errors, small classes and images of odd quality.

The statistics are in ``featkit.evaluation.audit``; this module applies them to the images of a
feature set and lists what they found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from featkit.embeddings.base import Embeddings
from featkit.embeddings.request import Request
from featkit.errors import DataError, DecodeError
from featkit.evaluation.audit import (
    LabelErrors,
    find_label_errors,
    neighbour_class_frequencies,
    pool_probabilities,
    small_classes,
    stratified_folds,
)
from featkit.evaluation.display import data_frame, html_table
from featkit.evaluation.quality import LIMIT, QualityLimit, outliers, quality_limits
from featkit.heads import make_head
from featkit.images.base import ImageSet
from featkit.images.groups import group_folds
from featkit.images.quality import MEASURES, measure
from featkit.parallel import in_threads
from featkit.runs.features import FeatureSet, cached_keys, leaks, refuse_trained_on
from featkit.runs.splits import without_views
from featkit.similarity import (
    NearDuplicates,
    Neighbours,
    Track,
    connected_groups,
    exact_duplicates,
    near_duplicates,
    nearest_neighbours,
)
from featkit.storage import csv_text

Rows = NDArray[np.int64]

FEW = 20
"""Classes with fewer training images are reported as small: the few-shot classes of Liu et al.,
"Large-scale long-tailed recognition in an open world", CVPR 2019."""

KINDS = ("identical", "near", "suspect", "small")
"""Kinds of findings: identical images, near duplicates, suspect labels, small classes."""

QUALITY = ("dark", "bright", "blurred", "low information", "odd size", "odd aspect ratio")
"""Kinds of findings about the quality of images, present if the images were measured."""

# Column of the measure, and the sign of the deviations that count (0 for both).
_QUALITY_OF = {
    "dark": (0, -1),
    "bright": (0, 1),
    "blurred": (1, -1),
    "low information": (2, -1),
    "odd size": (3, 0),
    "odd aspect ratio": (4, 0),
}
# Smaller differences are imperceptible: 9 grey levels, 26 % of the relative variance of the
# Laplacian, 0.15 bits, 11 % of the pixels, 4 % of the aspect ratio.
_QUALITY_FLOORS = (0.15, 0.1, 0.15, 0.15, 0.05)
_QUALITY_SIDES = ((True, True), (True, False), (True, False), (True, True), (True, True))

_HEAD = "linear"
_FOLDS = 3
# Floors of the two probability estimates, so that neither can veto a class. Chosen on ResNet-18
# features of Caltech-101 with 3% of the labels changed; experiments/benchmarks/README.md has the
# alternatives and other data.
_HEAD_FLOOR, _NEIGHBOUR_FLOOR = 0.001, 0.01


@dataclass(frozen=True)
class Finding:
    """One line of an audit; fields that its kind does not have are empty.

    Attributes:
        kind: one of ``KINDS`` or ``QUALITY``.
        image, split, label: an image and its class; of a small class, the label alone.
        other, other_split, other_label: the image it duplicates, or the class suggested for it.
        group: number of the group of duplicates; -1 for other kinds.
        score: cosine similarity of a near duplicate, odds of a suggested label, training images of
            a small class, robust standard deviations from the median image for odd quality.

    """

    kind: str
    image: str
    split: str
    label: str
    other: str
    other_split: str
    other_label: str
    group: int
    score: float


@dataclass(frozen=True)
class ImageQuality:
    """Measures of the quality of n images, and from where on they are findings.

    Attributes:
        values: ``(n, 5)`` measures, see ``images.quality.measure``; NaN where there is none.
        limits: of each measure: median plus and minus 3.5 robust standard deviations.

    """

    values: NDArray[np.float64]
    limits: tuple[QualityLimit, ...]

    def found(self, kind: str) -> tuple[Rows, NDArray[np.float64]]:
        """Return rows and deviations of the findings of one of ``QUALITY``, the largest first."""
        column, sign = _QUALITY_OF[kind]
        deviations = outliers(self.values[:, column], self.limits[column])
        rows = np.flatnonzero(deviations if not sign else sign * deviations > 0)
        rows = rows[np.argsort(-np.abs(deviations[rows]), kind="stable")]
        return rows, deviations[rows]

    def sentence(self) -> str:
        """Return the limits in grey levels, bits and pixels."""
        brightness, sharpness, information, size, aspect = self.limits
        smallest, largest = (2 ** (_end(end) / 2) for end in (size.low, size.high))
        narrow, wide = 2 ** _end(aspect.low), 2 ** _end(aspect.high)
        return (
            f"Quality: outside the median -/+ {LIMIT} robust standard deviations (1.4826 MAD), "
            f"that is a mean grey level below\n{_grey(brightness.low)} or above "
            f"{_grey(brightness.high)} of 255, a variance of the Laplacian below "
            f"{10 ** _end(sharpness.low):.2g} of that of the grey levels,\nan entropy below "
            f"{max(_end(information.low), 0):.1f} bits, fewer pixels than a square with sides of "
            f"{smallest:.0f} or more than one of {largest:.0f},\nor a width / height below "
            f"{narrow:.2f} or above {wide:.2f}."
        )


def _grey(log_odds: float | None) -> str:
    """Return the grey level of log-odds of white."""
    level = 256 / (1 + math.exp(-_end(log_odds))) - 0.5
    return f"{min(max(level, 0), 255):.0f}"


def _end(end: float | None) -> float:
    return 0.0 if end is None else end


@dataclass(frozen=True)
class AuditResult:
    """The result of an audit of n images; rows are those of ``embeddings``.

    Attributes:
        data: name of the images.
        request: where they come from.
        embeddings: their features, labels and ids.
        identical: groups of rows with identical content.
        leaks: ``(l,)`` rows of test images whose content is also in train or val.
        near: pairs of near duplicates.
        suspects: images whose label is probably wrong; of identical images the first one only.
        small: ``(c,)`` classes with fewer than ``few`` training images, or without test images.
        sizes: ``(k, 2)`` number of images of each class in train and in test.
        few: threshold for small classes.
        notes: warnings, such as the number of labels that could not be checked.
        quality: of the images; None if they were not measured.

    """

    data: str
    request: Request
    embeddings: Embeddings
    identical: list[Rows]
    leaks: Rows
    near: NearDuplicates
    suspects: LabelErrors
    small: Rows
    sizes: Rows
    few: int
    notes: tuple[str, ...] = ()
    quality: ImageQuality | None = None

    def findings(self) -> dict[str, list[Finding]]:
        """Return the findings of each kind, the most certain first."""
        found: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
        for group, rows in enumerate(self.identical):
            for row in rows[1:]:
                found["identical"].append(self._pair("identical", rows[0], row, group, 1.0))
        groups = connected_groups(self.near.pairs).tolist()
        for (first, second), group, cosine in zip(
            self.near.pairs, groups, self.near.cosines.tolist(), strict=True
        ):
            found["near"].append(self._pair("near", first, second, group, cosine))
        classes, suspects = self.embeddings.classes, self.suspects
        for row, suggested, odds in zip(
            suspects.rows, suspects.suggested, suspects.odds.tolist(), strict=True
        ):
            found["suspect"].append(
                Finding("suspect", *self._image(row), "", "", classes[suggested], -1, odds)
            )
        for label in self.small:
            n_train = float(self.sizes[label, 0])
            found["small"].append(Finding("small", "", "", classes[label], "", "", "", -1, n_train))
        return {**found, **self._quality_findings()}

    def _quality_findings(self) -> dict[str, list[Finding]]:
        if self.quality is None:
            return {}
        found: dict[str, list[Finding]] = {kind: [] for kind in QUALITY}
        for kind in QUALITY:
            rows, deviations = self.quality.found(kind)
            for row, deviation in zip(rows, deviations.tolist(), strict=True):
                found[kind].append(Finding(kind, *self._image(row), "", "", "", -1, deviation))
        return found

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of findings by kind.

        Of duplicates also the number that cross splits, and that have different labels.
        """
        counts = {
            "identical": {"found": len(self.identical), **self._mixed(self.identical)},
            "near": {"found": len(self.near.pairs), **self._mixed(self.near.pairs)},
            "suspect": {"found": len(self.suspects.rows)},
            "small": {"found": len(self.small)},
        }
        if self.quality is not None:
            counts |= {kind: {"found": len(self.quality.found(kind)[0])} for kind in QUALITY}
        return counts

    def rows_in(self, images: ImageSet) -> Rows:
        """Return the row of each audited image in ``images``, ``(n,)``.

        Raises:
            DataError: if one is missing there.
        """
        return rows_of(images, self.embeddings.ids, self.data)

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON can hold them."""
        near = self.near
        limits = () if self.quality is None else self.quality.limits
        return {
            "data": self.data,
            "images": len(self.embeddings),
            "counts": self.counts(),
            "in_train_and_test": [self.embeddings.ids[row] for row in self.leaks],
            "near_duplicates": {
                "ratio": near.ratio,
                "k": near.k,
                "dimension": near.dimension if math.isfinite(near.dimension) else None,
                "median_cosine_threshold": near.cosine,
            },
            "few": self.few,
            "quality_limits": [asdict(limit) for limit in limits],
            "notes": list(self.notes),
            "findings": self._rows(),
        }

    def to_csv(self) -> str:
        """Return one line per finding."""
        return csv_text(self._rows(), [field.name for field in fields(Finding)])

    def to_frame(self) -> Any:
        """Return the findings as a ``pandas.DataFrame``, one row each."""
        return data_frame(self._rows())

    def _repr_html_(self) -> str:
        return html_table([{"finding": kind, **count} for kind, count in self.counts().items()])

    def _rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for findings in self.findings().values():
            rows.extend(asdict(finding) for finding in findings)
        return rows

    def _pair(self, kind: str, first: int, second: int, group: int, score: float) -> Finding:
        return Finding(kind, *self._image(first), *self._image(second), group, score)

    def _image(self, row: int) -> tuple[str, str, str]:
        embeddings = self.embeddings
        return (
            embeddings.ids[row],
            str(embeddings.splits[row]),
            embeddings.classes[embeddings.y[row]],
        )

    def _mixed(self, groups: Iterable[Rows]) -> dict[str, int]:
        across_splits = labels_differ = 0
        for rows in groups:
            across_splits += len(np.unique(self.embeddings.splits[rows])) > 1
            labels_differ += len(np.unique(self.embeddings.y[rows])) > 1
        return {"across_splits": across_splits, "labels_differ": labels_differ}


def audit(
    source: FeatureSet,
    *,
    few: int = FEW,
    progress: bool = False,
    images: ImageSet | None = None,
    threads: int = 1,
) -> AuditResult:
    """Find duplicates, label errors, small classes and images of odd quality in all splits.

    Labels are compared with the out-of-fold predictions of a linear head and with the labels of the
    nearest neighbours. Identical images count once, so that no copy of an image supports its label.

    Args:
        source: the features.
        few: report classes with fewer training images.
        progress: whether to show progress bars on stderr.
        images: the images of the features, each of which is read to measure its quality; None to
            leave quality out.
        threads: number of threads that read images.

    Raises:
        CacheError: if the cache file is missing or damaged.
        DataError: if there are fewer than two different images, or the network was trained on some
            of them: it may have memorised their labels, wrong ones too.

    """
    refuse_trained_on(source, "an audit")
    source = replace(source, embeddings=without_views(source.embeddings))
    embeddings, keys = source.embeddings, cached_keys(source)
    distinct = np.sort(np.unique(keys, return_index=True)[1])
    bar = partial(tqdm, disable=not progress, leave=False)
    neighbours = nearest_neighbours(
        embeddings.x[distinct], track=partial(bar, desc="neighbours", unit="block")
    )
    near = near_duplicates(neighbours)
    track = partial(bar, desc="labels", unit="fold")
    suspects, notes = _label_errors(
        embeddings.take(distinct), neighbours, source.request.seed, track
    )
    small, sizes = small_classes(embeddings.y, embeddings.splits, len(embeddings.classes), few)
    quality = None
    if images is not None:
        rows = rows_of(images, embeddings.ids, source.data)
        track = partial(bar, desc="quality", unit="img")
        quality, unread = _measure_quality(images, rows, threads, track)
        notes = (*notes, *unread)
    return AuditResult(
        data=source.data,
        request=source.request,
        embeddings=embeddings,
        identical=exact_duplicates(keys),
        leaks=leaks(source),
        near=replace(near, pairs=distinct[near.pairs]),
        suspects=replace(suspects, rows=distinct[suspects.rows]),
        small=small,
        sizes=sizes,
        few=few,
        notes=notes,
        quality=quality,
    )


def rows_of(images: ImageSet, ids: Sequence[str], data: str) -> Rows:
    """Return the row of each audited image in ``images``, ``(n,)``.

    Raises:
        DataError: if one is missing there.
    """
    place = {name: row for row, name in enumerate(images.ids)}
    if not place.keys() >= set(ids):
        raise DataError(f"{data} has changed since its features were extracted: extract them again")
    return np.array([place[name] for name in ids], np.int64)


def _measure_quality(
    images: ImageSet, rows: Rows, threads: int, track: Track
) -> tuple[ImageQuality, tuple[str, ...]]:
    """Return the quality of some rows of ``images``, and a warning if some cannot be read."""

    def measure_row(row: int) -> NDArray[np.float64]:
        try:
            return measure(images.load(row))
        except DecodeError:
            return np.full(len(MEASURES), np.nan)

    values = np.array(list(in_threads(measure_row, track(rows.tolist()), threads)))
    limits = quality_limits(values, MEASURES, _QUALITY_FLOORS, _QUALITY_SIDES)
    unread = int(np.isnan(values[:, 0]).sum())
    notes = (f"the quality of {unread} images is unknown: they cannot be read",) if unread else ()
    return ImageQuality(values, limits), notes


def _label_errors(
    embeddings: Embeddings, neighbours: Neighbours, seed: int, track: Track
) -> tuple[LabelErrors, tuple[str, ...]]:
    """Return the suspect labels of the classes that are large enough, and warnings."""
    y, k = embeddings.y, len(embeddings.classes)
    checked = np.flatnonzero(np.bincount(y, minlength=k)[y] >= _FOLDS)
    left_out = len(y) - len(checked)
    notes = []
    if left_out:
        notes.append(f"{left_out} labels not checked: fewer than {_FOLDS} images in their class")
    if len(np.unique(y[checked])) < 2:
        notes.append("no label checked: fewer than two classes are large enough")
        return _no_label_errors(notes)
    part = embeddings.take(checked)
    fold, in_one_fold = _folds_of_labels(part, seed)
    if len(in_one_fold):
        names = ", ".join(embeddings.classes[label] for label in in_one_fold)
        notes.append(f"labels of {names} not checked: their groups are too few for {_FOLDS} folds")
        is_kept = ~np.isin(part.y, in_one_fold)
        checked, part, fold = checked[is_kept], part.take(np.flatnonzero(is_kept)), fold[is_kept]
        if len(np.unique(part.y)) < 2:
            return _no_label_errors(notes)
    probabilities, warnings = out_of_fold_probabilities(
        part.x, part.y, k, seed=seed, track=track, fold=fold
    )
    frequencies = neighbour_class_frequencies(neighbours, y, k, embeddings.inner_groups)[checked]
    errors = find_label_errors(pool_with_neighbours(probabilities, frequencies), part.y)
    return replace(errors, rows=checked[errors.rows]), (*notes, *warnings)


def _no_label_errors(notes: Sequence[str]) -> tuple[LabelErrors, tuple[str, ...]]:
    none = np.empty(0, np.int64)
    return LabelErrors(none, none, np.empty(0)), tuple(notes)


def _folds_of_labels(embeddings: Embeddings, seed: int) -> tuple[Rows, Rows]:
    """Return the fold of each image ``(n,)``, and the classes all of whose images are in one fold.

    A head that never saw a class cannot say whether a label of it is right. That happens only with
    groups, which no fold separates.
    """
    y, groups = embeddings.y, embeddings.inner_groups
    if groups is None:
        return stratified_folds(y, _FOLDS, seed), np.empty(0, np.int64)
    numbers = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    fold = np.zeros(len(y), np.int64)
    folds = min(_FOLDS, int(numbers.max()) + 1)
    if folds > 1:
        fold = group_folds(y, numbers, folds, seed)
    of_class = [label for label in np.unique(y) if len(np.unique(fold[y == label])) < 2]
    return fold, np.array(of_class, np.int64)


def out_of_fold_probabilities(
    x: NDArray[np.float32],
    y: Rows,
    k: int,
    *,
    seed: int = 0,
    track: Track = iter,
    fold: Rows | None = None,
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return out-of-fold class probabilities of a linear head.

    Args:
        x: features ``(n, d)``.
        y: labels ``(n,)``, at least three of each class that occurs.
        k: number of classes.
        seed: of the folds.
        track: passes the folds on, and may show how many are done.
        fold: ``(n,)`` fold of each row, counted from 0; None for three stratified folds.

    Returns:
        Probabilities ``(n, k)``, and the warnings of the heads.

    """
    if fold is None:
        fold = stratified_folds(y, _FOLDS, seed)
    probabilities = np.zeros((len(y), k))
    warnings: dict[str, None] = {}
    for number in track(np.unique(fold).tolist()):
        held_out = fold == number
        head = make_head(_HEAD, seed=seed).fit(x[~held_out], y[~held_out])
        probabilities[np.ix_(held_out, head.classes_)] = head.predict_proba(x[held_out])
        warnings |= dict.fromkeys(head.warnings_)
    return probabilities, tuple(warnings)


def pool_with_neighbours(
    probabilities: NDArray[np.float64], frequencies: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Pool the head's probabilities with the neighbours' class frequencies, each ``(n, k)``."""
    return pool_probabilities([(probabilities, _HEAD_FLOOR), (frequencies, _NEIGHBOUR_FLOOR)])
