"""From a folder of photos to an evaluated classifier within a time budget.

The head, its hyperparameters and the network are chosen on validation images; the test images are
used once, for the chosen classifier and, in paired tests, for the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from featkit.backbones.weights import search_weights
from featkit.embeddings.extract import Extractor
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.errors import WeightsError
from featkit.evaluation.compare import PairedComparison, compare
from featkit.evaluation.costs import CostMatrix
from featkit.evaluation.report import Report
from featkit.heads import make_head
from featkit.heads.search import Candidate
from featkit.images.subsets import k_shot
from featkit.registry import Spec
from featkit.runs.features import FeatureSet, find_copies, load_features
from featkit.runs.fit import FitConfig, FittedHead, Run, evaluate_head, fit_head
from featkit.runs.splits import make_splits, train_counts

HEADS = ("prototypical", "knn", "linear", "svm", "mlp")
"""Heads that are tried, the fastest first."""

FIRST_NETWORK, SECOND_NETWORK = "resnet18", "resnet50"
"""Network that is tried, and the one that is tried after it if there is time."""

SEARCH_SHARE = 0.15
"""Share of the budget that the search for a head gets even if the extraction used all of it."""

_RELATIVE_COST = 2.6
"""Time of ResNet-50 for an image in that of ResNet-18: 4.1 to 1.8 GFLOPs, and more memory."""

_FEW_IMAGES, _FEW_TESTED = 5, 30
_TIMED_IMAGES = 400
"""Training images on which the time of a head is measured before it is tuned on all of them."""

_MEASURED_SECONDS = 5.0
_USUAL_SECONDS_PER_IMAGE = 0.03
_NAMED = 3

Say = Callable[[str], None]


class Clock:
    """Time that is left of a budget.

    Args:
        seconds: the budget.
        reserve: part of it that is kept for what follows the search: evaluation, report, export.
        now: monotonic clock, in seconds.
    """

    def __init__(
        self, seconds: float, reserve: float = 0.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        self._start = now()
        self.seconds, self.reserve = seconds, reserve

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    @property
    def left(self) -> float:
        """Seconds left for the search, negative if the budget is used up."""
        return self.seconds - self.reserve - self.elapsed

    def allow_search(self) -> None:
        """Extend the budget if hardly any of it is left for the search, as extraction took longer.

        Otherwise a training that lasted minutes would end with the default of the fastest head.
        """
        least = SEARCH_SHARE * self.seconds
        if self.left < least:
            self.seconds += least - self.left


@dataclass(frozen=True)
class Attempt:
    """A head with tuned hyperparameters on one network.

    Attributes:
        name: head and network.
        fitted: the head, fitted on train and validation images.
        seconds: duration of tuning and fitting.
        candidates: number of combinations of hyperparameters that were tried.
        stopped: whether the time was up before all were tried.
    """

    name: str
    fitted: FittedHead
    seconds: float
    candidates: int
    stopped: bool = False

    @property
    def score(self) -> float:
        """Top-1 accuracy on the validation images; -1 if there were none."""
        return -1.0 if self.fitted.val_top1 is None else self.fitted.val_top1

    def to_dict(self) -> dict[str, Any]:
        """Return what ``train.json`` records."""
        return {
            "name": self.name,
            "head": str(Spec(Spec.parse(self.fitted.head_spec).name, None, self._options())),
            "validation_top1": self.fitted.val_top1,
            "n_validation": len(self.fitted.splits.val),
            "candidates": self.candidates,
            "stopped": self.stopped,
        }

    def _options(self) -> dict[str, Any]:
        if self.fitted.search:
            return self.fitted.search.best.options
        return dict(Spec.parse(self.fitted.head_spec).options)


@dataclass(frozen=True)
class Selection:
    """What was tried, and the classifier that was chosen.

    Attributes:
        attempts: in the order in which they were made.
        skipped: reason for each head or network that was not tried.
        interrupted: whether Ctrl-C ended the search.
    """

    attempts: tuple[Attempt, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def best(self) -> Attempt:
        """The attempt with the highest validation accuracy; of several the fastest."""
        return max(self.attempts, key=lambda attempt: attempt.score)


@dataclass(frozen=True)
class TrainedClassifier:
    """The chosen classifier with its evaluation on the test images.

    Attributes:
        run: the chosen head, evaluated.
        selection: what was tried.
        others: test accuracy of the other attempts by name.
        pairs: paired tests between the chosen classifier and the others.
        problems: what is wrong with the images, one line each.
    """

    run: Run
    selection: Selection
    others: Mapping[str, Report]
    pairs: tuple[PairedComparison, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what ``train.json`` records."""
        others = {}
        for name, report in self.others.items():
            low, high = report.interval95
            others[name] = {"top1": report.top1, "interval95": [low, high], "n": report.n}
        return {
            "chosen": self.selection.best.name,
            "attempts": [attempt.to_dict() for attempt in self.selection.attempts],
            "skipped": dict(self.selection.skipped),
            "interrupted": self.selection.interrupted,
            "others": others,
            "pairs": [pair.to_dict() for pair in self.pairs],
            "problems": list(self.problems),
        }


class OutOfTimeError(Exception):
    """The time budget of a search is used up."""


class ExtractionTimer:
    """Measure how long the network takes for an image, and say if the budget is too short for all.

    Attributes:
        seconds_per_image: None until enough images went through the network.
    """

    def __init__(self, clock: Clock, say: Say) -> None:
        self._clock, self._say = clock, say
        self._first: tuple[float, int] | None = None
        self._said = False
        self.seconds_per_image: float | None = None

    def __call__(self, done: int, total: int) -> None:
        """Take note of a batch: ``done`` of ``total`` images went through the network."""
        if self._first is None:  # the first batch waits for the network to be built
            self._first = self._clock.elapsed, done
            return
        start, before = self._first
        seconds, images = self._clock.elapsed - start, done - before
        self.seconds_per_image = seconds / images
        left = (total - done) * self.seconds_per_image
        enough = seconds > _MEASURED_SECONDS or done == total
        if enough and not self._said and self._clock.elapsed + left > self._clock.seconds:
            self._said = True
            whole = (self._clock.elapsed + left) / 60
            self._say(
                f"the features of {total} images alone take about {whole:.1f} minutes, more than "
                f"the {self._clock.seconds / 60:g} given; continuing, and then heads are searched "
                f"for {SEARCH_SHARE * self._clock.seconds:.0f} s (features are kept: the next "
                "training on these images is fast)"
            )


# The images ---------------------------------------------------------------------------------------


def read_photos(
    given: Mapping[str, Any], cache: Path, compute: Compute, say: Say
) -> tuple[FeatureSet, tuple[str, ...]]:
    """Return the features of the images, and what is wrong with the images.

    Raises:
        FeatkitError: if there are no two classes, or there is no image to test on.
    """
    features = load_features(given, cache, compute, say)
    features = replace(features, copies=find_copies(features))
    problems = data_problems(features)
    for problem in problems:
        say(f"warning: {problem}")
    return features, problems


def data_problems(features: FeatureSet) -> tuple[str, ...]:
    """Return what is wrong with images, one line each: copies, small classes, few test images."""
    embeddings = features.embeddings
    problems = []
    if features.copies:
        problems += features.copies.warnings()
    counts = train_counts(embeddings.take(np.flatnonzero(embeddings.splits != "test")))
    few = [
        f"{name} ({count})"
        for name, count in zip(embeddings.classes, counts.tolist(), strict=True)
        if count < _FEW_IMAGES
    ]
    if few:
        more = ", ..." if len(few) > _NAMED else ""
        problems.append(
            f"{len(few)} of {len(counts)} classes have fewer than {_FEW_IMAGES} images to learn "
            f"from: {', '.join(few[:_NAMED])}{more}; add images of them"
        )
    tested = int((embeddings.splits == "test").sum())
    if tested < _FEW_TESTED:
        problems.append(f"only {tested} test images: the accuracy is known roughly; add images")
    return tuple(problems)


def finishing_seconds(features: FeatureSet, seconds_per_image: float | None) -> float:
    """Estimate the seconds from the end of the search to that of the training.

    The export runs some images through two networks, and the report about a hundred through the
    network with gradients; the map of the test images and the figures take time by their number.
    """
    rate = seconds_per_image or _USUAL_SECONDS_PER_IMAGE
    tested = int((features.embeddings.splits == "test").sum())
    return 12 + 250 * rate + 0.005 * tested


# Search -------------------------------------------------------------------------------------------


def select(
    features: FeatureSet,
    clock: Clock,
    *,
    second: Callable[[Selection], FeatureSet | str] | None = None,
    heads: Sequence[str] = HEADS,
    say: Say = lambda text: None,
    on_candidate: Callable[[str], None] = lambda name: None,
) -> Selection:
    """Tune heads on validation images until the time is up, and choose the best.

    The first head is fitted even if there is no time left. Ctrl-C ends the search as soon as one
    head is fitted.

    Args:
        features: of the first network.
        clock: time that is left.
        second: returns the features of a second network, or the reason why it is not tried; called
            after the heads on the first one.
        heads: specs without options, the fastest first.
        say: called with each result.
        on_candidate: called with the name of the head after each candidate.

    Raises:
        DataError: if there are too few images for a classifier.
        KeyboardInterrupt: if Ctrl-C is pressed before a head is fitted.
    """
    search = _Search(clock, say, on_candidate)
    interrupted = False
    try:
        search.try_heads(features, heads, 1.0)
        if second is not None:
            search.try_second_network(features, second)
    except KeyboardInterrupt as interrupt:
        # SIGTERM, a subclass, asks to end at once.
        if not search.attempts or type(interrupt) is not KeyboardInterrupt:
            raise
        interrupted = True
        say("interrupted: continuing with the best so far")
    return Selection(tuple(search.attempts), search.skipped, interrupted)


class _Search:
    """Candidates tuned so far, and those that were not tried with the reason."""

    def __init__(self, clock: Clock, say: Say, on_candidate: Callable[[str], None]) -> None:
        self._clock, self._say, self._on_candidate = clock, say, on_candidate
        self.attempts: list[Attempt] = []
        self.skipped: dict[str, str] = {}

    def try_heads(self, features: FeatureSet, heads: Sequence[str], slower: float) -> None:
        """Tune each head for which there is time.

        Args:
            features: of one network.
            heads: names without options.
            slower: how much longer a head takes than on the network before; used if it was tried
                there.
        """
        for head in heads:
            name = f"{head} on {features.request.backbone}"
            earlier = [
                attempt.seconds for attempt in self.attempts if attempt.name.startswith(head)
            ]
            known = slower * min(earlier) if earlier else None
            reason = _no_time_for(features, head, self._clock, known) if self.attempts else ""
            if reason:
                self._skip(name, reason)
                continue
            attempt = tune(features, head, self._clock, self._on_candidate)
            self.attempts.append(attempt)
            self._say(_attempt_line(attempt))

    def try_second_network(
        self, first: FeatureSet, second: Callable[[Selection], FeatureSet | str]
    ) -> None:
        """Tune the heads on a second network, the best ones of the first network first."""
        found = second(Selection(tuple(self.attempts), self.skipped))
        if isinstance(found, str):
            self._skip("second network", found)
            return
        slower = found.embeddings.x.shape[1] / first.embeddings.x.shape[1]
        ranked = sorted(self.attempts, key=lambda attempt: -attempt.score)
        heads = [Spec.parse(attempt.fitted.head_spec).name for attempt in ranked]
        self.try_heads(found, heads, slower)

    def _skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        self._say(f"{name}: not tried, {reason}")


def tune(
    features: FeatureSet,
    head: str,
    clock: Clock,
    on_candidate: Callable[[str], None] = lambda name: None,
) -> Attempt:
    """Tune one head until the time is up, and fit it; without validation images, use its defaults.

    A search that is stopped uses the best of the candidates that were evaluated and the defaults.
    """
    start = clock.elapsed
    seed = features.request.seed
    name = f"{head} on {features.request.backbone}"
    tried: list[Candidate] = []
    slowest = 0.0
    last = start

    def check_time(candidate: Candidate) -> None:
        nonlocal slowest, last
        tried.append(candidate)
        slowest, last = max(slowest, clock.elapsed - last), clock.elapsed
        on_candidate(name)
        # The best candidate and the defaults are fitted twice more: on train, and on train and
        # validation images.
        if clock.left < 5 * slowest:
            raise OutOfTimeError

    splits = make_splits(features.embeddings, seed)
    can_tune = len(splits.val) > 0 and len(np.unique(splits.fit.y)) > 1
    if not can_tune:
        fitted = fit_head(features, head, seed, FitConfig())
        return Attempt(name, fitted, clock.elapsed - start, candidates=1)
    try:
        fitted = fit_head(features, head, seed, FitConfig(tune=True, progress=check_time))
        stopped = False
    except OutOfTimeError:
        fitted = best_so_far(features, head, tried)
        stopped = True
    return Attempt(name, fitted, clock.elapsed - start, len(tried), stopped)


def best_so_far(features: FeatureSet, head: str, tried: Sequence[Candidate]) -> FittedHead:
    """Return the head with its default hyperparameters, or the best candidate if it is better.

    A search that is stopped early has only seen one end of the values: of the linear head, the
    strongest regularization.
    """
    seed = features.request.seed
    default = fit_head(features, head, seed, FitConfig())
    best = max(tried, key=lambda candidate: (candidate.top1, -candidate.nll))
    if default.val_top1 is not None and default.val_top1 >= best.top1:
        return default
    return fit_head(features, str(Spec(head, None, best.options)), seed, FitConfig())


def _no_time_for(features: FeatureSet, head: str, clock: Clock, known: float | None) -> str:
    """Return why there is no time for a head, an empty text if there is.

    Args:
        features: of the network.
        head: its name.
        clock: time that is left.
        known: seconds that the head is known to need, or None to measure them.
    """
    if clock.left <= 0:
        return "the time is up"
    needed = _seconds_needed(features, head) if known is None else known
    if needed <= clock.left:
        return ""
    return f"it needs about {needed:.0f} s, and {clock.left:.0f} s are left"


def _seconds_needed(features: FeatureSet, head: str) -> float:
    """Estimate the seconds for one candidate of a head and its final fits.

    Measured on some of the training images: the time of a fit grows at least in proportion to
    their number. For few images, that is next to nothing.
    """
    train = features.embeddings.part("train")
    if len(train) < 2 * _TIMED_IMAGES:
        return 0.0
    per_class = max(1, _TIMED_IMAGES // max(1, len(train.classes)))
    rows = k_shot(train.y, per_class, features.request.seed, take_fewer=True)
    sample = train.take(rows)
    start = time.perf_counter()
    make_head(head).fit(sample.x, sample.y)
    return 3 * (time.perf_counter() - start) * len(train) / len(sample)


def _attempt_line(attempt: Attempt) -> str:
    text = f"{attempt.name}: "
    if attempt.fitted.val_top1 is None:
        return f"{text}too few images to validate, default hyperparameters"
    text += f"validation top-1 {100 * attempt.score:.1f}%, n = {len(attempt.fitted.splits.val)}"
    candidates = "1 candidate" if attempt.candidates == 1 else f"{attempt.candidates} candidates"
    text += f", {candidates} in {attempt.seconds:.0f} s"
    return f"{text}, stopped since the time is up" if attempt.stopped else text


# The second network -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SecondNetwork:
    """Decide whether there is time for a second network, and extract its features.

    Attributes:
        given: options that select images and network, see ``load_features``.
        cache: folder of the cache files.
        compute: device, batch size, workers.
        clock: time that is left.
        say: called with a message.
        seconds_per_image: of the first network; None if its features were cached.
    """

    given: Mapping[str, Any]
    cache: Path
    compute: Compute
    clock: Clock
    say: Say
    seconds_per_image: float | None

    def __call__(self, selection: Selection) -> FeatureSet | str:
        """Return the features of the second network, or the reason why it is not tried."""
        if any(self.given.get(option) for option in ("backbone", "weights")):
            return "a network or weights were given"
        name = SECOND_NETWORK
        try:
            if search_weights(name, "IMAGENET1K_V1") is None:
                return f"the weights of {name} are not on this machine"
        except WeightsError as error:
            return str(error)
        given = {**self.given, "backbone": name}
        rate = self.seconds_per_image or _USUAL_SECONDS_PER_IMAGE
        fits = 4 * min(attempt.seconds for attempt in selection.attempts)
        needed = self._missing_images(given) * _RELATIVE_COST * rate + fits
        if needed > self.clock.left:
            left = max(0.0, self.clock.left)
            return f"{name} needs about {needed:.0f} s, and {left:.0f} s are left"
        self.say(f"there is time for {name} too")
        features = load_features(given, self.cache, self.compute, self.say)
        return replace(features, copies=find_copies(features))

    def _missing_images(self, given: Mapping[str, Any]) -> int:
        """Return the number of images whose features are not cached."""
        chosen = {name: value for name, value in given.items() if value is not None}
        plan = Extractor(self.cache, self.compute).plan(Request(**chosen))
        keys = {key for key in plan.keys if key}
        return len(keys - plan.locate_cached().keys())


# Evaluation ---------------------------------------------------------------------------------------


def evaluate_selection(
    selection: Selection, problems: Sequence[str], costs: CostMatrix | None = None
) -> TrainedClassifier:
    """Evaluate the chosen classifier on the test images, and compare the others with it.

    Args:
        selection: what was tried.
        problems: of the photos, one line each.
        costs: cost of each predicted class for each true class, which the report of the chosen
            classifier has; None for none.
    """
    best = selection.best
    fitted = replace(best.fitted, config=replace(best.fitted.config, costs=costs))
    run = evaluate_head(fitted, fitted.source)
    predictions = {best.name: run.predictions}
    others = {}
    for attempt in selection.attempts:
        if attempt is not best:
            other = evaluate_head(attempt.fitted, attempt.fitted.source)
            predictions[attempt.name], others[attempt.name] = other.predictions, other.report
    pairs = compare(predictions, reference=best.name) if others else ()
    return TrainedClassifier(run, selection, others, pairs, tuple(problems))


def next_step(trained: TrainedClassifier) -> str:
    """Return what would improve the classifier most, as far as the results tell."""
    copies = trained.run.source.copies
    if copies and copies.ids:
        return (
            f"{len(copies.ids)} of {copies.n} test images are copies of training images, so the "
            "accuracy is too high: look at them with `featkit audit`, remove them, train again"
        )
    report = trained.run.report
    untested = [each.name for each in report.per_class if not each.n]
    if untested:
        return (
            f"add photos of {untested[0]}: none of them is a test image, so that its accuracy is "
            "not known"
        )
    weak = [each for each in report.per_class if each.n and (each.recall or 0.0) < report.top1]
    if report.confused and weak:
        worst = min(weak, key=lambda each: (each.recall or 0.0, -each.n))
        right = round((worst.recall or 0.0) * worst.n)
        return (
            f"add photos of {worst.name} ({right} of {worst.n} test images right), and check its "
            "labels with `featkit audit`"
        )
    if report.n < _FEW_TESTED * 10:
        return "add photos: with more test images the accuracy is known better"
    return "nothing stands out: try it on new photos"
