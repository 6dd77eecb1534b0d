"""Networks evaluated on images they were trained on; copies of training images among test images."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

import featkit
from featkit.backbones.base import Preprocess
from featkit.backbones.saved import (
    INT8_CARD,
    NETWORK_FILE,
    Int8Description,
    NetworkDescription,
    images_trained_on,
    short_key,
)
from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError, StaleCacheError
from featkit.evaluation import Report, summary
from featkit.images.augment import is_augmented_view
from featkit.runs.features import (
    FeatureSet,
    cached_keys,
    find_copies,
    load_features,
    load_unknown,
    refuse_seen,
    refuse_trained_on,
)
from featkit.runs.fit import fit_run
from featkit.studies.audit import audit

SMALL = {"backbone": "resnet18", "weights": "random", "resize": "32"}


@pytest.fixture
def source(photos: Path, tmp_path: Path) -> FeatureSet:
    return load_features({"data": str(photos), **SMALL}, tmp_path / "cache", Compute())


def save_weights(file: Path, trained_on: Sequence[str]) -> Path:
    """Write a file as of a trained network, with a single weight."""
    file.parent.mkdir(parents=True, exist_ok=True)
    keys = tuple(map(short_key, trained_on))
    described = NetworkDescription("resnet18", "net", "a network", Preprocess(), {}, keys)
    save_file({"w": np.ones(1)}, file, metadata={"featkit": described.to_json()})
    return file


def as_run(folder: Path, trained_on: Sequence[str]) -> dict[str, str]:
    """Return the backbone of a run directory."""
    return {"backbone": str(save_weights(folder / "run" / NETWORK_FILE, trained_on).parent)}


def as_file(folder: Path, trained_on: Sequence[str]) -> dict[str, str]:
    """Return the backbone of a copy of the weights outside of the run directory."""
    return {"backbone": str(save_weights(folder / "copy.safetensors", trained_on))}


def as_weights(folder: Path, trained_on: Sequence[str]) -> dict[str, str]:
    """Return the plain architecture with the trained weights."""
    return {"weights": str(save_weights(folder / "weights.safetensors", trained_on))}


def as_int8(folder: Path, trained_on: Sequence[str]) -> dict[str, str]:
    """Return the backbone of an int8 network."""
    keys = tuple(map(short_key, trained_on))
    described = Int8Description(
        "resnet18", "net", "int8", Preprocess(), "", "avg", "0" * 64, 1, 1, 1, keys
    )
    (folder / "int8").mkdir()
    (folder / "int8" / INT8_CARD).write_text(described.to_json())
    return {"backbone": str(folder / "int8")}


Make = Callable[[Path, Sequence[str]], dict[str, str]]


@pytest.mark.parametrize("make", [as_run, as_file, as_weights, as_int8])
def test_a_network_is_refused_where_features_of_its_training_images_are_evaluated(
    source: FeatureSet, tmp_path: Path, make: Make
) -> None:
    """Heads are evaluated on test images; episodes and audits use all images."""
    keys = np.array(cached_keys(source))
    is_test = source.embeddings.splits == "test"

    trained = replace(source, request=replace(source.request, **make(tmp_path, keys[~is_test])))
    refuse_seen(trained)
    n = (~is_test).sum()
    expected = f"was trained on {n} of the {len(keys)} images of photos, and episodes would use"
    with pytest.raises(DataError, match=expected):
        refuse_trained_on(trained, "episodes")
    with pytest.raises(DataError, match="an audit would use all of them"):
        audit(trained)


@pytest.mark.parametrize("make", [as_run, as_file, as_weights])
def test_a_network_that_was_trained_on_test_images_is_refused(
    source: FeatureSet, tmp_path: Path, make: Make
) -> None:
    keys = np.array(cached_keys(source))
    tested = keys[source.embeddings.splits == "test"]
    request = replace(source.request, **make(tmp_path, tested[:1]))
    with pytest.raises(DataError, match=r"was trained on 1 of the \d+ test images of photos"):
        fit_run(replace(source, request=request), "prototypical")


def test_a_network_that_was_trained_on_other_images_is_accepted(
    source: FeatureSet, tmp_path: Path
) -> None:
    request = replace(source.request, **as_run(tmp_path, ["0" * 64]))
    refuse_trained_on(replace(source, request=request), "episodes")
    plain = tmp_path / "plain.safetensors"
    save_file({"w": np.ones(1)}, plain)
    request = replace(source.request, weights=str(plain))
    refuse_trained_on(replace(source, request=request), "episodes")


@pytest.fixture
def digits_folder(tmp_path: Path) -> Path:
    """Return a folder of 160 images of four digits with a split; six test images are near copies.

    They are train images that are brighter by one level, as after another conversion.
    """
    rng = np.random.default_rng(0)
    data = load_digits(n_class=4)
    folder = tmp_path / "scans"
    for row, (pixels, label) in enumerate(zip(data.images[:160], data.target[:160], strict=True)):
        grey = np.kron(15 * pixels, np.ones((4, 4))) + rng.integers(0, 10, (32, 32))
        part = folder / ("test" if row % 3 == 0 else "train") / str(label)
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey.astype(np.uint8)).save(part / f"{row}.png")
        if row in (1, 4, 7, 10, 13, 16):
            copied = folder / "test" / str(label)
            copied.mkdir(parents=True, exist_ok=True)
            Image.fromarray((grey + 1).astype(np.uint8)).save(copied / f"copy-of-{row}.png")
    return folder


def test_near_copies_are_reported_and_refused_with_strict(
    digits_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning with their number, the accuracy without them, a DataError with strict."""
    options = {"head": "prototypical", "cache": tmp_path / "cache", **SMALL}
    with caplog.at_level(logging.WARNING, "featkit"):
        run = featkit.fit(digits_folder, out=tmp_path / "out", **options)
    (message,) = [record.message for record in caplog.records if "near copy" in record.message]
    n = run.report.n
    assert message.startswith(f"6 of {n} test images have a near copy in train or val (test/")
    without = run.report.without_copies
    assert without is not None
    assert (without.copies, without.n) == (6, n - 6)
    kept = np.array(["copy-of" not in name for name in run.predictions.ids])
    assert without.top1 == pytest.approx(run.predictions.correct[kept].mean())
    assert "; without 6 copies of train or val images: top-1 " in summary(run.report)
    (saved,) = (tmp_path / "out").glob("*/*/results.json")
    text = json.dumps({k: v for k, v in json.loads(saved.read_text()).items() if k != "run"})
    assert Report.from_json(text).without_copies == without
    with pytest.raises(DataError, match=r"^6 of \d+ test images have a near copy.*--strict$"):
        featkit.fit(digits_folder, strict=True, **options)


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": lambda image: image,
    "smaller": lambda image: image.resize((image.width * 4 // 5, image.height * 4 // 5)),
    "brighter": lambda image: image.point(lambda value: min(255, value * 11 // 10)),
    "cropped": lambda image: ImageOps.crop(image, border=min(image.size) // 30),
    "framed": lambda image: ImageOps.expand(image, border=3),
    "mirrored": ImageOps.mirror,
}


@pytest.mark.slow
@pytest.mark.realdata
def test_edited_copies_of_train_photographs_in_test_are_near_copies(
    real_data: Path, real_weights: Path, tmp_path: Path
) -> None:
    """Compressed again, scaled, brighter, cropped, framed, mirrored; other photographs are not."""
    photos = tmp_path / "photos"
    for label in ("airplanes", "ant", "lotus", "Leopards"):
        paths = sorted((real_data / "caltech101" / "train" / label).iterdir())[:26]
        for split in ("train", "test"):
            (photos / split / label).mkdir(parents=True)
        for path in paths[:20]:
            shutil.copy(path, photos / "train" / label)
        for path in paths[20:]:
            shutil.copy(path, photos / "test" / label)
        for path, (name, change) in zip(paths, EDITS.items(), strict=False):
            with Image.open(path) as image:
                edited = change(image.convert("RGB"))
            edited.save(photos / "test" / label / f"{path.stem}-{name}.jpg", quality=60)
    given = {"data": str(photos), "backbone": "resnet18"}
    copies = find_copies(load_features(given, tmp_path / "cache", Compute()))
    found = [name for name in copies.near if "-" in name]
    pairs = dict(zip(copies.near, copies.originals, strict=True))
    assert all(Path(pairs[name]).stem == Path(name).stem.partition("-")[0] for name in found)
    assert len(found) >= 20
    assert len(copies.near) - len(found) <= 1


def test_identical_images_are_not_near_copies_and_both_are_left_out(
    digits_folder: Path, tmp_path: Path
) -> None:
    first = next((digits_folder / "train" / "0").glob("*.png"))
    shutil.copy(first, digits_folder / "test" / "0" / "same.png")
    source = load_features({"data": str(digits_folder), **SMALL}, tmp_path / "cache", Compute())
    copies = find_copies(source)
    assert copies.identical == ("test/0/same.png",)
    assert len(copies.near) == 6
    assert all("copy-of" in name for name in copies.near)
    assert len(copies.warnings()) == 2
    report = fit_run(replace(source, copies=copies), "prototypical").report
    assert report.without_copies is not None
    assert report.without_copies.copies == 7


def test_perturbed_test_images_are_compared_before_the_perturbation(
    digits_folder: Path, tmp_path: Path
) -> None:
    given = {"data": str(digits_folder), "perturb": "gaussian_noise:level=strong", **SMALL}
    source = load_features(given, tmp_path / "cache", Compute())
    assert len(find_copies(source).near) == 6


def test_augmented_views_of_train_images_are_not_copies(photos: Path, tmp_path: Path) -> None:
    """Nor are there copies among the photos."""
    given = {"data": str(photos), "augment": "light", "views": 2, **SMALL}
    source = load_features(given, tmp_path / "cache", Compute())
    assert any(map(is_augmented_view, source.embeddings.ids))
    copies = find_copies(source)
    assert copies.ids == frozenset()
    assert copies.warnings() == []
    keys = zip(source.embeddings.ids, cached_keys(source), strict=True)
    originals = [key for name, key in keys if not is_augmented_view(name)]
    request = replace(source.request, **as_run(tmp_path, originals[:3]))
    with pytest.raises(DataError, match="was trained on 3 of the 24 images"):
        refuse_trained_on(replace(source, request=request), "episodes")


@pytest.mark.parametrize("make", [as_run, as_file, as_weights, as_int8])
def test_images_trained_on_are_known_however_the_network_is_given(
    tmp_path: Path, make: Make
) -> None:
    """They are carried over to networks that are quantized, pruned or trained from it."""
    request = {"backbone": "resnet18", "weights": "imagenet", **make(tmp_path, ["a" * 64])}
    assert images_trained_on(request["backbone"], request["weights"]) == {"a" * 16}
    assert images_trained_on("resnet18", "imagenet") == frozenset()


def test_a_cache_file_of_an_earlier_version_was_decoded_in_full(tmp_path: Path) -> None:
    """It does not say so, and there is a newer file of the same photos that were scaled."""
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (150, 160, 3), dtype=np.uint8)
        label = tmp_path / "photos" / "ab"[number % 2]
        for folder, shown in ((label, pixels), (tmp_path / "other", 255 - pixels)):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shown).save(folder / f"{number}.jpg")
    given = {"data": str(tmp_path / "photos"), **SMALL, "crop": "32"}
    cache = tmp_path / "cache"
    old = load_features({**given, "decode": "full"}, cache, Compute()).path
    with h5py.File(old, "r+") as file:
        text = file.attrs["provenance"]
        assert text.count(', "decode": "full"') == 1
        file.attrs["provenance"] = text.replace(', "decode": "full"', "")
        del file.attrs["seal"]  # as in files of version 0.2
    scaled = load_features({**given, "decode": "scaled"}, cache, Compute())
    assert scaled.embeddings.recipe.decode == "scaled"
    found = load_features({"backbone": "resnet18"}, old, Compute())
    assert (found.path, found.request.decode) == (old, "full")
    unknown = load_unknown(tmp_path / "other", load_features({}, old, Compute()), Compute())
    assert unknown.embeddings.recipe.decode == "full"
    with pytest.raises(StaleCacheError, match="decode: full cached, scaled requested"):
        load_features({"decode": "scaled"}, old, Compute())
