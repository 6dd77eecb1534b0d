"""Images of none of the classes in ``fit``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featkit
from featkit.embeddings import store
from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError, OptionsError, SpecError
from featkit.evaluation.calibration import apply_temperature
from featkit.evaluation.report import Report
from featkit.runs.features import load_unknown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of photos of two classes, dark and bright, and one of other images."""
    folder = tmp_path_factory.mktemp("unknown")
    rng = np.random.default_rng(0)
    for label, base in (("dark", 40), ("bright", 180)):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(base, base + 40, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{number}.png")
    (folder / "other" / "deep" / "er").mkdir(parents=True)
    for number in range(8):
        below = "deep/er" if number % 2 else "."
        pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "other" / below / f"{number}.png")
    return folder


def fit(folder: Path, **options: Any) -> Any:
    given = {"backbone": "resnet18", "weights": "random", "resize": "32", "head": "prototypical"}
    return featkit.fit(folder / "photos", cache=folder / "cache", **{**given, **options})


def test_unknown_images_are_compared_with_test_images(folder: Path, tmp_path: Path) -> None:
    """By the calibrated confidence of the same head; all other results stay as they are."""
    plain = fit(folder, reject=0.1)
    run = fit(folder, reject=0.1, unknown=folder / "other", out=tmp_path)
    found = run.report.unknown
    assert (found.n, found.n_test, found.name) == (8, run.report.n, "other")
    (path,) = (folder / "cache").glob("other-*.h5")
    x = store.read(path).x
    scores = run.head.predict_proba(x)
    temperature = run.report.temperature
    calibrated = apply_temperature(scores, temperature)
    known = run.predictions.confidence
    wins = np.mean(known[:, None] > calibrated.max(axis=1)) + 0.5 * np.mean(
        known[:, None] == calibrated.max(axis=1)
    )
    assert found.auroc == pytest.approx(wins)
    assert found.threshold == run.report.rejection.threshold
    assert found.accepted == np.sum(calibrated.max(axis=1) >= found.threshold)

    values = run.report.to_dict()
    assert values.pop("unknown")["accepted"] == found.accepted
    assert values == plain.report.to_dict()
    assert run.id != plain.id
    results = json.loads(next(tmp_path.rglob("results.json")).read_text(encoding="utf-8"))
    assert Report.from_dict(results).unknown == found


def test_their_features_are_cached_and_never_chosen_as_the_data(folder: Path) -> None:
    """A later command without data uses the photos, not the newest file."""
    fit(folder, unknown=folder / "other")
    (path,) = (folder / "cache").glob("other-*.h5")
    before = path.stat().st_mtime_ns
    assert fit(folder, unknown=folder / "other").report.unknown.threshold is None
    assert path.stat().st_mtime_ns == before
    again = featkit.fit(cache=folder / "cache", head="knn")
    assert again.source.data == "photos"


def test_images_that_are_not_unknown_are_refused(folder: Path) -> None:
    """And folders without images, and options that do not fit."""
    with pytest.raises(DataError, match=r"20 of the 20 unknown images .* are images of photos too"):
        fit(folder, unknown=folder / "photos" / "dark")
    (folder / "empty").mkdir(exist_ok=True)
    with pytest.raises(DataError, match="contains no images"):
        fit(folder, unknown=folder / "empty")
    with pytest.raises(DataError, match="absent is not a folder: --unknown takes"):
        fit(folder, unknown=folder / "absent")
    with pytest.raises(OptionsError, match="leave out folds"):
        fit(folder, unknown=folder / "other", folds=3)
    source = fit(folder).source
    quantized = replace(source, request=replace(source.request, precision="int8"))
    with pytest.raises(SpecError, match="featkit quantize"):
        load_unknown(folder / "other", quantized, Compute())
