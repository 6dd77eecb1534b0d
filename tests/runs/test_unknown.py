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
from featkit.runs.features import load_features, load_unknown


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
    with pytest.raises(OptionsError, match="leave out --folds"):
        fit(folder, unknown=folder / "other", folds=3)
    source = fit(folder).source
    quantized = replace(source, request=replace(source.request, precision="int8"))
    with pytest.raises(SpecError, match="featkit quantize"):
        load_unknown(folder / "other", quantized, Compute())


def photo(path: Path, number: int, edge: int = 150) -> None:
    """Write a JPEG file, large for networks that need at most a quarter of its edge."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (edge * 4 // 3, edge)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path, quality=90)


LARGE, SMALL = 150, 60


@pytest.mark.parametrize(
    ("known", "unknown", "decode", "recorded"),
    [
        (LARGE, SMALL, None, ("scaled", "full")),
        (SMALL, LARGE, None, ("full", "scaled")),
        (LARGE, LARGE, None, ("scaled", "scaled")),
        (LARGE, LARGE, "full", ("full", "full")),
        (LARGE, LARGE, "earlier", ("full", "full")),
    ],
)
def test_unknown_photos_are_decoded_as_the_known_ones(
    tmp_path: Path, known: int, unknown: int, decode: str | None, recorded: tuple[str, str]
) -> None:
    """Large ones among them or not; the features of an earlier version do not say how."""
    for number in range(4):
        photo(tmp_path / "known" / "ab"[number % 2] / f"{number}.jpg", number, known)
        photo(tmp_path / "other" / f"{number}.jpg", 10 + number, unknown)
    given = {"data": str(tmp_path / "known"), "backbone": "resnet18", "weights": "random"}
    given |= {"resize": "32", "crop": "32"}
    chosen = "full" if decode == "earlier" else decode
    features = load_features({**given, "decode": chosen}, tmp_path / "cache", Compute())
    if decode == "earlier":
        request = {**features.request.to_dict(), "decode": None}
        features = replace(features, request=type(features.request).from_dict(request))
    found = load_unknown(tmp_path / "other", features, Compute())
    recipes = features.embeddings.recipe, found.embeddings.recipe
    assert (recipes[0].decode, recipes[1].decode) == recorded


def test_unknown_images_of_another_network_are_refused(folder: Path) -> None:
    source = fit(folder).source
    recipe = replace(source.embeddings.recipe, weights="0" * 64)
    other = replace(source, embeddings=replace(source.embeddings, recipe=recipe))
    with pytest.raises(DataError, match="was made by another network"):
        load_unknown(folder / "other", other, Compute())
