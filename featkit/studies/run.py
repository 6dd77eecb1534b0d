"""One run: a request and a head to a report."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.base import Embeddings
from featkit.embeddings.recipe import digest
from featkit.errors import DataError, SpecError
from featkit.evaluation import Temperature, evaluate, fit_temperature
from featkit.evaluation.calibration import apply_temperature, are_probabilities
from featkit.evaluation.rejection import reject, rejection_threshold
from featkit.evaluation.report import Report
from featkit.heads import make_head
from featkit.heads.search import Search, Tried, search
from featkit.registry import Spec
from featkit.studies.parts import Parts, divide, train_counts
from featkit.studies.source import Source

PACKAGES = ("featkit", "numpy", "scikit-learn", "skops", "torch", "torchvision")
"""Packages whose versions a report names."""


@dataclass(frozen=True)
class Answers:
    """What a head said about each test image.

    Attributes:
        ids: names of the n images.
        y, predicted: ``(n,)`` positions in the class names.
        confidence: ``(n,)`` probability of the predicted class, at the temperature if there is one.
    """

    ids: tuple[str, ...]
    y: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """How a head is fitted and judged.

    Attributes:
        tune: whether its settings are chosen on val, from the head's search space.
        subset: spec of the part of train to fit on, such as ``longtail:if=50``, or None for all of it.
        balance: spec of a correction for classes of unequal size, or None.
        reject: share of val images to call unknown, or None to answer always.
        progress: called after each setting that was tried.
    """

    tune: bool = False
    subset: str | None = None
    balance: str | None = None
    reject: float | None = None
    progress: Callable[[Tried], None] | None = None


@dataclass(frozen=True)
class Run:
    """A fitted head and what it is worth.

    Attributes:
        id: 12 hex digits over everything that decides the numbers; the same again for the same run.
        source: the vectors it was fitted on.
        head_spec: how the head was asked for.
        head: the fitted estimator.
        report: its worth on the test images.
        answers: what it said about each of them.
        search: what was tried on val, if anything.
    """

    id: str
    source: Source
    head_spec: str
    head: Any
    report: Report
    answers: Answers
    search: Search | None = None


def fit_run(source: Source, head_spec: str = "linear", *, seed: int = 0, protocol: Protocol | None = None) -> Run:
    """Fit a head and judge it on the test vectors, which nothing else has seen.

    The settings (with ``tune``), the temperature and the threshold of rejection are chosen on val, with heads that were
    fitted on the rest of train; then the head is fitted on train and val together.

    Raises:
        SpecError: if the head, an option or a value is unknown.
        DataError: if train has fewer than two classes, or test no image.
    """
    protocol = protocol or Protocol()
    asked = Spec.parse(head_spec)
    make_head(asked, seed=seed)
    parts = _divide(source, seed, protocol.subset)
    start = time.perf_counter()
    found = _search(asked, parts, seed, protocol) if protocol.tune else None
    spec = replace(asked, options=found.tried[found.best].options) if found else asked
    scored = (found.scores, np.unique(parts.fit.y)) if found else _score_val(_head(spec, seed, protocol), parts)
    temperature, threshold = _on_val(scored, parts.val.y, protocol.reject)
    head = _head(spec, seed, protocol).fit(parts.final.x, parts.final.y)
    fitted = time.perf_counter()
    scores = np.asarray(head.predict_proba(parts.test.x), dtype=np.float64)
    cost = {
        "fit_seconds": fitted - start,
        "predict_seconds": time.perf_counter() - fitted,
        "peak_memory_mb": peak_memory(),
    }
    columns = np.asarray(head.classes_)
    report = evaluate(
        scores,
        parts.test.y,
        parts.test.classes,
        columns=columns,
        temperature=temperature,
        train_counts=train_counts(parts.final),
        warnings=[*getattr(head, "warnings_", ()), *_unseen(parts), *_constant(parts.final)],
        provenance={**_provenance(source, str(asked), head, seed, parts), **_settings(protocol)},
        cost=cost,
        seed=seed,
    )
    shown = apply_temperature(scores, temperature) if temperature else scores
    if threshold is not None and protocol.reject is not None:
        judged = reject(shown, parts.test.y, columns, share=protocol.reject, threshold=threshold)
        report = replace(report, rejection=judged)
    answers = Answers(parts.test.ids, parts.test.y, columns[scores.argmax(axis=1)], shown.max(axis=1))
    return Run(_run_id(source, str(asked), seed, protocol), source, str(asked), head, report, answers, found)


def _divide(source: Source, seed: int, subset: str | None) -> Parts:
    try:
        return divide(source.embeddings, seed, subset)
    except DataError as error:
        raise DataError(f"{source.path}: {error}") from error


def _head(spec: Spec, seed: int, protocol: Protocol) -> Any:
    """Return the unfitted head, within the correction if there is one."""
    if protocol.balance is None:
        return make_head(spec, seed=seed)
    from featkit.heads.balance import BalancedHead

    return BalancedHead(head=str(spec), correction=protocol.balance, seed=seed)


def _settings(protocol: Protocol) -> dict[str, Any]:
    return {"tuned": protocol.tune, "subset": protocol.subset, "balance": protocol.balance}


def _search(asked: Spec, parts: Parts, seed: int, protocol: Protocol) -> Search:
    """Try the head's search space on val."""
    if protocol.balance:
        raise SpecError("--tune chooses the head's options without a correction: leave out --tune or --balance")
    if asked.options:
        raise SpecError(f"--tune chooses the options of {asked.name} on val: write {asked.name} alone, without options")
    fit, val = parts.fit, parts.val
    return search(asked.name, fit.x, fit.y, val.x, val.y, seed=seed, progress=protocol.progress)


Scored = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Scores ``(n, m)``, and the class of each column ``(m,)``."""


def _score_val(head: Any, parts: Parts) -> Scored | None:
    """Return what a head that was fitted without val says about val; None where that cannot be."""
    if not len(parts.val) or len(np.unique(parts.fit.y)) < 2:
        return None
    head.fit(parts.fit.x, parts.fit.y)
    return np.asarray(head.predict_proba(parts.val.x), dtype=np.float64), np.asarray(head.classes_)


def _on_val(
    scored: Scored | None, y: NDArray[np.int64], share: float | None
) -> tuple[Temperature | None, float | None]:
    """Return the temperature, and the confidence below which an image is unknown, that suit the scores of val."""
    if scored is None:
        if share is not None:
            raise DataError("there are no val images to choose a confidence on: leave out --reject")
        return None, None
    scores, columns = scored
    # A plug-in's scores need not be probabilities; then there is nothing to calibrate.
    fitting = are_probabilities(scores) and np.isin(y, columns).any()
    temperature = fit_temperature(scores, y, columns) if fitting else None
    shown = apply_temperature(scores, temperature) if temperature else scores
    return temperature, None if share is None else rejection_threshold(shown, share)


def _unseen(parts: Parts) -> list[str]:
    """Say which classes are tested and were never seen."""
    names = [parts.test.classes[label] for label in np.setdiff1d(parts.test.y, parts.final.y)]
    return [f"no training image of {', '.join(names)}: every test image of it is a miss"] if names else []


def _constant(embeddings: Embeddings) -> list[str]:
    """Say how many columns tell nothing."""
    columns = np.flatnonzero((embeddings.x == embeddings.x[0]).all(axis=0))
    if len(columns) == embeddings.x.shape[1]:
        raise DataError("all vectors are the same: the network tells the images nothing apart; choose another layer")
    named = ", ".join(map(str, columns[:5])) + (", ..." if len(columns) > 5 else "")
    return [f"{len(columns)} of {embeddings.x.shape[1]} columns are constant ({named})"] if len(columns) else []


def _run_id(source: Source, head_spec: str, seed: int, protocol: Protocol) -> str:
    embeddings = source.embeddings
    chosen = [head_spec, str(seed), *map(str, _settings(protocol).values()), str(protocol.reject), version("featkit")]
    return digest([embeddings.recipe.fingerprint, *embeddings.splits.tolist(), *chosen])[:12]


def _provenance(source: Source, head_spec: str, head: Any, seed: int, parts: Parts) -> dict[str, Any]:
    return {
        "request": source.request.to_dict(),
        "fingerprint": source.embeddings.recipe.fingerprint,
        "weights": source.weights,
        "head": head_spec,
        "head_options": head.get_params(),
        "seed": seed,
        "n_train": len(parts.final),
        "n_val": len(parts.val),
        "val": "own" if parts.own_val else f"{len(parts.val)} images of train",
        "versions": {name: version(name) for name in PACKAGES},
    }


def peak_memory() -> float:
    """Return the largest resident memory of this process so far, in megabytes (10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
