"""Names of splits, endings and look-alikes."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.images.names import (
    ending,
    is_foreign,
    is_image,
    is_system_file,
    look_alike,
    normal_form,
    printable,
    split_folders,
    split_of,
)

NAMES = st.text(max_size=12)
INVISIBLE = st.sampled_from("\u200b\u2060\ufeff\u00ad\u200e\u202e")


@settings(max_examples=40)
@given(NAMES)
def test_the_normal_form_is_final(name):
    assert normal_form(normal_form(name)) == normal_form(name)
    assert look_alike(normal_form(name)) == look_alike(name)


@settings(max_examples=60)
@given(NAMES, INVISIBLE, st.integers(0, 12), st.sampled_from(["NFC", "NFD"]))
def test_spellings_that_look_the_same_have_one_key(name, invisible, place, form):
    other = unicodedata.normalize(form, name)
    other = f" {other[:place]}{invisible}{other[place:]}\u00a0"
    plain = unicodedata.normalize("NFC", name)
    if unicodedata.normalize("NFC", other[1:-1].replace(invisible, "")) == plain.replace(
        invisible, ""
    ):
        assert look_alike(other) == look_alike(name)


def test_ascii_names_are_unchanged():
    for name in ("cat", "a_b-c.d", "two words", "001.ak47"):
        assert normal_form(name) == name == printable(name)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train", "test"], ["train", "test"]),
        (["Training", "Validation", "TESTING"], ["train", "val", "test"]),
        (["train", "eval", "test"], ["train", "val", "test"]),
        (["train", "val", "eval"], ["train", "val", "test"]),
        (["seg_train", "seg_test", "seg_pred"], ["train", "test", "unlabelled"]),
        (["train", "test1"], ["train", "test"]),
        (["TrainSet", "TestSet"], ["train", "test"]),
        (["train-images", "t10k-images"], []),
        (["cats_train", "dogs_test"], []),
        (["train", "cats_test"], []),
        (["seg_train", "seg_training"], []),
        (["train_test", "train"], []),
        (["pred", "prey"], []),
        ([], []),
    ],
)
def test_split_folders_are_recognised_together(names, splits):
    assert list(split_folders(names).values()) == splits


@pytest.mark.parametrize("name", ["", "extra", "train_images", "unlabelled", "0", "1"])
def test_other_values_are_no_splits(name):
    assert split_of(name, [name, "train", "test"]) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.JPG", ".jpg"),
        ("a.tar.gz", ".gz"),
        ("README", "without ending"),
        (".profile", "without ending"),
        ("a.", "other"),
        ("a.b c", "other"),
        ("a." + "x" * 50, "other"),
        ("a.\x1b[2J", "other"),
    ],
)
def test_endings_are_short_and_printable(name, expected):
    assert ending(name) == expected


def test_images_and_files_of_the_system_are_known_by_name():
    assert all(map(is_image, ("a.jpg", "a.MPO", "a.avif", "a.Tiff", "a.pbm")))
    assert not any(map(is_image, ("a.svg", "a.jpg.txt", "jpg", "a.cr2")))
    assert is_system_file("Thumbs.db")
    assert is_foreign("@eaDir")
    assert not any(map(is_foreign, ("recycled", "cat", "trash", "System", "tmp")))
