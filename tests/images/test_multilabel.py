"""Images with several labels each: tables, sets of labels, iterative stratification."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featkit.errors import DataError
from featkit.images import load_images
from featkit.images.iterative import iterative_folds, iterative_split
from featkit.images.multilabel import (
    join_labels,
    label_names,
    label_sets,
    refuse_multilabel,
    split_labels,
    targets_of,
)
from featkit.images.table import images_from_csv


def write(folder: Path, text: str) -> Path:
    """Write a table and the images that it lists."""
    path = folder / "labels.csv"
    path.write_text(text)
    for line in filter(None, text.splitlines()[1:]):
        Image.new("L", (1, 1)).save(folder / line.partition(",")[0], "PNG")
    return path


def drawn(n: int = 400, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((n, 6)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0.01]).astype(np.uint8)


def test_a_cell_with_a_semicolon_makes_a_set_of_several_labels(tmp_path):
    text = "path,label\n1.png,dog; cat\n2.png,cat\n3.png,cat;dog\n4.png,(none)\n"
    images = images_from_csv(write(tmp_path, text))
    assert images.multilabel
    assert [images.classes[label] for label in images.labels] == [
        "cat;dog",
        "cat",
        "cat;dog",
        "(none)",
    ]
    assert label_names(images.classes) == ("cat", "dog")
    assert targets_of(images).tolist() == [[1, 1], [1, 0], [1, 1], [0, 0]]
    assert targets_of(images.take(np.array([1]))).tolist() == [[1, 0]]


def test_a_column_of_0_and_1_for_each_label_gives_the_same_set(tmp_path):
    text = "path,Dog,cat,age,split\n1.png,1,1,7,train\n2.png,0,1,5,test\n3.png,0,0,x,train\n"
    images = images_from_csv(write(tmp_path, text))
    assert images.multilabel
    assert [split_labels(images.classes[label]) for label in images.labels] == [
        ("Dog", "cat"),
        ("cat",),
        (),
    ]
    assert images.split == "own"
    assert "columns without 0 and 1 are not used as labels: age" in images.notes


def test_labels_without_a_semicolon_stay_classes(tmp_path):
    text = "path,label,cat\n1.png,dog,1\n2.png,cat,0\n"
    images = images_from_csv(write(tmp_path, text))
    assert not images.multilabel
    assert images.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n1.png,cat;dog\n2.png,cat;cat\n", "line 3 of {} repeats label 'cat'"),
        ("path,label\n1.png,cat;dog\n2.png,cat;\n", "line 3 of {} has an empty label in 'cat;'"),
        ("path,label\n1.png,cat;dog\n2.png,\n", "line 3 of {} has an empty label in ''"),
        ("path,label\n1.png,cat;(none)\n", "line 2 of {} has 'cat;(none)'"),
        ("path,label\n1.png,cat;C at\n2.png,c at\n", "two classes whose names look the same"),
        (
            "path,cat,dog\n1.png,1,0\n2.png,2,0\n",
            "line 3 of {} has '2' in the column of label 'cat'",
        ),
        ("path,cat,dog\n1.png,1,0\n2.png,,0\n", "line 3 of {} has '' in the column of label 'cat'"),
        ("path,cat\n1.png,1\n2.png,0\n", "{} has no column 'label'"),
        ("path,a;b,c\n1.png,1,1\n", "{} has a label 'a;b' with a semicolon"),
    ],
    ids=["repeated", "end", "empty", "none", "alike", "2", "missing", "single", "semicolon"],
)
def test_bad_labels_are_errors_that_name_the_line(tmp_path, text, message):
    if message.startswith("two"):
        text = text.replace("C at", "c\u2009at")
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=re.escape(message.format(path))):
        images_from_csv(path)


def test_a_label_that_no_train_image_has_is_an_error_that_names_the_line(tmp_path):
    text = (
        "path,label,split\n1.png,a;b,train\n\n2.png,a,train\n3.png,(none),train\n4.png,a;c,test\n"
    )
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=rf"line 6 of {path} has label 'c', which no train image"):
        load_images(str(path))


def test_a_label_that_all_train_images_have_is_an_error(tmp_path):
    path = write(tmp_path, "path,label,split\n1.png,a;b,train\n2.png,a,train\n3.png,b,test\n")
    with pytest.raises(DataError, match=r"all 2 train images of .* have label 'a'"):
        load_images(str(path))


def test_splits_and_limits_keep_the_share_of_every_label(tmp_path):
    targets = drawn()
    lines = [
        f"{row}.png,{join_labels(f'c{i}' for i in np.flatnonzero(each))}"
        for row, each in enumerate(targets)
    ]
    path = write(tmp_path, "path,label\n" + "\n".join(lines) + "\n")
    images = load_images(str(path), split="70/15/15")
    assert [len(images.rows(split)) for split in ("train", "val", "test")] == [280, 60, 60]
    limited = load_images(str(path), limit="train=100")
    assert len(limited.rows("train")) == 100
    found = targets_of(limited)[limited.rows("train")].sum(axis=0)
    assert np.abs(found - 100 * targets.mean(axis=0)).max() <= 2


@pytest.mark.parametrize("seed", [0, 1])
def test_iterative_stratification_has_exact_sizes_and_shares(seed):
    targets = drawn(seed=seed)
    splits = iterative_split(targets, (0.6, 0.2, 0.2), seed)
    assert [(splits == name).sum() for name in ("train", "val", "test")] == [240, 80, 80]
    for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        counts = targets[splits == name].sum(axis=0)
        assert np.abs(counts - share * targets.sum(axis=0)).max() <= 2
    assert (iterative_split(targets, (0.6, 0.2, 0.2), seed) == splits).all()
    assert (iterative_split(targets, (0.6, 0.2, 0.2), seed + 7) != splits).any()


def test_rare_labels_are_spread_better_than_by_chance():
    targets = drawn(seed=3)
    splits = iterative_split(targets, (0.5, 0.0, 0.5))
    rng = np.random.default_rng(0)
    deviations = []
    for chosen in (splits == "test", *(rng.permutation(400) < 200 for _ in range(20))):
        counts = targets[chosen].sum(axis=0)
        deviations.append(np.abs(counts - targets.sum(axis=0) / 2).max())
    assert deviations[0] <= min(deviations[1:])


def test_every_label_has_a_train_image_even_if_train_is_small():
    targets = np.eye(8, dtype=np.uint8)
    splits = iterative_split(targets, (0.1, 0.0, 0.9))
    assert (splits == "train").all()
    targets = np.repeat(targets, 2, axis=0)
    splits = iterative_split(targets, (0.1, 0.0, 0.9))
    assert targets[splits == "train"].sum(axis=0).tolist() == [1] * 8


def test_groups_stay_together_and_labels_keep_about_their_shares():
    targets = drawn(n=600)
    groups = np.repeat(np.arange(120), 5).astype(str)
    splits = iterative_split(targets, (0.7, 0.15, 0.15), 0, groups)
    for group in range(120):
        assert len(set(splits[5 * group : 5 * group + 5])) == 1
    shares = targets[splits == "test"].sum(axis=0) / targets.sum(axis=0)
    assert np.abs(shares[:4] - 0.15).max() < 0.1


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_have_the_same_size_and_share_of_every_label(folds):
    rng = np.random.default_rng(3)
    targets = (rng.random((301, 6)) < (0.5, 0.3, 0.1, 0.05, 0.03, 0.02)).astype(np.uint8)
    fold_of = iterative_folds(targets, folds, seed=1)
    sizes = np.bincount(fold_of, minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    for column in targets.T:
        counts = np.bincount(fold_of[column == 1], minlength=folds)
        assert counts.max() - counts.min() <= 3
    assert np.array_equal(fold_of, iterative_folds(targets, folds, seed=1))
    assert not np.array_equal(fold_of, iterative_folds(targets, folds, seed=2))


def test_folds_do_not_separate_groups():
    rng = np.random.default_rng(4)
    targets = (rng.random((120, 3)) < 0.4).astype(np.uint8)
    groups = [f"patient {row // 6}" for row in range(120)]
    fold_of = iterative_folds(targets, 4, groups=groups)
    assert len(np.unique(fold_of)) == 4
    for rows in np.arange(120).reshape(-1, 6):
        assert len(set(fold_of[rows].tolist())) == 1


def test_names_of_sets_are_sorted_and_split_again():
    assert join_labels(["b", "a"]) == "a;b"
    assert join_labels([]) == "(none)"
    assert label_sets(["a;b", "(none)", "c"]).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_what_needs_one_label_says_so(tmp_path):
    images = images_from_csv(write(tmp_path, "path,label\n1.png,a;b\n2.png,a\n"))
    with pytest.raises(DataError, match="several labels per image, and an episode needs one"):
        refuse_multilabel(images, "an episode")
