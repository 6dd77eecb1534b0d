"""One run: a request and a head to a report."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from featkit.embeddings import store
from featkit.embeddings.base import Embeddings
from featkit.embeddings.extract import read_for, run_extractions
from featkit.embeddings.job import content_keys, plan
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.recipe import digest
from featkit.embeddings.request import Request, resolve
from featkit.errors import DataError
from featkit.evaluation import evaluate
from featkit.evaluation.report import Report
from featkit.heads import make_head
from featkit.registry import Spec

_PACKAGES = ("featkit", "numpy", "scikit-learn", "skops", "torch", "torchvision")


@dataclass(frozen=True)
class Source:
    """Vectors to fit on, and where they come from.

    Attributes:
        request: which images through which network.
        embeddings: the vectors, with splits.
        path: the cache file.
        data: name of the images.
        weights: label of the weights, for people.
        notes: what was chosen or left out on the way, one line each.
    """

    request: Request
    embeddings: Embeddings
    path: Path
    data: str
    weights: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A fitted head and what it is worth.

    Attributes:
        id: 12 hex digits over everything that decides the numbers; the same again for the same run.
        source: the vectors it was fitted on.
        head_spec: how the head was asked for.
        head: the fitted estimator.
        report: its worth on the test images.
    """

    id: str
    source: Source
    head_spec: str
    head: Any
    report: Report


def open_source(given: Mapping[str, Any], cache: Path, compute: Compute) -> Source:
    """Find or make the vectors that some options ask for.

    Args:
        given: fields of ``Request``; None for what was not given.
        cache: folder of the cache files, or one such file.
        compute: how to extract where that is needed.

    Raises:
        FeatkitError: of the kind that says what cannot be had; StaleCacheError if ``cache`` is a file that the given
            options would not make.
    """
    if cache.suffix == ".h5":
        return _from_file(given, cache, compute)
    request, newest = resolve(given, cache)
    request = request.on(compute.device)
    if newest and not _there(request):
        note = f"{request.data} is gone: taking the vectors in {newest} as they are"
        return replace(_from_file({}, newest, compute), notes=(note,))
    images = request.load_images()
    (done,) = run_extractions([request], images, cache, compute)
    taken = f"what was not given is taken from {newest}: data {request.data}, backbone {request.backbone}"
    notes = [taken] if newest else []
    notes += [f"{len(done.skipped)} images left out: {', '.join(done.skipped)}"] if done.skipped else []
    return Source(request, read_for(images, done.path), done.path, images.name, done.weights, tuple(notes))


def _there(request: Request) -> bool:
    """Return whether the images can still be read; names are looked up, paths must exist."""
    return not Path(request.data).is_absolute() or Path(request.data).exists()


def _from_file(given: Mapping[str, Any], path: Path, compute: Compute) -> Source:
    entry = store.describe(path)
    chosen = {name: value for name, value in given.items() if value is not None}
    request = replace(Request.from_dict(entry.provenance["request"]), **chosen).on(compute.device)
    data, weights = entry.provenance["data"], entry.provenance["weights"]
    if not chosen:
        return Source(request, store.read(path), path, data, weights)
    images = request.load_images()
    _, recipe = plan(request, images, content_keys(images, compute), path.parent)
    store.check(path, recipe)
    return Source(request, read_for(images, path), path, data, weights)


def fit_run(source: Source, head_spec: str = "linear", *, seed: int = 0) -> Run:
    """Fit a head on the train vectors and judge it on the test vectors, which nothing else has seen.

    Raises:
        SpecError: if the head, an option or a value is unknown.
        DataError: if train has fewer than two classes, or test no image.
    """
    head_spec = str(Spec.parse(head_spec))
    head = make_head(head_spec, seed=seed)
    train, test = source.embeddings.part("train"), source.embeddings.part("test")
    if len(np.unique(train.y)) < 2 or not len(test):
        raise DataError(f"{source.path} has too few images: {len(train)} to train on, {len(test)} to test on")
    start = time.perf_counter()
    head.fit(train.x, train.y)
    fitted = time.perf_counter()
    scores = head.predict_proba(test.x)
    cost = {
        "fit_seconds": fitted - start,
        "predict_seconds": time.perf_counter() - fitted,
        "peak_memory_mb": _peak_memory(),
    }
    report = evaluate(
        scores,
        test.y,
        test.classes,
        columns=head.classes_,
        warnings=getattr(head, "warnings_", ()),
        provenance=_provenance(source, head_spec, head, seed, len(train)),
        cost=cost,
        seed=seed,
    )
    return Run(_run_id(source, head_spec, seed), source, head_spec, head, report)


def _run_id(source: Source, head_spec: str, seed: int) -> str:
    embeddings = source.embeddings
    parts = [embeddings.recipe.fingerprint, *embeddings.splits.tolist(), head_spec, str(seed), version("featkit")]
    return digest(parts)[:12]


def _provenance(source: Source, head_spec: str, head: Any, seed: int, train: int) -> dict[str, Any]:
    return {
        "request": source.request.to_dict(),
        "fingerprint": source.embeddings.recipe.fingerprint,
        "weights": source.weights,
        "head": head_spec,
        "head_options": head.get_params(),
        "seed": seed,
        "n_train": train,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _peak_memory() -> float:
    """Return the largest resident memory of this process so far, in megabytes (10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
