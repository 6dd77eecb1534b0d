"""The scikit-learn transformer embeds each image once, in pipelines and searches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.ensemble import AdaBoostClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from featkit import ImageEmbedder, make_head
from featkit.embeddings import extract as extraction
from featkit.errors import DataError


@pytest.fixture
def embedder(tmp_path):
    return ImageEmbedder("resnet18", weights="random", resize="32", cache=tmp_path / "cache")


@pytest.fixture
def embedded(monkeypatch):
    """Counts the images that go through a network."""
    counts = []
    embed = extraction.embed

    def count(images, networks, compute):
        counts.append(sum(len(rows) for _, _, rows in networks))
        return embed(images, networks, compute)

    monkeypatch.setattr(extraction, "embed", count)
    return counts


def test_paths_and_arrays_give_the_same_features(embedder, photos):
    from featkit.images.decode import decode_file

    paths = sorted(photos.rglob("*.png"))
    arrays = np.stack([decode_file(path) for path in paths])
    np.testing.assert_allclose(
        embedder.transform(paths), embedder.transform(arrays), rtol=1e-4, atol=1e-5
    )
    assert embedder.transform([str(path) for path in paths[:2]]).shape == (2, 512)


def test_grey_arrays_are_embedded_as_rgb(embedder):
    grey = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=3)
    np.testing.assert_array_equal(embedder.transform(grey), embedder.transform(rgb))


def test_a_repeated_image_is_embedded_once_and_has_two_rows(embedder, embedded):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    found = embedder.transform(pixels[[0, 1, 0]])
    np.testing.assert_array_equal(found[0], found[2])
    assert sum(embedded) == 2


def test_a_grid_search_embeds_each_image_once(embedder, embedded, photos):
    paths = np.array(sorted(map(str, photos.rglob("*.png"))))
    labels = [path.split("/")[-2] for path in paths]
    model = make_pipeline(embedder, LogisticRegression(max_iter=1000))
    search = GridSearchCV(model, {"logisticregression__C": [0.1, 1.0]}, cv=3).fit(paths, labels)
    assert search.best_score_ > 0.9
    assert sum(embedded) == len(paths)


def test_the_embedder_can_be_cloned(embedder):
    assert clone(embedder).get_params() == embedder.get_params()


NOISE = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "same",
    [
        [Image.fromarray(pixels) for pixels in NOISE],
        list(NOISE),
        NOISE / 255,
        (NOISE / 255).astype(np.float32),
        list(NOISE / 255),
    ],
    ids=["PIL images", "list of arrays", "float64", "float32", "list of float arrays"],
)
def test_other_kinds_of_images_give_the_same_features(embedder, same):
    np.testing.assert_array_equal(embedder.transform(same), embedder.transform(NOISE))


def test_pil_images_are_read_as_their_files(embedder, tmp_path):
    """Rotated, transparent, grey, 16-bit and palette images, and images of different sizes."""
    grey = Image.fromarray(NOISE[0]).convert("L")
    images = {
        "grey.png": grey,
        "palette.png": Image.fromarray(NOISE[1]).quantize(16),
        "alpha.png": Image.merge("RGBA", [*Image.fromarray(NOISE[2]).split(), grey]),
        "deep.png": Image.fromarray(NOISE[0, :, :, 0].astype(np.uint16) * 257),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
    exif = Image.Exif()
    exif[274] = 6
    wide = np.repeat(NOISE[0], 2, axis=1)
    Image.fromarray(wide).save(tmp_path / "turned.png", exif=exif)
    paths = [tmp_path / name for name in (*images, "turned.png")]
    opened = [Image.open(path) for path in paths]
    np.testing.assert_array_equal(embedder.transform(opened), embedder.transform(paths))


def test_a_column_of_paths_is_a_sequence_of_paths(embedder, photos):
    pandas = pytest.importorskip("pandas")
    paths = sorted(map(str, photos.rglob("*.png")))[:3]
    expected = embedder.transform(paths)
    frame = pandas.DataFrame({"file": paths}, index=[7, 8, 9])
    for same in (frame, frame["file"], np.array(paths)[:, None], np.array(paths, dtype=object)):
        np.testing.assert_array_equal(embedder.transform(same), expected)


def test_features_have_names_and_can_be_a_data_frame(embedder, photos):
    pandas = pytest.importorskip("pandas")
    names = clone(embedder).get_feature_names_out()  # before any image
    assert names.dtype == object
    assert list(names) == [f"imageembedder{column}" for column in range(512)]
    assert list(clone(embedder).set_params(layer="layer1").get_feature_names_out())[-1] == (
        "imageembedder63"
    )
    frame = embedder.set_output(transform="pandas").transform(NOISE)
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(names)
    other = embedder.set_params(layer="layer1")
    assert other.transform(NOISE).shape == (3, 64)
    pipe = make_pipeline(clone(embedder), make_head("knn:k=1"))
    assert list(pipe[:-1].get_feature_names_out())[:1] == ["imageembedder0"]


def test_boosted_heads_predict_from_embedded_images(embedder, photos):
    paths = sorted(map(str, photos.rglob("*.png")))
    labels = np.array([path.split("/")[-2] for path in paths])
    for name in ("linear", "svm", "prototypical"):
        booster = AdaBoostClassifier(make_head(name), n_estimators=3, random_state=0)
        model = clone(make_pipeline(embedder, booster)).fit(paths, labels)
        assert model.score(paths, labels) > 0.9


@pytest.mark.slow
def test_nothing_is_written_to_the_current_directory(tmp_path):
    """The features are kept in a temporary folder until the process ends."""
    code = """
import numpy as np
from featkit import ImageEmbedder
from featkit.embeddings.embedder import _process_folder
import os
pixels = np.zeros((1, 8, 8, 3), np.uint8)
ImageEmbedder(weights="random", resize="32").transform(pixels)
ImageEmbedder(weights="random", resize="32").transform(pixels)
folder = _process_folder(os.getpid())
assert len(list(folder.glob("*.h5"))) == 1
print(folder)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert list(tmp_path.iterdir()) == []
    assert not Path(done.stdout.strip()).exists()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ([], "X is empty"),
        (np.zeros((0, 8, 8, 3), np.uint8), "X is empty"),
        ([3], "image 0 of X is a int"),
        (["a.png", NOISE[0]], "image 0 of X is a str"),
        ("a.png", "also for a single one"),
        (Image.fromarray(NOISE[0]), "also for a single one"),
        (7, "also for a single one"),
        (np.zeros(4, np.uint8), "X has shape"),
        (np.zeros((2, 8, 8, 4), np.uint8), "image 0 of X has shape"),
        (np.zeros((2, 0, 8, 3), np.uint8), "image 0 of X has shape"),
        (np.zeros((2, 8, 8), np.int64), "holds int64"),
        (np.zeros((2, 8, 8), bool), "holds bool"),
        (np.full((2, 8, 8), 1.5), "outside of 0..1: divide by their maximum"),
        (np.full((2, 8, 8), -0.5), "outside of 0..1"),
        (np.full((2, 8, 8), np.nan), "outside of 0..1"),
        ([Image.new("F", (8, 8))], "image 0 of X cannot be read"),
    ],
)
def test_input_that_is_not_images_is_refused(wrong, match, embedder):
    with pytest.raises(DataError, match=match) as caught:
        embedder.transform(wrong)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(embedder, tmp_path):
    with pytest.raises(DataError, match=r"missing\.png"):
        embedder.transform([tmp_path / "missing.png"])
