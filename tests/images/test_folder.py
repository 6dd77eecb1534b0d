"""Image sets from folders: splits, classes, and what is passed over."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featkit.errors import DataError, DecodeError
from featkit.images import names
from featkit.images.folder import Folder, images_from_folder, list_image_files


def put(root: Path, *names: str) -> Path:
    """Write one-pixel images to these paths; the grey value is the position in the list."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1, 1), number).save(root / name, "PNG")
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
def test_an_empty_class_folder_is_noted(tmp_path, empty):
    root = put(tmp_path, "a/1.png", "c/1.png")
    (root / empty).mkdir(parents=True)
    images = images_from_folder(root)
    assert images.classes == ("a", "c")
    assert images.notes == ("1 folder without images: b",)


@pytest.mark.parametrize("name", ["1.heic", "1.CR2", "1.svg", "deep/1.jxl"])
def test_a_class_folder_of_images_that_cannot_be_read_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(names, "image_endings", lambda: (".png",))
    root = put(tmp_path, "a/1.png", "c/1.png")
    (root / "b" / name).parent.mkdir(parents=True)
    (root / "b" / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"b contains only images that featkit does not read \(p"):
        images_from_folder(root)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere cannot be listed: No such file"):
        images_from_folder(tmp_path / "nowhere")


@pytest.mark.skipif(os.name != "posix", reason="only such file systems take names of any bytes")
def test_names_that_are_not_utf8_are_escaped(tmp_path):
    put(
        tmp_path, "a/1.png", "b/1.png", os.fsdecode(b"a/caf\xe9.png"), os.fsdecode(b"\xfcber/1.png")
    )
    images = images_from_folder(tmp_path)
    assert images.ids == ("\\xfcber/1.png", "a/1.png", "a/caf\\xe9.png", "b/1.png")
    assert images.classes == ("\\xfcber", "a", "b")
    assert [int(images.load(row).max()) for row in range(4)] == [3, 0, 2, 1]


# Splits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("training", "validation", "testing"),
        ("Train", "Dev", "Eval"),
        ("TRAIN", "eval", "TEST"),
        ("seg_train", "seg_val", "seg_test"),
        ("train_images", "valid_set", "test-images"),
        ("TrainImages", "ValImages", "TestImages"),
        ("trainset", "devset", "testset"),
        ("train2017", "val2017", "test2017"),
        ("birds train", "birds validation", "birds holdout"),
    ],
)
def test_usual_names_of_splits_are_known(tmp_path, train, val, test):
    folders = {train: "train", val: "val", test: "test"}
    images = images_from_folder(
        put(tmp_path, *(f"{folder}/{kind}/1.png" for folder in folders for kind in ("cat", "dog")))
    )
    assert images.classes == ("cat", "dog")
    for name, split in zip(images.ids, images.splits, strict=True):
        assert split == folders[name.split("/")[0]]


@pytest.mark.parametrize(
    "classes",
    [
        ("bullet_train", "bus"),
        ("train_station", "test_bench"),
        ("steam train", "toy train"),
        ("train", "tram", "bus"),
        ("development_board", "resistor"),
        ("left", "right", "eval"),
    ],
)
def test_classes_with_words_of_splits_are_classes(tmp_path, classes):
    images = images_from_folder(put(tmp_path, *(f"{name}/1.png" for name in classes)))
    assert images.classes == tuple(sorted(classes))
    assert images.split == "none"


def test_folders_without_images_beside_splits_are_noted(tmp_path):
    put(tmp_path, "train/a/1.png", "test/a/1.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.json").write_text("{}")
    images = images_from_folder(tmp_path)
    assert images.split == "own"
    assert images.notes == ("passed over: 1 .json", "1 folder without images: annotations")


def test_the_layout_of_a_known_archive_is_read(tmp_path):
    """Each split folder holds another one of its name; the third one is not labelled."""
    images = images_from_folder(
        put(
            tmp_path,
            "seg_train/seg_train/sea/1.png",
            "seg_train/seg_train/forest/1.png",
            "seg_test/seg_test/sea/1.png",
            "seg_test/seg_test/forest/1.png",
            "seg_pred/seg_pred/1.png",
            "seg_pred/seg_pred/2.png",
        )
    )
    assert images.classes == ("forest", "sea")
    assert images.splits.tolist() == ["test", "test", "train", "train"]
    assert images.notes[0] == "passed over: 2 unlabelled in seg_pred"


def test_a_class_of_one_folder_is_no_extra_level(tmp_path):
    """Only if every split has an extra level."""
    images = images_from_folder(put(tmp_path, "train/a/x/1.png", "train/b/1.png", "test/a/x/1.png"))
    assert images.classes == ("a", "b")


@pytest.mark.parametrize("level", ["images", "data/photos"])
@pytest.mark.parametrize("splits", [("",), ("train/", "test/")])
def test_an_extra_level_above_the_classes_is_skipped(tmp_path, level, splits):
    images = images_from_folder(
        put(tmp_path, *(f"{level}/{split}{kind}/1.png" for split in splits for kind in "ab"))
    )
    assert images.classes == ("a", "b")
    assert images.split == ("own" if len(splits) > 1 else "none")
    assert images.notes == (f"class folders are those in {level}/",)
    assert images.ids[0].startswith(level)


@pytest.mark.parametrize(
    "files",
    [
        ("images/cat/1.png", "images/dog/1.png", "augmented/cat/1.png"),
        ("fold1/cat/1.png", "fold1/dog/1.png", "fold2/cat/1.png", "fold2/dog/1.png"),
        ("2019/cat/1.png", "2020/cat/1.png", "2020/dog/1.png"),
        ("day/train/1.png", "day/mask/1.png", "night/train/1.png", "night/mask/1.png"),
        ("day/a/1.png", "day/b/1.png", "night/a/1.png", "night/b/1.png", "dusk/b/1.png"),
    ],
)
def test_folders_that_hold_folders_of_the_same_names_are_refused(tmp_path, files):
    with pytest.raises(DataError, match=r"it is not clear whether the classes are .*CSV"):
        images_from_folder(put(tmp_path, *files))


@pytest.mark.parametrize(
    "files",
    [
        ("benign/SOB/adenosis/1.png", "malignant/SOB/ductal/1.png"),
        ("cat/tabby/1.png", "dog/poodle/1.png"),
        ("cat/2019/1.png", "cat/2020/1.png", "dog/2021/1.png"),
    ],
)
def test_deep_class_folders_are_noted(tmp_path, files):
    images = images_from_folder(put(tmp_path, *files))
    assert len(images.classes) == 2
    assert "all images are in subfolders of the class folders" in images.notes[0]


def test_splits_inside_class_folders_are_splits(tmp_path):
    images = images_from_folder(
        put(tmp_path, "a/train/1.png", "a/test/x/1.png", "b/train/1.png", "b/val/1.png")
    )
    assert images.classes == ("a", "b")
    assert dict(zip(images.ids, images.splits.tolist(), strict=True)) == {
        "a/test/x/1.png": "test",
        "a/train/1.png": "train",
        "b/train/1.png": "train",
        "b/val/1.png": "val",
    }


@pytest.mark.parametrize("other", ["a/1.png", "a/extra/1.png", "b/ground_truth/1.png"])
def test_images_beside_splits_inside_class_folders_are_refused(tmp_path, other):
    with pytest.raises(
        DataError, match=r"contains images beside its split folders \(test, train\)"
    ):
        images_from_folder(put(tmp_path, "a/train/1.png", "a/test/1.png", "b/train/1.png", other))


# What is passed over --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder",
    [
        "@eaDir",
        "__MACOSX",
        "lost+found",
        "LOST.DIR",
        "$RECYCLE.BIN",
        "$Recycle.Bin",
        "RECYCLER",
        "System Volume Information",
        "#recycle",
        "@Recycle",
        "found.000",
        "__pycache__",
        "Network Trash Folder",
    ],
)
def test_folders_of_the_system_are_passed_over(tmp_path, folder):
    put(
        tmp_path,
        "cat/1.png",
        "dog/1.png",
        f"{folder}/cat/1.png",
        f"cat/{folder}/1.png/thumb.jpg",
        f"dog/deep/{folder}/1.png",
    )
    images = images_from_folder(tmp_path)
    assert images.ids == ("cat/1.png", "dog/1.png")
    assert images.notes == (f"passed over: 3 {folder}/",)
    assert len(list_image_files(tmp_path)[0]) == 2


def test_a_folder_of_the_system_that_cannot_be_listed_is_no_problem(tmp_path, monkeypatch):
    put(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "lost+found").mkdir(mode=0)
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), scandir(path))[1])
    assert images_from_folder(tmp_path).classes == ("a", "b")
    assert not [path for path in listed if "lost" in str(path)]


def test_what_is_passed_over_is_counted_by_ending(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png", "a/.hidden.png", "stray.png", "a/deep/2.png")
    for name in (
        "a/1.svg",
        "a/2.SVG",
        "b/1.cr2",
        "b/deep.tar.gz",
        "README",
        "Thumbs.db",
        ".DS_Store",
    ):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b" / "._1.png").write_bytes(b"x")
    (tmp_path / "b" / "link").symlink_to(tmp_path / "a")
    images = images_from_folder(tmp_path)
    assert images.ids == ("a/1.png", "a/deep/2.png", "b/1.png")
    assert images.notes == (
        "passed over: 1 .cr2, 1 .gz, 2 .svg, 1 hidden .png, 1 images outside class folders, "
        "1 linked folders, 1 without ending",
    )
    assert images.take(np.array([0])).notes == images.notes


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "1.cr2").write_bytes(b"x")
    for read in (images_from_folder, list_image_files):
        with pytest.raises(DataError, match=r"contains no images.*passed over: 1 .cr2"):
            read(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no named pipes in folders")
def test_special_files_are_reported_when_they_are_read(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png")
    os.mkfifo(tmp_path / "a" / "2.png")
    (tmp_path / "a" / "3.png").symlink_to("3.png")
    (tmp_path / "b" / "self").symlink_to("self")
    images = images_from_folder(tmp_path)
    for row, reason in ((1, "it is a named pipe, not a file"), (2, "Too many levels")):
        with pytest.raises(DecodeError, match=reason):
            images.key(row)


def test_a_class_link_to_the_folder_itself_is_not_followed(tmp_path):
    put(tmp_path, "photos/a/1.png", "photos/b/1.png")
    (tmp_path / "photos" / "c").symlink_to(tmp_path)
    assert images_from_folder(tmp_path / "photos").classes == ("a", "b")


# Look-alikes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        "cafe\u0301",
        "caf\u00e9 ",
        "caf\u00e9\u00a0",
        "\u200bcaf\u00e9",
        "ca\u00adf\u00e9",
        "\ufeffcaf\u00e9",
    ],
)
def test_class_folders_that_look_the_same_are_one_class(tmp_path, other):
    images = images_from_folder(put(tmp_path, "caf\u00e9/1.png", f"{other}/2.png", "tea/1.png"))
    assert images.classes == ("caf\u00e9", "tea")
    assert sorted(images.labels.tolist()) == [0, 0, 1]
    assert "2 folders are class 'caf\u00e9'" in images.notes[0]


@pytest.mark.parametrize("other", ["a\u200db", "a\u200cb", "ab\ufe0f"])
def test_classes_that_differ_by_joiners_are_refused(tmp_path, other):
    """In some scripts they are part of the spelling, so neither spelling is taken for the other."""
    with pytest.raises(DataError, match="two classes whose names look the same"):
        images_from_folder(put(tmp_path, "ab/1.png", f"{other}/2.png"))


def test_a_class_without_a_visible_name_is_refused(tmp_path):
    with pytest.raises(DataError, match="a class whose name is empty or invisible"):
        images_from_folder(put(tmp_path, "a/1.png", "\u200b/2.png"))


def test_images_that_look_the_same_are_noted(tmp_path):
    images = images_from_folder(
        put(tmp_path, "a/\u00e9.png", "a/e\u0301.png", "a/x.png", "a/x .png", "b/1.png")
    )
    assert len(images) == 5
    assert "1 names stand for several images" in images.notes[0]


TREES = st.lists(
    st.tuples(
        st.lists(
            st.sampled_from(
                [
                    "train",
                    "Testing",
                    "val",
                    "cat",
                    "dog",
                    "images",
                    "@eaDir",
                    "seg_train",
                    "seg_pred",
                    "cat ",
                    ".x",
                ]
            ),
            max_size=3,
        ),
        st.sampled_from(["1.png", "2.JPG", "a.cr2", "b.txt", ".h.png", "x .png"]),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40)
@given(TREES)
def test_every_image_of_any_folder_is_used_or_counted(files):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for folders, file in files:
            path = root.joinpath(*folders, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        try:
            images = images_from_folder(root)
        except DataError:
            return
        visible = sum(len(folder.images) for folder in Folder.read(root).walk())
    counted = re.findall(r"(\d+) (?:images outside|unlabelled)", " ".join(images.notes))
    assert len(set(images.ids)) == len(images) == visible - sum(map(int, counted))


@pytest.mark.realdata
def test_nine_thousand_files_are_listed_in_their_splits(real_data):
    images = images_from_folder(real_data / "caltech101")
    assert (len(images.rows("train")), len(images.rows("test")), len(images.classes)) == (
        5784,
        2893,
        101,
    )
