"""Loaded models: predictions, heat maps and similar training images of one image at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError, FeatkitError
from featkit.images.base import Pixels
from featkit.images.intensity import IntensityRange
from featkit.plots.cam import overlay
from featkit.runs.card import CARD_FILE, HEAD_FILE
from featkit.runs.classifier import Answer, OpenClassifier, open_classifier
from featkit.runs.directory import SavedRun
from featkit.runs.splits import without_views
from featkit.studies.explain import RunExplainer
from featkit.studies.inspect import (
    ImageReader,
    SimilarImage,
    cached_run_features,
    similar_images,
)

_Result = TypeVar("_Result")

SIMILAR = 4
"""Number of training images shown beside a prediction."""
_THUMBNAIL = 112

network_lock = threading.RLock()
"""Held while a network is built or runs: torch.fx replaces methods of all modules while it traces
one, so that a network which runs in another thread fails."""

_network_thread = ThreadPoolExecutor(1, thread_name_prefix="featkit-network")
"""Runs the networks of the page Try. Streamlit starts a thread for each run of a page, and in a new
thread the first forward pass takes 0.1 s longer: OpenMP starts threads, and oneDNN has a cache for
each thread."""


@dataclass(frozen=True)
class Evidence:
    """What a prediction rests on.

    Attributes:
        heat_map: uint8 ``(h, w, 3)``, the image under its class activation map; None without one.
        similar: the most similar training images.
        notes: what is missing and why, one sentence each.
    """

    heat_map: Pixels | None
    similar: tuple[SimilarImage, ...]
    notes: tuple[str, ...]


class Model:
    """A run or an exported file that is loaded once; may be used by several sessions at a time.

    Args:
        path: the run directory or the exported file.
        cache: folder of the embeddings cache, for similar training images.
        device: where the network runs.

    Raises:
        RunError: if it is missing or was changed.
        WeightsError: if the weights are gone or are others.
    """

    def __init__(self, path: Path, cache: Path, device: str = "auto") -> None:
        with network_lock:
            self._classifier: OpenClassifier = open_classifier(path, device)
        self._cache = cache
        self._device = "cpu" if device == "auto" else device
        self._explainer: RunExplainer | FeatkitError | None = None
        self._train: _TrainingImages | FeatkitError | None = None

    @property
    def title(self) -> str:
        """Head and network in a few words."""
        return self._classifier.title

    @property
    def path(self) -> Path:
        """The run directory or the exported file."""
        return self._classifier.path

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that it predicts."""
        return self._classifier.classes

    @property
    def intensity(self) -> IntensityRange | None:
        """Range of grey values with which images have to be decoded."""
        return self._classifier.intensity

    @property
    def edge(self) -> int | None:
        """Shorter edge for which large JPEG files have to be decoded; None to decode in full."""
        return self._classifier.edge

    def classify(self, pixels: Pixels, name: str = "") -> Answer:
        """Return the five most probable classes of an image."""
        return _run_network(partial(self._classifier.classify, pixels, name))

    def evidence(self, pixels: Pixels, answer: Answer) -> Evidence:
        """Return the heat map of the most probable class or label, and similar training images.

        What is not available is said in the notes; this does not fail.
        """
        run = self._classifier.run
        if run is None:
            note = "Exported files contain neither gradients nor training images."
            return Evidence(None, (), (note,))
        return _run_network(partial(self._evidence, run, pixels, answer))

    def _evidence(self, run: SavedRun, pixels: Pixels, answer: Answer) -> Evidence:
        notes: list[str] = []
        heat_map = self._heat_map(run, pixels, answer.prediction.most_probable, notes)
        similar = self._similar(run, answer.features, notes)
        return Evidence(heat_map, similar, tuple(notes))

    def warm_up(self) -> None:
        """Classify and explain a grey image, so that the first real one does not wait."""
        grey = np.full((64, 64, 3), 128, np.uint8)
        self.evidence(grey, self.classify(grey))

    def _heat_map(
        self, run: SavedRun, pixels: Pixels, label: str, notes: list[str]
    ) -> Pixels | None:
        if self._explainer is None:
            try:
                self._explainer = RunExplainer(run, self._device)
            except FeatkitError as error:
                self._explainer = error
        if isinstance(self._explainer, FeatkitError):
            notes.append(f"There is no heat map: {self._explainer}")
            return None
        found = self._explainer.explain(self._explainer.prepare(pixels)[None], [label])[0]
        return overlay(found.image, found.heat)

    def _similar(
        self, run: SavedRun, features: NDArray[np.float32] | None, notes: list[str]
    ) -> tuple[SimilarImage, ...]:
        if self._train is None:
            try:
                self._train = _TrainingImages(run, self._cache)
            except FeatkitError as error:
                self._train = error
        if isinstance(self._train, FeatkitError):
            notes.append(f"Similar training images are not available: {self._train}")
            return ()
        return () if features is None else self._train.similar(features)


def _run_network(work: Callable[[], _Result]) -> _Result:
    """Do work with a network, in the thread for it; return its result or raise its error."""

    def locked() -> _Result:
        with network_lock:
            return work()

    return _network_thread.submit(locked).result()


class _TrainingImages:
    """The training images of a run with their cached features.

    Raises:
        DataError: if the features are not cached.
        FeatkitError: if the cache file is damaged.
    """

    def __init__(self, run: SavedRun, cache: Path) -> None:
        features = cached_run_features(run, cache, Compute())
        if features is None:
            raise DataError(f"their features are not in {cache}")
        self._train = without_views(features.embeddings.part("train"))
        try:
            images = run.load_images()
        except FeatkitError:  # the names and classes are known all the same
            images = None
        self._thumbnail = partial(ImageReader(images).thumbnail, side=_THUMBNAIL)

    def similar(self, features: NDArray[np.float32]) -> tuple[SimilarImage, ...]:
        """Return the training images whose features are most similar to ``(d,)`` features."""
        return similar_images(features[None], self._train, SIMILAR, self._thumbnail)[0]


def content_stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return sizes and times of the files of a model; they differ after it was changed.

    Files that are missing are left out: loading the model reports them.
    """
    files = [path] if path.suffix == ".onnx" else [path / CARD_FILE, path / HEAD_FILE]
    stamp = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        stamp.append((file.name, status.st_size, status.st_mtime_ns))
    return tuple(stamp)


class _Store:
    """Models that were used last, shared by all sessions."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._loading: dict[Path, threading.Lock] = {}
        self._models: dict[Path, tuple[object, Model]] = {}

    def get(self, path: Path, cache: Path, device: str) -> Model:
        """Return a model; two sessions that want the same one wait for one loading."""
        with self._lock:
            loading = self._loading.setdefault(path, threading.Lock())
        with loading:
            stamp = (content_stamp(path), cache, device)
            with self._lock:
                known = self._models.pop(path, None)
                if known and known[0] == stamp:
                    self._models[path] = known  # now the one used last
                    return known[1]
            model = Model(path, cache, device)
            with self._lock:
                self._models[path] = (stamp, model)
                while len(self._models) > self._most:
                    self._models.pop(next(iter(self._models)))
            return model


_store = _Store(most=8)


def load_model(path: Path, cache: Path, device: str = "auto") -> Model:
    """Return the model of a run or exported file; loaded once, and again when its files change.

    Args:
        path: the run directory or the exported file.
        cache: folder of the embeddings cache.
        device: where its network runs.

    Raises:
        RunError: if it is missing or was changed.
        WeightsError: if the weights are gone or are others.
    """
    return _store.get(path, cache, device)
