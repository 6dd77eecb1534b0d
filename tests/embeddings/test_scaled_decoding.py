"""Features of large JPEG files: decoded at a fraction of their size, recorded, and never mixed up."""

from __future__ import annotations

import logging
from dataclasses import replace

import h5py
import numpy as np
import pytest
from PIL import Image

import featkit
import featkit.images.files as files_module
from featkit.embeddings import store
from featkit.embeddings.embedder import ImageEmbedder
from featkit.embeddings.extract import Extractor, run_extractions
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.request import Request, resolve
from featkit.embeddings.shards import Shard, extract_shard, merge_shards
from featkit.embeddings.verify import explain, verify
from featkit.errors import CacheError, SpecError
from featkit.images.files import images_from_files
from featkit.runs.card import read_card
from featkit.runs.directory import load_run
from featkit.runs.predict import embed_images

COMPUTE = Compute(device="cpu", batch_size=4, workers=1)
NETWORK = {"backbone": "resnet18", "weights": "random", "resize": "32", "crop": "32"}


def photo(path, number, edge=150):
    """Write a JPEG file of some rectangles."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (edge * 4 // 3, edge)
    Image.fromarray(small).resize(size, Image.Resampling.NEAREST).save(path, quality=90)


@pytest.fixture
def album(tmp_path):
    """A folder of two classes with six images each; one of each class is small."""
    for place, name in enumerate(("cat", "dog")):
        for number in range(6):
            edge = 150 if number else 100
            photo(tmp_path / "album" / name / f"{number}.jpg", 10 * place + number, edge)
    return tmp_path / "album"


def request_of(folder, **options):
    given = {"precision": "fp32", **NETWORK, **options}
    return Request(data=str(folder), **given).for_device("cpu")


def extract(folder, cache, **options):
    return Extractor(cache, COMPUTE).extract([request_of(folder, **options)])[0]


def cosines(a, b):
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_large_photos_are_scaled_and_the_recipe_says_so(album, tmp_path):
    scaled = store.read(extract(album, tmp_path / "one").path)
    full = store.read(extract(album, tmp_path / "two", decode="full").path)
    assert (scaled.recipe.decode, full.recipe.decode) == ("scaled", "full")
    assert '"decode":"scaled"' in scaled.recipe.to_json()
    assert "decode" not in full.recipe.to_json()  # as in files of earlier versions
    small = np.array([name.endswith("0.jpg") for name in scaled.ids])
    np.testing.assert_allclose(scaled.x[small], full.x[small], rtol=1e-4, atol=1e-5)
    assert not np.allclose(scaled.x[~small], full.x[~small], rtol=1e-4, atol=1e-5)
    assert cosines(scaled.x, full.x).min() > 0.98


def test_images_without_large_photos_have_the_same_file_either_way(tmp_path):
    for number in range(6):
        photo(tmp_path / "album" / "ab"[number % 2] / f"{number}.jpg", number, edge=127)
    made = extract(tmp_path / "album", tmp_path, decode="full")
    for decode in (None, "scaled", "full"):
        again = extract(tmp_path / "album", tmp_path, decode=decode)
        assert (again.hit, again.path) == (True, made.path)


@pytest.fixture
def earlier(album, tmp_path):
    """A cache of an earlier version, which decoded in full and did not record it."""
    path = extract(album, tmp_path / "cache", decode="full").path
    with h5py.File(path, "r+") as file:
        assert '"decode": "full"' in file.attrs["provenance"]
        file.attrs["provenance"] = file.attrs["provenance"].replace(', "decode": "full"', "")
        del file.attrs["seal"]  # as in files of version 0.2
    assert Request.from_dict(store.describe(path).provenance["request"]).decode is None
    return path


def test_a_cache_of_an_earlier_version_is_a_hit(album, earlier, caplog):
    with caplog.at_level(logging.INFO, logger="featkit"):
        done = extract(album, earlier.parent)
    assert (done.hit, done.path) == (True, earlier)
    assert "10 JPEG files are decoded in full, as in the cache" in caplog.text
    chosen = extract(album, earlier.parent, decode="scaled")
    assert (chosen.hit, chosen.embedded, chosen.reused) == (False, 10, 2)
    # From now on there are both, and the default is the faster one.
    assert extract(album, earlier.parent).path == chosen.path


def test_images_are_added_to_a_cache_of_an_earlier_version(album, earlier):
    photo(album / "cat" / "9.jpg", 99)
    done = extract(album, earlier.parent)
    assert (done.embedded, done.reused) == (1, 12)
    assert store.describe(done.path).recipe.decode == "full"


def test_options_are_filled_in_from_a_cache_of_an_earlier_version(album, earlier):
    request, path = resolve({}, earlier.parent)
    assert (path, request.decode) == (earlier, None)
    chosen, path = resolve({"decode": "scaled"}, earlier.parent)
    assert (path, chosen.data, chosen.decode) == (earlier, str(album), "scaled")


def test_a_large_photo_among_small_ones_leaves_their_features(tmp_path):
    for number in range(6):
        photo(tmp_path / "album" / "ab"[number % 2] / f"{number}.jpg", number, edge=100)
    extract(tmp_path / "album", tmp_path)
    photo(tmp_path / "album" / "a" / "7.jpg", 7)
    done = extract(tmp_path / "album", tmp_path)
    assert (done.embedded, done.reused) == (1, 6)
    assert store.describe(done.path).recipe.decode == "scaled"
    full = extract(tmp_path / "album", tmp_path, decode="full")
    assert (full.embedded, full.reused) == (1, 6)


def test_networks_get_the_size_that_each_of_them_needs(album, tmp_path):
    options = [{}, {"resize": "40"}, {"resize": "16", "crop": "16"}]
    requests = [request_of(album, **each) for each in options]
    together = Extractor(tmp_path / "together", COMPUTE).extract(requests)
    for request, done in zip(requests, together, strict=True):
        alone = Extractor(tmp_path / "alone", COMPUTE).extract([request])[0]
        assert alone.path.name == done.path.name
        a, b = store.read(alone.path), store.read(done.path)
        np.testing.assert_allclose(a.x, b.x, rtol=1e-4, atol=1e-5)
    decodings = [store.describe(done.path).recipe.decode for done in together]
    assert decodings == ["scaled", "full", "scaled"]


def test_a_photo_is_decoded_once_for_networks_that_need_the_same_size(album, tmp_path, monkeypatch):
    edges = []
    decode = files_module.decode

    def counted(data, name, intensity, on_dark, edge):
        edges.append(edge)
        return decode(data, name, intensity, on_dark, edge)

    monkeypatch.setattr(files_module, "decode", counted)
    requests = [request_of(album), request_of(album, layer="layer3")]
    Extractor(tmp_path, COMPUTE).extract(requests)
    assert edges == [32] * 12


def test_views_and_corrupted_images_keep_their_features(album, tmp_path):
    options = {"augment": "basic", "views": 1}
    full = store.read(extract(album, tmp_path, decode="full", **options).path)
    done = extract(album, tmp_path, decode="scaled", **options)
    scaled = store.read(done.path)
    views = np.array(["#view" in name for name in full.ids])
    np.testing.assert_array_equal(scaled.x[views], full.x[views])
    large = {name for name in scaled.ids if "#" not in name and not name.endswith("0.jpg")}
    assert (done.embedded, done.reused) == (len(large), len(full.ids) - len(large))
    test = request_of(album, perturb="gaussian_noise:level=mild")
    results = Extractor(tmp_path, COMPUTE).extract(test.file_requests())
    assert store.describe(results[1].path).recipe.decode == "full"


def test_an_interrupted_extraction_is_not_continued_with_the_other_decoding(
    album, tmp_path, monkeypatch
):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("featkit.embeddings.extract._publish", stop)
        with pytest.raises(KeyboardInterrupt):
            extract(album, tmp_path, decode="full")
    assert extract(album, tmp_path, decode="scaled").resumed == 0
    full = extract(album, tmp_path, decode="full")
    # The two small images are decoded in the same way, and are in the cache by now.
    assert (full.resumed, full.reused, full.embedded) == (10, 2, 0)


def test_sizes_come_from_the_index_of_images(album, tmp_path, monkeypatch):
    monkeypatch.setattr("featkit.storage.YOUNG", -(10**18))  # no file is too young
    made = extract(album, tmp_path)
    monkeypatch.setattr(files_module, "read_bytes", None)
    assert extract(album, tmp_path).path == made.path


def test_explain_and_verify_name_the_decoding(album, tmp_path):
    made = extract(album, tmp_path, decode="full")
    plan = Extractor(tmp_path, COMPUTE).plan(request_of(album, decode="scaled"))
    text = explain(plan)
    assert text.startswith("miss: 10 of 12 images must be embedded")
    assert "decode: full cached, scaled requested" in text
    scaled = extract(album, tmp_path, decode="scaled")
    for done in (made, scaled):
        assert verify(done.path, COMPUTE) == []


@pytest.mark.parametrize("decode", [None, "full"])
def test_merged_shards_are_the_file_of_one_machine(album, tmp_path, decode):
    request = request_of(album, decode=decode)
    parts = [
        extract_shard([request], Shard(number, 5), tmp_path / "parts", COMPUTE)[0]
        for number in range(1, 6)
    ]
    paths = [part.path for part in parts if part]
    merged = merge_shards(paths, tmp_path / "parts")
    alone = extract(album, tmp_path / "alone", decode=decode or "scaled")
    assert merged.path.name == alone.path.name
    assert store.read(merged.path).recipe == store.read(alone.path).recipe
    assert Extractor(tmp_path / "parts", COMPUTE).extract([request])[0].hit


def test_shards_of_different_decoding_are_not_merged(album, tmp_path):
    paths = []
    for number, decode in ((1, "full"), (2, "scaled")):
        (part,) = extract_shard(
            [request_of(album, decode=decode)], Shard(number, 2), tmp_path, COMPUTE
        )
        paths.append(part.path)
    with pytest.raises(CacheError, match="decode"):
        merge_shards(paths, tmp_path)


def test_a_file_of_a_shard_is_hashed_once_for_all_networks(album, tmp_path, monkeypatch):
    hashed = []
    jpeg_edge = files_module.jpeg_edge

    def counted(data):  # called beside each digest of a file that is not decoded
        hashed.append(data)
        return jpeg_edge(data)

    monkeypatch.setattr(files_module, "jpeg_edge", counted)
    requests = [request_of(album), request_of(album, layer="layer3")]
    done = extract_shard(requests, Shard(1, 2), tmp_path, COMPUTE)
    assert len(done) == 2
    assert len(hashed) == len(set(hashed)) > 0


def test_the_transformer_scales_large_photos(album, tmp_path):
    files = [str(path) for path in sorted(album.rglob("*.jpg"))]
    embedder = ImageEmbedder(**NETWORK, precision="fp32", cache=tmp_path, device="cpu")
    some = embedder.transform(files[:4])
    found = embedder.transform(files)
    np.testing.assert_array_equal(found[:4], some)
    images = images_from_files(files)
    request = replace(request_of(""), data="")
    expected = store.read(run_extractions([request], images, tmp_path / "x", COMPUTE)[0].path)
    np.testing.assert_allclose(found, expected.x, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_predicts_as_its_features_were_made(album, tmp_path):

    images = images_from_files([str(album / "cat" / "3.jpg")])
    run = featkit.fit(
        album, precision="fp32", device="cpu", **NETWORK, cache=tmp_path, out=tmp_path / "runs"
    )
    saved = load_run(tmp_path / "runs" / "album" / run.id)
    assert saved.request.decode == "scaled"
    full = store.read(extract(album, tmp_path, decode="full").path)
    row = full.ids.index("cat/3.jpg")
    # A run of an earlier version does not say how its images were decoded: in full.
    card = replace(read_card(saved.path), request=replace(saved.request, decode=None))
    assert card.to_json().count('"decode"') == 1  # of the recipe
    (saved.path / "card.json").write_text(card.to_json())
    old = load_run(saved.path)
    for each, expected in ((saved, run.source.embeddings), (old, full)):
        (_, found) = embed_images(each, images, COMPUTE)
        np.testing.assert_allclose(found[0], expected.x[row], rtol=1e-4, atol=1e-5)


def test_an_unknown_decoding_is_refused():
    with pytest.raises(SpecError, match="decode 'ful'"):
        Request(decode="ful")


def test_a_recipe_of_an_earlier_version_is_read():
    recipe = Recipe(*["x"] * 8, {}, "fp32")
    assert Recipe.from_json(recipe.to_json()) == recipe
    scaled = replace(recipe, decode="scaled")
    assert Recipe.from_json(scaled.to_json()) == scaled
    assert scaled.fingerprint != recipe.fingerprint
    assert scaled.network != recipe.network
