"""What the report of a run shows, with and without the images and the features."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import featkit
from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError
from featkit.runs.results import read_run
from featkit.studies import inspect
from featkit.studies.inspect import inspect_mistakes, inspect_run, run_features


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run on images of a folder: three classes of noise, so that there are mistakes."""
    folder = tmp_path_factory.mktemp("inspect")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 6)):
        for name in ("ant", "<b>bee", "=cat"):
            (folder / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / split / name / f"{number}.png")
    featkit.fit(
        folder / "photos",
        backbone="resnet18",
        weights="random",
        resize="64",
        crop="64",
        precision="fp32",
        head="linear",
        cache=folder / "cache",
        out=folder / "runs",
    )
    (directory,) = (folder / "runs" / "photos").glob("*/")
    return folder, directory


def inspected(folder, directory, **options):
    run = featkit.load_run(directory)
    options = {"projection": "pca", **options}
    return inspect_run(run, cache=folder / "cache", compute=Compute(), **options)


def test_mistakes_are_the_most_confident_first_with_their_pictures(fitted):
    found = inspected(*fitted)
    report = found.report
    assert len(found.mistakes) == report.n - round(report.top1 * report.n) > 0
    confidences = [each.confidence for each in found.mistakes]
    assert confidences == sorted(confidences, reverse=True)
    for each in found.mistakes:
        assert each.true != each.predicted
        assert each.image.shape == (64, 64, 3)
        assert each.heat.shape == (64, 64)
        assert len(each.similar) == 3
        assert all(other.image is not None for other in each.similar)
    assert found.notes == ()


def test_counts_and_shared_images_are_those_of_the_data(fitted):
    found = inspected(*fitted, heat_maps=False)
    assert found.counts["ant"] == {"train": 8, "val": 0, "test": 6}
    assert found.shared == 0
    assert len(found.embedding_map.thumbnails) == len(found.embedding_map.images) == 18
    assert found.explanation == ""


def test_confused_classes_have_examples_also_with_names_that_a_spreadsheet_would_compute(fitted):
    found = inspected(*fitted, heat_maps=False)
    assert sum(pair.count for pair in found.confused) == len(found.mistakes)
    assert all(pair.examples and pair.examples[0].image is not None for pair in found.confused)


def test_without_images_the_inspection_says_so_and_has_the_rest(fitted, tmp_path):
    folder, directory = fitted
    moved = tmp_path / "photos"
    shutil.move(folder / "photos", moved)
    try:
        found = inspected(folder, directory)
    finally:
        shutil.move(moved, folder / "photos")
    assert all(each.image is None for each in found.mistakes)
    assert found.embedding_map is not None
    assert found.embedding_map.thumbnails == ()
    assert any("images are not available" in note for note in found.notes)


def test_without_images_and_features_the_report_is_still_there(fitted, tmp_path):
    folder, directory = fitted
    moved = tmp_path / "photos"
    shutil.move(folder / "photos", moved)
    try:
        found = inspect_run(
            featkit.load_run(directory), cache=tmp_path / "empty", compute=Compute()
        )
    finally:
        shutil.move(moved, folder / "photos")
    assert found.embedding_map is None
    assert found.counts == {}
    assert found.shared is None
    assert any("features are not available" in note for note in found.notes)


@pytest.mark.parametrize(
    ("value", "message"), [(1.0, "all the same"), (float("nan"), "not finite")]
)
def test_features_that_cannot_be_projected_leave_out_the_map_only(
    fitted, monkeypatch, value, message
):
    features = run_features(featkit.load_run(fitted[1]), fitted[0] / "cache", Compute())
    x = np.full_like(features.embeddings.x, value)
    changed = replace(features, embeddings=replace(features.embeddings, x=x))
    monkeypatch.setattr(inspect, "run_features", lambda *given: changed)
    found = inspected(*fitted, heat_maps=False)
    assert found.embedding_map is None
    assert found.mistakes
    assert any("There is no embedding map" in note and message in note for note in found.notes)


def test_an_image_that_cannot_be_read_is_left_out(fitted):
    folder, directory = fitted
    name = inspected(folder, directory, heat_maps=False).mistakes[0].id
    path = folder / "photos" / name
    content = path.read_bytes()
    path.write_bytes(b"no image")
    try:
        found = inspected(folder, directory)
    finally:
        path.write_bytes(content)
    assert found.mistakes[0].image is None
    assert any("could not be read" in note for note in found.notes)


def test_a_run_without_mistakes_has_no_picture_of_them(fitted):
    _, directory = fitted
    _, _, predictions = read_run(directory)
    right = type(predictions)(predictions.ids, predictions.y, predictions.y, predictions.confidence)
    with pytest.raises(DataError, match="correctly"):
        inspect_mistakes(featkit.load_run(directory), right, count=3, compute=Compute())


def test_predictions_are_read_with_their_confidence(fitted):
    _, directory = fitted
    _, _, predictions = read_run(directory)
    with (directory / "predictions.csv").open(newline="", encoding="utf-8") as file:
        expected = [float(row["confidence"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(predictions.confidence, expected)
