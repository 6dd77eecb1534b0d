"""Image sets from folders and CSV files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featkit.errors import DataError, DecodeError
from featkit.images.files import images_from_csv, images_from_files, images_from_folder
from featkit.storage import safe_name


def put(root: Path, *names: str) -> Path:
    """Write one-pixel images to these paths; the grey value is the position in the list."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1, 1), number).save(root / name)
    return root


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


def test_class_folders_are_classes(photos):
    images = images_from_folder(photos)
    assert images.name == "photos"
    assert images.classes == ("blue", "green", "red")
    assert images.ids[:2] == ("blue/0.png", "blue/1.png")
    assert np.bincount(images.labels).tolist() == [8, 8, 8]
    assert (images.split, set(images.splits)) == ("none", {"train"})
    assert images.load(9).shape == (20, 24, 3)
    assert images.load(9)[..., 1].mean() > 140
    assert len({images.key(row) for row in range(24)}) == 24


def test_only_visible_images_count_at_any_depth(tmp_path):
    put(
        tmp_path,
        "a/2.PNG",
        "a/deep/er/1.png",
        "a/.hidden.png",
        "a/.cache/3.png",
        "b/1.webp",
        ".git/x/4.png",
        "stray.png",
    )
    write(tmp_path / "a" / "notes.txt", "not an image")
    write(tmp_path / "README.md", "about")
    images = images_from_folder(tmp_path)
    assert images.ids == ("a/2.PNG", "a/deep/er/1.png", "b/1.webp")
    assert images.load(1).max() == 1


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_are_splits(tmp_path, val):
    """Classes that are not in train come last."""
    images = images_from_folder(
        put(
            tmp_path,
            "train/b/1.png",
            "train/c/1.png",
            f"{val}/a/1.png",
            "test/b/1.png",
            "test/c/1.png",
        )
    )
    assert images.split == "own"
    assert images.classes == ("b", "c", "a")
    assert dict(zip(images.ids, images.splits.tolist(), strict=True)) == {
        "test/b/1.png": "test",
        "test/c/1.png": "test",
        "train/b/1.png": "train",
        "train/c/1.png": "train",
        f"{val}/a/1.png": "val",
    }
    assert [images.classes[label] for label in images.labels] == [
        name.split("/")[1] for name in images.ids
    ]


def test_folders_of_test_and_val_alone_are_not_classes(tmp_path):
    images = images_from_folder(put(tmp_path, "test/a/1.png", "val/a/1.png"))
    assert (images.split, images.splits.tolist(), images.classes) == (
        "own",
        ["test", "val"],
        ("a",),
    )


def test_a_class_may_be_named_train(tmp_path):
    images = images_from_folder(put(tmp_path, "bus/1.png", "train/1.png", "tram/1.png"))
    assert images.classes == ("bus", "train", "tram")
    assert images.split == "none"


def test_a_linked_class_folder_is_followed_and_a_cycle_is_not(tmp_path):
    put(tmp_path, "far/1.png", "root/b/1.png")
    (tmp_path / "root" / "a").symlink_to(tmp_path / "far")
    (tmp_path / "root" / "b" / "again").symlink_to(tmp_path / "root")
    assert images_from_folder(tmp_path / "root").ids == ("a/1.png", "b/1.png")


def test_a_broken_link_is_reported_when_it_is_read(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "0.png").symlink_to(tmp_path / "missing.png")
    images = images_from_folder(tmp_path)
    assert images.ids[0] == "a/0.png"
    for read in (images.load, images.key):
        with pytest.raises(DecodeError, match=r"a/0.png cannot be read: No such file"):
            read(0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"photos contains no images: expected a folder for each class"),
        (
            ["1.png", "2.png"],
            r"photos contains images but no class folders: sort them into .*photos/<class>",
        ),
        (["train/1.png", "test/a/1.png"], r"train contains images but no class folders"),
        (
            ["train/a/1.png", "test/a/1.png", "extra/a/1.png"],
            r"split folders \(test, train\) next to other folders \(extra\)",
        ),
    ],
)
def test_a_folder_without_classes_is_refused(tmp_path, names, message):
    root = put(tmp_path / "photos", *names)
    root.mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message):
        images_from_folder(root)


@pytest.mark.parametrize("empty", ["b", "b/deeper", "b/.hidden"])
def test_empty_class_folder_is_named(tmp_path, empty):
    root = put(tmp_path, "a/1.png")
    (root / empty).mkdir(parents=True)
    with pytest.raises(DataError, match=rf"{root}/b contains no images: add some or remove it"):
        images_from_folder(root)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere cannot be listed: No such file"):
        images_from_folder(tmp_path / "nowhere")


@pytest.mark.skipif(os.name != "posix", reason="only such file systems take names of any bytes")
def test_name_that_is_not_utf8_is_reported(tmp_path):
    put(tmp_path, "a/1.png")
    (tmp_path / "a" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    with pytest.raises(DataError, match=r"caf\\udce9.png' is not UTF-8"):
        images_from_folder(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_is_read(tmp_path, encoding):
    put(tmp_path / "pets", "images/ä, b.png", "images/2.png", "images/3.png")
    text = 'split,path, label ,age\ntest,"images/ä, b.png",dog,3\r\ntrain,images/3.png,cat,1\n\nValid,images/2.png,cat,2\n'
    images = images_from_csv(write(tmp_path / "pets" / "labels.csv", text, encoding))
    assert images.name == "pets"
    assert images.ids == ("images/ä, b.png", "images/3.png", "images/2.png")
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [1, 0, 0]
    assert images.splits.tolist() == ["test", "train", "val"]
    assert images.split == "own"
    assert images.load(1).tolist() == [[[2, 2, 2]]]


def test_a_table_without_splits_is_named_after_its_file(tmp_path):
    put(tmp_path, "1.png", "2.png")
    images = images_from_csv(
        write(tmp_path / "my pets.csv", f"path,label\n1.png,cat\n{tmp_path / '2.png'},dog\n")
    )
    assert (images.name, images.split) == ("my_pets", "none")
    assert images.load(1).max() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no column 'path': expected path,label\[,split\], found no columns"),
        ("path,label\n", r"t.csv lists no images"),
        (
            "file,label\n1.png,a\n",
            r"has no column 'path': expected path,label\[,split\], found file, label",
        ),
        (
            "path;label\n1.png;a\n",
            r"has no column 'path': expected path,label\[,split\], found path;label",
        ),
        ("path,class\n1.png,a\n", r"has no column 'label'"),
        (
            "path,label\n1.png,a\nmissing.png,b\nlost.png,b\n",
            r"2 files listed in .*t.csv are missing, the first is 'missing.png'",
        ),
        ("path,label\n1.png,a\n./1.png,b\n", r"t.csv lists './1.png' twice"),
        (
            "path,label,split\n1.png,a,train\n2.png,b,dev\n",
            r"line 3 of .* unknown split 'dev': known: train, val, test",
        ),
        ("path,label,split\n1.png,a,train\n2.png,b,\n", r"line 3 of .* unknown split ''"),
        ("path,label\n1.png,a\n2.png\n", r"line 3 of .* not as many values as the header"),
        (
            "path,label\n1.png,a\nodd, name.png,b\n",
            r"line 3 of .* not as many values as the header",
        ),
        ("path,label\n1.png, \n", r"line 2 of .* empty path or label"),
        ("path,label\n,a\n", r"line 2 of .* empty path or label"),
        ('path,label\n"1.png,a\n', r"t.csv is not CSV"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path, text, message):
    put(tmp_path, "1.png", "2.png")
    with pytest.raises(DataError, match=message) as caught:
        images_from_csv(write(tmp_path / "t.csv", text))
    assert "\n" not in str(caught.value)


def test_a_table_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"t.csv is not UTF-8 text"):
        images_from_csv(write(tmp_path / "t.csv", "path,label\nä.png,a\n", "latin-1"))


def test_image_files_keep_their_order(tmp_path):
    put(tmp_path, "2.png", "1.png")
    images = images_from_files([tmp_path / "2.png", str(tmp_path / "1.png"), tmp_path / "2.png"])
    assert images.ids == tuple(str(tmp_path / name) for name in ("2.png", "1.png", "2.png"))
    assert [images.load(row).max() for row in range(3)] == [0, 1, 0]
    assert images.classes == ("",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eurosat", "eurosat"),
        ("my photos (2)", "my_photos_2"),
        (".hidden", "hidden"),
        ("a-b_c.d", "a-b_c.d"),
        ("図", "images"),
        ("", "images"),
    ],
)
def test_unsafe_characters_of_names_are_replaced(name, expected):
    assert safe_name(name) == expected


@pytest.mark.realdata
def test_listing_nine_thousand_files_is_quick(real_data):
    import time

    start = time.process_time()
    images = images_from_folder(real_data / "caltech101")
    assert time.process_time() - start < 1
    assert (len(images.rows("train")), len(images.rows("test")), len(images.classes)) == (
        5784,
        2893,
        101,
    )
