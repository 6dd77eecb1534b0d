"""Groups of images: where they come from, and splits that keep them together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featkit.errors import DataError, FeatkitError, SpecError
from featkit.images import load_images
from featkit.images.groups import crossing_groups, draw_groups, group_split


def write_folder(root: Path, groups: int = 8, each: int = 3, separator: str = "/") -> Path:
    """Write ``<class>/<group>/*.png`` with the same group names in both classes.

    With another separator the group is a part of the file name.
    """
    shade = 0
    for label in ("benign", "malignant"):
        for group in range(groups):
            for number in range(each):
                path = root / label / f"patient{group}{separator}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 4), shade % 256).save(path)
                shade += 1
    return root


def write_table(root: Path, columns: str, rows: list[str]) -> Path:
    """Write a CSV file of images that need not exist, except for one."""
    Image.new("L", (4, 4)).save(root / "0.png")
    path = root / "set.csv"
    path.write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")
    return path


def table_rows(n: int = 40, groups: int = 10) -> list[str]:
    """Return lines ``path,label,site``: each site has images of both classes."""
    return [f"{row}.png,{'ab'[row % 2]},s{row // 2 % groups}" for row in range(n)]


@pytest.mark.parametrize(
    ("spec", "separator"), [("parent", "/"), ("patient([0-9]+)", "_"), ("/(patient[0-9]+)_", "_")]
)
def test_folders_and_expressions_make_groups(tmp_path: Path, spec: str, separator: str) -> None:
    """A patient with images of two classes is one group; no split separates it."""
    images = load_images(write_folder(tmp_path / "scans", separator=separator), group=spec)
    assert len(set(images.groups)) == 8
    assert crossing_groups(images.groups, images.splits) == []
    assert images.split == "70/15/15:seed=0,groups"
    assert "the split keeps groups together: train 36 images of 6 groups" in images.notes[-1]
    assert all(len(images.rows(split)) for split in ("train", "val", "test"))


def test_the_split_follows_the_seed_and_covers_all_groups(tmp_path: Path) -> None:
    """The same seed gives the same split; over many seeds every group is tested."""
    root = write_folder(tmp_path / "scans", each=1)
    tested = set()
    for seed in range(40):
        images = load_images(root, group="parent", seed=seed)
        tested |= {images.groups[row] for row in images.rows("test")}
    assert len(tested) == 8
    again = load_images(root, group="parent", seed=39)
    assert images.splits.tolist() == again.splits.tolist()


def test_a_column_of_a_csv_file_makes_groups(tmp_path: Path) -> None:
    """By name, in any case; the column group is used without being asked for, or ignored."""
    path = write_table(tmp_path, "path,label,Site", table_rows())
    assert load_images(path).groups == ()
    for name in ("Site", "site"):
        images = load_images(path, group=name)
        assert images.groups[:4] == ("s0", "s0", "s1", "s1")
        assert crossing_groups(images.groups, images.splits) == []
    path = write_table(tmp_path, "path,label,group", table_rows())
    own = load_images(path)
    assert crossing_groups(own.groups, own.splits) == []
    ignored = load_images(path, group="none")
    assert (ignored.groups, ignored.split) == ((), "70/15/15:seed=0")
    path = write_table(tmp_path, "path,label,group,site", [f"{row},x" for row in table_rows(4)])
    assert set(load_images(path, group="group", split="50/0/50").groups) == {"s0", "s1"}


def test_an_expression_finds_groups_in_the_paths_of_a_csv_file(tmp_path: Path) -> None:
    """What is not a column is a regular expression."""
    rows = [f"site{row % 6}/{row}.png,{'ab'[row // 6 % 2]}" for row in range(36)]
    path = write_table(tmp_path, "path,label", [*rows, "0.png,a"])
    with pytest.raises(DataError, match=r"matches no text in 1 of 37 names .* such as '0.png'"):
        load_images(path, group="site[0-9]")
    (tmp_path / "site0").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "site0" / "0.png")
    path = write_table(tmp_path, "path,label", rows)
    assert len(set(load_images(path, group="site[0-9]").groups)) == 6


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("patient([0-9]+", SpecError, "not a valid regular expression"),
        ("camera[0-9]", DataError, "matches no text in 48 of 48 names"),
        ("x*", DataError, "matches no text in 48 of 48 names"),
        ("(benign|malignant)", DataError, "scans: all 24 images of class 'benign' are in group"),
        ("[a-z]", DataError, "all 24 images of class 'benign'"),
    ],
)
def test_bad_expressions_are_refused(
    tmp_path: Path, spec: str, kind: type[FeatkitError], message: str
) -> None:
    """In one line that says what to do."""
    root = write_folder(tmp_path / "scans", separator="_")
    with pytest.raises(kind, match=message) as caught:
        load_images(root, group=spec)
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value)


def test_parent_needs_folders_inside_the_class_folders(tmp_path: Path) -> None:
    """Otherwise every class would be one group."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(3):
            Image.new("L", (4, 4), number).save(tmp_path / label / f"{number}.png")
    with pytest.raises(DataError, match=r"'a/0.png' of .* lies directly in the folder of its cl"):
        load_images(tmp_path, group="parent")


def test_the_same_folders_in_every_class_are_unclear_without_groups(tmp_path: Path) -> None:
    """The message names the option."""
    with pytest.raises(DataError, match="use --group parent"):
        load_images(write_folder(tmp_path / "scans"))


@pytest.mark.parametrize(
    ("columns", "rows", "options", "message"),
    [
        ("path,label,group", ["0.png,a,x", "1.png,b,", "2.png,b,y"], {}, "line 3 of .*no group"),
        ("path,label,site", ["0.png,a,", "1.png,b,"], {"group": "site"}, "line 2 .*'site' .2 of 2"),
        ("path,label,site", ["0.png,a,x", "1.png,b,y"], {"group": "label"}, "--group label"),
        (
            "path,label,group",
            ["0.png,a,x", "1.png,b,x", "2.png,a,y", "3.png,b,y"],
            {},
            "2 groups .x, y., too few for 3 splits",
        ),
        (
            "path,label,group",
            [*(f"{row}.png,a,x{row}" for row in range(9)), "9.png,rare,y", "10.png,rare,y"],
            {},
            "set: all 2 images of class 'rare' are in group 'y'",
        ),
        (
            "path,label,split,group",
            ["0.png,a,train,x", "1.png,b,train,y", "2.png,a,test,x", "3.png,b,test,z"],
            {},
            "1 of 3 groups have images in more than one split .x.*--split 70/15/15",
        ),
        (
            "path,label,split,group",
            ["0.png,a,train,x", "1.png,b,train,y", "2.png,a,val,x", "3.png,b,val,z"],
            {"split": "val"},
            "more than one split .x.",
        ),
    ],
)
def test_bad_groups_of_csv_files_are_refused(
    tmp_path: Path, columns: str, rows: list[str], options: dict[str, str], message: str
) -> None:
    """Empty cells, too few groups, classes of one group, and splits that separate a group."""
    path = write_table(tmp_path, columns, rows)
    with pytest.raises(FeatkitError, match=message) as caught:
        load_images(path, **options)
    assert "\n" not in str(caught.value)


def test_a_leak_can_be_allowed_and_an_empty_column_means_no_groups(tmp_path: Path) -> None:
    """The images keep their groups, so that reports can say so."""
    rows = ["0.png,a,train,x", "1.png,b,train,y", "2.png,a,test,x", "3.png,b,test,z"]
    path = write_table(tmp_path, "path,label,split,group", rows)
    images = load_images(path, allow_group_leak=True)
    assert crossing_groups(images.groups, images.splits) == ["x"]
    again = load_images(write_table(tmp_path, "path,label,split,group", [row[:-1] for row in rows]))
    assert again.groups == ()


def test_splits_are_stratified_and_leave_no_class_out() -> None:
    """400 groups of 1 to 9 images; the fractions are met within 2 points in every class."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(400), rng.integers(1, 10, 400))
    labels = rng.integers(0, 4, len(codes))
    splits = group_split(labels, codes.astype(str).tolist(), (0.7, 0.15, 0.15))
    assert crossing_groups(codes.astype(str).tolist(), splits) == []
    for label in range(4):
        own = splits[labels == label]
        assert np.mean(own == "test") == pytest.approx(0.143, abs=0.02)
        assert np.mean(own == "val") == pytest.approx(0.143, abs=0.02)


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 2 / 3, 0.9])
def test_whole_groups_are_held_out(fraction: float) -> None:
    """As many images as asked for, as far as groups allow."""
    codes = np.repeat(np.arange(60), 4)
    labels = np.tile([0, 1], 120)
    drawn = draw_groups(labels, codes, fraction, seed=1)
    assert drawn.mean() == pytest.approx(fraction, abs=0.06)
    assert not set(codes[drawn]) & set(codes[~drawn])


def test_classes_of_two_groups_keep_one_for_training() -> None:
    """Several assignments are tried: with the first one, class 4 has no image left."""
    labels = np.repeat(np.arange(5), 8)
    codes = labels * 2 + np.tile([0, 0, 0, 0, 1, 1, 1, 1], 5)
    for seed in range(20):
        drawn = draw_groups(labels, codes, 0.5, seed)
        assert set(labels[~drawn]) == set(range(5))
