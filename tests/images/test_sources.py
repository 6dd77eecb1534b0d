"""Loading of image sources by name or path."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from featkit.errors import DataError, SpecError
from featkit.images import load_images
from featkit.images.folder import images_from_folder
from featkit.images.sources import SOURCES
from featkit.testing import check_source


def sizes(images) -> list[int]:
    return [len(images.rows(split)) for split in ("train", "val", "test")]


def test_digits_and_a_folder_pass_the_checks_for_plugins(photos):
    check_source(load_images("digits"))
    check_source(load_images(str(photos)))


def test_a_csv_source_passes_the_checks_for_plugins(photos):
    table = photos.parent / "labels.csv"
    rows = ["path,label,split"]
    for label in ("blue", "red"):
        rows += [f"photos/{label}/0.png,{label},train", f"photos/{label}/1.png,{label},test"]
    table.write_text("\n".join(rows))
    check_source(load_images(str(table)))


def test_digits_are_loaded():
    from sklearn.datasets import load_digits

    images = load_images()
    assert (images.name, len(images), images.classes) == ("digits", 1797, tuple("0123456789"))
    assert images.split == "70/15/15:seed=0"
    assert sizes(images) == [1258, 270, 269] or sizes(images) == [1258, 269, 270]
    assert np.array_equal(images.labels, load_digits().target)
    for row in (0, 1000):
        pixels = images.load(row)
        assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
        assert (
            np.abs(pixels[..., 0] / 255 - load_digits().images[row] / 16).max() < 0.5 / 255 + 1e-9
        )
    assert len({images.key(row) for row in range(1797)}) == len(
        {images.load(row).tobytes() for row in range(1797)}
    )


def test_folder_without_splits_gets_them_by_seed(photos):
    first, again, other = (
        load_images(str(photos)),
        load_images(str(photos)),
        load_images(str(photos), seed=1),
    )
    assert sizes(first) == [17, 3, 4] or sizes(first) == [17, 4, 3]
    assert np.array_equal(first.splits, again.splits)
    assert not np.array_equal(first.splits, other.splits)
    assert (first.split, other.split) == ("70/15/15:seed=0", "70/15/15:seed=1")


@pytest.fixture
def sorted_photos(photos):
    """Return photos in train, val and test folders: 5, 1 and 2 of each class."""
    for kind in sorted(photos.iterdir()):
        for number, file in enumerate(sorted(kind.iterdir())):
            part = photos / ("train" if number < 5 else "val" if number < 6 else "test") / kind.name
            part.mkdir(parents=True, exist_ok=True)
            file.rename(part / file.name)
        kind.rmdir()
    return photos


def test_own_splits_are_used(sorted_photos):
    images = load_images(str(sorted_photos))
    assert (images.split, sizes(images)) == ("own", [15, 3, 6])


def test_explicit_split_replaces_the_own_one(sorted_photos):
    images = load_images(str(sorted_photos), split="50/0/50", seed=3)
    assert (images.split, sizes(images)) == ("50/0/50:seed=3", [12, 0, 12])


def test_own_splits_without_val_are_not_changed(sorted_photos):
    shutil.rmtree(sorted_photos / "val")
    assert sizes(load_images(str(sorted_photos))) == [15, 0, 6]


def test_own_splits_without_test_raise_unless_a_new_split_is_given(sorted_photos):
    shutil.rmtree(sorted_photos / "test")
    with pytest.raises(
        DataError, match=r"photos has 18 images, but none in test: .* --split 70/15/15"
    ):
        load_images(str(sorted_photos))
    assert sizes(load_images(str(sorted_photos), split="70/15/15"))[2] > 0


def test_own_splits_without_train_are_refused(sorted_photos):
    shutil.rmtree(sorted_photos / "train")
    with pytest.raises(DataError, match=r"photos has 9 images, but none in train"):
        load_images(str(sorted_photos))


def test_a_limit_is_part_of_the_split_description(photos, sorted_photos):
    own = load_images(str(sorted_photos), limit="train=6,test=3")
    assert (own.split, sizes(own)) == ("own", [6, 3, 3])
    assert np.bincount(own.labels[own.rows("train")]).tolist() == [2, 2, 2]
    seeded = load_images(str(photos), split="50/0/50", limit="test=3,train=6")
    assert (seeded.split, sizes(seeded)) == ("50/0/50:seed=0,train=6,test=3", [6, 0, 3])


def test_limited_images_are_the_same_images(photos):
    whole, part = images_from_folder(photos), load_images(str(photos), limit="train=3")
    for row, name in enumerate(part.ids):
        assert part.key(row) == whole.key(whole.ids.index(name))
        assert np.array_equal(part.load(row), whole.load(whole.ids.index(name)))


def test_one_class_is_refused(photos):
    for kind in ("blue", "green"):
        shutil.rmtree(photos / kind)
    with pytest.raises(
        DataError, match=r"all train images of photos are of class 'red': .* two classes or more"
    ):
        load_images(str(photos))


def test_one_class_in_train_is_refused(sorted_photos):
    for kind in ("blue", "green"):
        shutil.rmtree(sorted_photos / "train" / kind)
    with pytest.raises(DataError, match="are of class"):
        load_images(str(sorted_photos))


@pytest.mark.parametrize("spec", ["nowhere", "no/such/folder", "digit", ""])
def test_unknown_source_lists_the_known_ones(spec):
    with pytest.raises(
        DataError, match=r"neither a folder nor a CSV file: .* known: digits, caltech101, cifar10"
    ):
        load_images(spec)


def test_a_file_that_is_not_csv_is_refused(photos):
    with pytest.raises(DataError, match=r"0.png' is neither a folder nor a CSV file"):
        load_images(str(photos / "red" / "0.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spec": "digits:size=9"}, "unknown option of data source digits 'size'"),
        ({"split": "70/30"}, "split '70/30'"),
        ({"limit": "100"}, "limit '100'"),
    ],
)
def test_malformed_options_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        load_images(**options)


def test_a_csv_file_and_a_path_in_the_home_directory_are_loaded(photos, monkeypatch):
    (photos / "labels.csv").write_text(
        "path,label\n"
        + "".join(f"{kind}/{n}.png,{kind}\n" for kind in ("red", "blue") for n in range(8)),
        encoding="utf-8",
    )
    monkeypatch.setenv("HOME", str(photos.parent))
    images = load_images("~/photos/labels.csv")
    assert (images.name, images.classes, len(images)) == ("photos", ("blue", "red"), 16)


def test_a_plug_in_adds_a_source(photos, monkeypatch):
    class Point:
        name, value = "mine", "mine:load"

        @staticmethod
        def load():
            return lambda kind="photos": images_from_folder(photos.parent / kind)

    monkeypatch.setattr(
        "featkit.registry._installed",
        lambda group, path: [Point] if group == "featkit.sources" else [],
    )
    assert "mine" in SOURCES.names()
    assert sizes(load_images("mine:kind=photos"))[0] == 17


def test_images_need_no_torch():
    code = "import sys, featkit.images as images; images.load_images(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("spec", "classes", "expected"),
    [
        ("caltech101", 101, [5784, 0, 2893]),
        ("pets/labels.csv", 37, [222, 0, 148]),
        ("eurosat", 10, [2100, 300, 600]),
        ("cifar10", 10, [2500, 0, 500]),
    ],
)
def test_real_data_sets_have_their_classes_and_sizes(real_data, spec, classes, expected):
    images = load_images(str(real_data / spec))
    assert (images.name, images.split) == (spec.split("/")[0], "own")
    assert (len(images.classes), sizes(images)) == (classes, expected)
    assert images.load(0).ndim == 3


def test_an_intensity_range_is_part_of_the_images(photos):
    plain, ranged = load_images(str(photos)), load_images(str(photos), intensity_range="0:4095")
    assert (plain.intensity, ranged.intensity) == ("none", "0:4095")
    assert ranged.take(np.array([0])).intensity == "0:4095"
    assert plain.key(0) != ranged.key(0)
    with pytest.raises(SpecError, match="not to digits: leave out --intensity-range"):
        load_images("digits", intensity_range="0:4095")


def test_what_was_noticed_is_logged(photos, caplog):
    (photos / "red" / "0.svg").write_text("<svg/>")
    with caplog.at_level("INFO", "featkit"):
        images = load_images(str(photos))
    assert images.notes == ("passed over: 1 .svg",)
    assert caplog.messages == ["photos: passed over: 1 .svg"]


def test_the_first_dark_image_is_reported_once(photos, caplog):
    for path in photos.rglob("*.png"):
        Image.fromarray(np.array([[0, 4095]], np.uint16)).save(path)
    images = load_images(str(photos))
    for row in range(5):
        images.load(row)
    (message,) = caplog.messages
    assert message.endswith("if the images have 12 bits, give --intensity-range 0:4095")
    assert load_images(str(photos), intensity_range="0:4095").load(0).max() == 255
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_any_class_of_train_is_refused(sorted_photos, split):
    """Such as test images that are not sorted into classes but all in one folder."""
    (sorted_photos / split / "images").mkdir()
    for path in sorted((sorted_photos / split).glob("*/*.png")):
        path.rename(sorted_photos / split / "images" / f"{path.parent.name}-{path.name}")
    with pytest.raises(DataError, match=f"no {split} image of photos .* but of 'images'"):
        load_images(str(sorted_photos))
    images = load_images(str(sorted_photos), split="70/15/15")
    assert len(images.classes) == 4
