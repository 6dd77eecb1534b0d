"""The scikit-learn transformer embeds each image once, in pipelines and searches."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from featkit import ImageEmbedder
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


@pytest.mark.parametrize(
    "wrong", [[], [3], np.zeros((2, 8, 8)), np.zeros((2, 8, 8, 4), np.uint8), np.zeros(4, np.uint8)]
)
def test_input_that_is_not_images_is_refused(embedder, wrong):
    with pytest.raises(DataError):
        embedder.transform(wrong)


def test_a_missing_file_is_named(embedder, tmp_path):
    with pytest.raises(DataError, match=r"missing\.png"):
        embedder.transform([tmp_path / "missing.png"])
