"""Cross-validation: every image is evaluated by a head that was fitted without it."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.base import Embeddings
from featkit.errors import DataError, SpecError
from featkit.evaluation import evaluate
from featkit.evaluation.calibration import apply_temperature, are_probabilities
from featkit.evaluation.clusters import Clusters
from featkit.evaluation.costs import score_costs
from featkit.evaluation.folds import fold_interval, score_folds
from featkit.evaluation.predictions import Predictions
from featkit.evaluation.report import Report
from featkit.evaluation.scoring import accuracy_without, reject
from featkit.images.augment import is_augmented_view, original_id
from featkit.images.groups import check_class_groups, group_folds
from featkit.images.iterative import iterative_folds
from featkit.runs.features import Copies, FeatureSet, find_copies, refuse_trained_on
from featkit.runs.fit import (
    FitConfig,
    FittedHead,
    FoldPredictions,
    Run,
    check_head,
    fit_head,
    fit_warnings,
    head_warnings,
    run_id,
    run_provenance,
)
from featkit.runs.splits import (
    train_counts,
    whole_split,
    without_views,
)
from featkit.storage import digest, peak_memory_mb


@dataclass(frozen=True)
class _PooledScores:
    """Scores of all images of one repeat, each from the head that was fitted without the image.

    Attributes:
        raw, calibrated: ``(n, k)`` before and after temperature scaling; a class that a head was
            not fitted on has probability 0, or score ``-inf`` if scores are no probabilities.
        thresholds: ``(n,)`` rejection threshold of the fold of each image; 0 without one.
    """

    raw: NDArray[np.float64]
    calibrated: NDArray[np.float64]
    thresholds: NDArray[np.float64]


@dataclass(frozen=True)
class _CrossValidation:
    """Results of all folds.

    Attributes:
        images: embeddings without augmented views.
        folds: number of folds.
        fold_of: ``(repeats, n)`` fold of each image.
        pooled: scores of each repeat.
        final: the head fitted on all images.
        warnings: of the heads of the folds.
        seconds: duration of all fits.
    """

    images: Embeddings
    folds: int
    fold_of: NDArray[np.int64]
    pooled: list[_PooledScores]
    final: FittedHead
    warnings: list[str]
    seconds: float


def fit_folds(
    source: FeatureSet,
    head_spec: str = "linear",
    *,
    folds: int,
    repeats: int = 1,
    seed: int = 0,
    config: FitConfig | None = None,
    on_fold: Callable[[], object] = lambda: None,
) -> Run:
    """Evaluate a head by cross-validation and fit it on all images.

    All images are used, whatever their split. In each fold, hyperparameters, temperature and
    threshold are chosen on a fifth of the other images, and the head is fitted on all other images,
    as in ``fit_run``. The report is that of the pooled out-of-fold predictions of the first repeat;
    ``report.folds`` has the mean over all repeats. The head of the run is fitted on all images in
    the same way.

    Args:
        source: the features.
        head_spec: spec of the head.
        folds: number of folds, two or more.
        repeats: number of random divisions into folds.
        seed: of the folds, the held-out validation images and the head.
        config: how heads are fitted.
        on_fold: called after each fold.

    Raises:
        SpecError: if the head, an option or a value is unknown, or test images are perturbed.
        DataError: if a class or the groups cannot be divided into folds, or the network was trained
            on an image.
    """
    config = config or FitConfig()
    check_head(head_spec, config)
    if source.request.perturb:
        raise SpecError("--perturb changes test images, but --folds tests all: leave out one")
    refuse_trained_on(source, "folds", "`featkit fit` without --folds")
    embeddings = source.embeddings
    images = without_views(embeddings)
    drawn = [named_folds(source, images, folds, seed + repeat) for repeat in range(repeats)]
    fold_of = np.stack(drawn)

    start = time.perf_counter()
    pooled = []
    warned: Counter[str] = Counter()
    for repeat in range(repeats):
        heads = []
        for fold in range(folds):
            tested = {images.ids[row] for row in np.flatnonzero(fold_of[repeat] == fold)}
            part = replace(source, embeddings=hold_out(embeddings, tested), copies=None)
            heads.append(fit_head(part, head_spec, seed, config))
            warned.update(fit_warnings(heads[-1], part.embeddings.part("test")))
            on_fold()
        pooled.append(_pool(heads, images, fold_of[repeat]))
    final = fit_head(source, head_spec, seed, config, whole_split(embeddings, seed, config.subset))
    seconds = time.perf_counter() - start
    fitted = folds * repeats
    lines = [f"in {count} of {fitted} folds: {text}" for text, count in warned.items()]
    found = _CrossValidation(images, folds, fold_of, pooled, final, lines, seconds)
    report = _report(source, found)
    predicted = np.stack([each.raw.argmax(axis=1) for each in pooled])
    confidence = np.stack([each.calibrated.max(axis=1) for each in pooled])
    assert report.folds is not None
    return Run(
        id=digest([run_id(final, source), report.folds.assignment])[:12],
        source=source,
        head_spec=final.head_spec,
        head=final.head,
        report=report,
        predictions=Predictions(
            images.ids, images.y, predicted[0], confidence[0], groups=images.groups
        ),
        search=final.search,
        folds=FoldPredictions(fold_of, predicted, confidence),
    )


def find_fold_copies(
    source: FeatureSet,
    folds: int,
    seed: int,
    repeats: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Copies:
    """Find images with a copy or near copy in another fold of any repeat.

    Args:
        source: the features.
        folds: number of folds.
        seed: of the folds.
        repeats: number of random divisions into folds.
        progress: called with the number of folds that were searched, and of all folds.

    Raises:
        DataError: if the images cannot be divided into folds, or a feature is not finite.
        CacheError: if the cache file is missing or damaged.
    """
    images = without_views(source.embeddings)
    identical: dict[str, None] = {}  # as an ordered set
    most_similar: dict[str, tuple[str, float]] = {}
    drawn = [named_folds(source, images, folds, seed + repeat) for repeat in range(repeats)]
    for done, (fold_of, fold) in enumerate(product(drawn, range(folds)), 1):
        splits = np.where(fold_of == fold, "test", "train")
        found = find_copies(replace(source, embeddings=replace(images, splits=splits)))
        identical |= dict.fromkeys(found.identical)
        for name, original, cosine in zip(found.near, found.originals, found.cosines, strict=True):
            if name not in most_similar or cosine > most_similar[name][1]:
                most_similar[name] = original, cosine
        if progress:
            progress(done, folds * repeats)
    near = [(name, *pair) for name, pair in most_similar.items() if name not in identical]
    near.sort(key=lambda row: -row[2])
    return Copies(
        identical=tuple(identical),
        near=tuple(name for name, _, _ in near),
        originals=tuple(original for _, original, _ in near),
        cosines=tuple(cosine for _, _, cosine in near),
        n=len(images),
        folds=folds,
    )


def named_folds(source: FeatureSet, images: Embeddings, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the folds of the images; errors name the file of the features."""
    try:
        return assign_folds(images, folds, seed)
    except DataError as error:
        raise DataError(f"{source.path}: {error}") from error


def assign_folds(images: Embeddings, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold ``(n,)`` of each image: stratified, and in whole groups if there are groups.

    Args:
        images: without augmented views.
        folds: number of folds.
        seed: of the random division.

    Raises:
        DataError: if there are too few images or groups, or a class or label is in one fold only.
    """
    if images.multilabel:
        return _label_folds(images, folds, seed)
    sizes = np.bincount(images.y, minlength=len(images.classes))
    present = np.flatnonzero(sizes)
    if folds > sizes.max():
        raise DataError(
            f"--folds {folds}, but the largest class has {sizes.max()} images: use fewer folds"
        )
    for label in present[sizes[present] == 1].tolist():
        raise DataError(
            f"class {images.classes[label]!r} has one image, which is in one fold only, so that it "
            "cannot be both trained and tested: add images, or leave the class out"
        )
    if images.groups is None:
        groups = np.arange(len(images))
    else:
        check_class_groups(images.y, images.groups.tolist(), images.classes, folds)
        groups = np.unique(images.groups, return_inverse=True)[1].astype(np.int64)
    fold_of = _stratified_folds(images.y, groups, folds, seed)
    if len(np.unique(fold_of)) < folds:
        raise DataError(f"the groups cannot be divided into {folds} folds: use fewer folds")
    for label in present.tolist():
        own = np.unique(fold_of[images.y == label])
        if len(own) == 1:
            raise DataError(
                f"all images of class {images.classes[label]!r} are in fold {own[0] + 1}, because "
                "of its few groups, so that it cannot be both trained and tested: use fewer folds, "
                "or another --seed"
            )
    return fold_of


def _label_folds(images: Embeddings, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold ``(n,)`` of images with several labels each, by iterative stratification.

    Raises:
        DataError: as ``assign_folds``, or if no image of a fold has a label.
    """
    units = len(images) if images.groups is None else len(np.unique(images.groups))
    what = "images" if images.groups is None else "groups"
    if folds > units:
        raise DataError(f"--folds {folds}, but there are {units} {what}: use fewer folds")
    targets, names = images.targets, images.label_names
    for column in np.flatnonzero(targets.sum(axis=0) == 1).tolist():
        raise DataError(
            f"label {names[column]!r} has one image, which is in one fold only, so that it cannot "
            "be both trained and tested: add images, or leave the label out"
        )
    fold_of = iterative_folds(targets, folds, seed, images.groups)
    for column, name in enumerate(names):
        own = np.unique(fold_of[targets[:, column] == 1])
        if len(own) == 1:
            raise DataError(
                f"all images with label {name!r} are in fold {own[0] + 1}, because of its few "
                "groups, so that it cannot be both trained and tested: use fewer folds, or another "
                "--seed"
            )
    for fold in range(folds):
        if not targets[fold_of == fold].any():
            raise DataError(f"no image of fold {fold + 1} has a label: use fewer folds")
    return fold_of


def _stratified_folds(
    y: NDArray[np.int64], groups: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.int64]:
    from sklearn.model_selection import StratifiedKFold

    if len(np.unique(groups)) < len(y):
        return group_folds(y, groups, folds, seed)
    fold_of = np.zeros(len(y), np.int64)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer images than folds is missing in some of them, which is no problem.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, rows) in enumerate(splitter.split(np.zeros((len(y), 1)), y)):
            fold_of[rows] = fold
    return fold_of


def hold_out(embeddings: Embeddings, tested: set[str]) -> Embeddings:
    """Return embeddings with some images as test images, without the augmented views of these."""
    rows, splits = [], []
    for row, name in enumerate(embeddings.ids):
        in_test = original_id(name) in tested
        if in_test and is_augmented_view(name):
            continue
        rows.append(row)
        splits.append("test" if in_test else "train")
    return replace(embeddings.take(np.array(rows, np.int64)), splits=np.array(splits))


def _pool(heads: list[FittedHead], images: Embeddings, fold_of: NDArray[np.int64]) -> _PooledScores:
    shape = len(images), len(images.classes)
    pooled = _PooledScores(np.zeros(shape), np.zeros(shape), np.zeros(len(images)))
    for fold, fitted in enumerate(heads):
        rows = np.flatnonzero(fold_of == fold)
        scores = np.asarray(fitted.head.predict_proba(images.x[rows]), np.float64)
        calibrated = scores
        if fitted.temperature:
            calibrated = apply_temperature(scores, fitted.temperature)
        columns = np.asarray(fitted.head.classes_)
        if not are_probabilities(scores):
            # Zero is not the lowest score of a class that is missing in this fold.
            pooled.raw[rows] = pooled.calibrated[rows] = -np.inf
        pooled.raw[np.ix_(rows, columns)] = scores
        pooled.calibrated[np.ix_(rows, columns)] = calibrated
        pooled.thresholds[rows] = fitted.threshold or 0.0
    return pooled


def _report(source: FeatureSet, found: _CrossValidation) -> Report:
    """Return the report of the pooled predictions, with the temperature of the final head."""
    images, final, pooled = found.images, found.final, found.pooled
    report = evaluate(
        pooled[0].raw,
        images.y,
        images.classes,
        train_counts=train_counts(final.splits.final),
        warnings=[*head_warnings(final, images), *found.warnings],
        provenance=run_provenance(final, source, {"folds": found.folds, "repeats": len(pooled)}),
        cost={
            "fit_seconds": found.seconds,
            "predict_seconds": 0.0,
            "peak_memory_mb": peak_memory_mb(),
        },
        seed=final.seed,
        groups=images.groups,
    )
    if final.temperature:
        calibrated = evaluate(pooled[0].calibrated, images.y, images.classes, groups=images.groups)
        report = replace(
            report,
            temperature=final.temperature,
            nll_calibrated=calibrated.nll,
            ece_calibrated=calibrated.ece,
            reliability_calibrated=calibrated.reliability,
        )
    if final.threshold is not None and final.config.reject is not None:
        rejection = reject(
            pooled[0].calibrated,
            images.y,
            np.arange(len(images.classes)),
            share=final.config.reject,
            threshold=pooled[0].thresholds,
            groups=images.groups,
        )
        report = replace(report, rejection=replace(rejection, threshold=final.threshold))
    if final.config.costs is not None:
        costs = score_costs(
            pooled[0].calibrated,
            images.y,
            predicted=pooled[0].raw.argmax(axis=1),
            columns=np.arange(len(images.classes)),
            matrix=final.config.costs,
            groups=images.groups,
        )
        report = replace(report, decision_cost=costs)
    if source.copies and source.copies.ids:
        copied = np.array([name in source.copies.ids for name in images.ids])
        correct = pooled[0].raw.argmax(axis=1) == images.y
        report = replace(report, without_copies=accuracy_without(correct, copied, images.groups))
    return _with_folds(report, found)


def _with_folds(report: Report, found: _CrossValidation) -> Report:
    """Return the report with the accuracy over folds, and intervals that account for them."""
    images, folds, fold_of = found.images, found.folds, found.fold_of
    correct = np.stack([each.raw.argmax(axis=1) == images.y for each in found.pooled])
    clusters = Clusters.of(images.groups, len(images))
    assignment = digest([*images.ids, *map(str, fold_of.ravel().tolist())])
    scores = score_folds(correct, fold_of, folds, clusters, assignment=assignment)
    first = fold_interval(correct[:1], fold_of[:1], folds, clusters)
    return replace(report, interval95=first, folds=scores)
