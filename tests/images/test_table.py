"""Image sets from CSV files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from featkit.errors import DataError, DecodeError
from featkit.images import load_images
from featkit.images.table import images_from_csv


def put(root: Path, *names: str) -> Path:
    """Write one-pixel images to these paths; the grey value is the position in the list."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1, 1), number).save(root / name, "PNG")
    return root


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


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


def test_files_and_groups_are_those_of_the_table(tmp_path):
    put(tmp_path, "1.png", "2.png", "3.png")
    text = "path,label,Group\n1.png,cat,p1\nlost.png,dog,p2\n3.png,cat,'=p3\n"
    images = images_from_csv(write(tmp_path / "t.csv", text))
    assert images.files == (str(tmp_path / "1.png"), "", str(tmp_path / "3.png"))
    assert images.groups == ("p1", "p2", "=p3")
    assert images.take(np.array([2, 0])).files == (images.files[2], images.files[0])
    assert images.take(np.array([2, 0])).groups == ("=p3", "p1")
    without = images_from_csv(write(tmp_path / "t.csv", "path,label\n1.png,cat\n2.png,dog\n"))
    assert without.groups == without.take(np.array([0])).groups == ()


def test_an_apostrophe_in_front_of_a_formula_is_not_part_of_a_label(tmp_path):
    put(tmp_path, "1.png", "2.png", "3.png", "4.png")
    labels = ("'=sum", "''=sum", "'t Hooft", "'-1")
    lines = [f"{row + 1}.png,{label}" for row, label in enumerate(labels)]
    images = images_from_csv(write(tmp_path / "t.csv", "\n".join(["path,label", *lines])))
    found = [images.classes[label] for label in images.labels]
    assert found == ["=sum", "'=sum", "'t Hooft", "'-1"]


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
            "path,label\nmissing.png,b\nlost.png,b\n",
            r"2 files listed in .*t.csv are missing, the first is 'missing.png'",
        ),
        ("path,label,label\n1.png,a,b\n", r"t.csv has 2 columns 'label'"),
        ("path,label, Label \n1.png,a,b\n", r"t.csv has 2 columns 'label'"),
        ("path,Path,label\n1.png,2.png,b\n", r"t.csv has 2 columns 'path'"),
        ("path,label,split,SPLIT\n1.png,a,train,test\n", r"t.csv has 2 columns 'split'"),
        ("path,label,\u200bsplit,split\n1.png,a,train,test\n", r"t.csv has 2 columns 'split'"),
        ("path,label\n1.png,\u200b\n", r"line 2 of .* empty path or label"),
        ("path,label\n1.png,ab\n2.png,a\u200db\n", r"two classes whose names look the same"),
        ("path,label\n1.png,a\n1.png ,b\n", r"t.csv lists '1.png ' twice"),
        (
            "path,label\n1.png,a\n\u200b1.png,b\n",
            r"lists '\u200b1.png' twice".replace("\\u200b", ".*"),
        ),
        ("path,label\n1.png,a\n./1.png,b\n", r"t.csv lists './1.png' twice"),
        (
            "path,label,split\n1.png,a,train\n2.png,b,extra\n",
            r"line 3 of .* unknown split 'extra': known: train, val, test",
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


def test_a_missing_file_is_an_error_when_it_is_read(tmp_path):
    """So that --on-error skip can skip it."""
    put(tmp_path, "1.png", "2.png")
    text = "path,label\n1.png,a\nmissing.png,b\na\0b,b\n1.png/x.png,b\n2.png,b\n"
    images = images_from_csv(write(tmp_path / "t.csv", text))
    assert images.load(0).max() == 0
    assert images.load(4).max() == 1
    for row in (1, 2, 3):
        for read in (images.load, images.key):
            with pytest.raises(DecodeError, match=r"3 files listed .* 'missing.png': .*--on-error"):
                read(row)


@pytest.mark.parametrize(
    ("stored", "listed"),
    [
        ("n/e\u0301.png", "n/\u00e9.png"),
        ("n/\u00e9.png", "n/e\u0301.png"),
        ("e\u0301/\u00e9.png", "\u00e9/e\u0301.png"),
        ("n/1.png", "n/1.png "),
        ("n/1.png ", "n/1.png"),
        ("n/1.png", "n\\1.png"),
        ("n/1.png", "\u200bn/1.png"),
        ("n/1\ufeff.png", "n/1.png"),
        ("n/a b.png", "n/a\u00a0b.png"),
        ("n/\ud55c.png", "n/\u1112\u1161\u11ab.png"),
    ],
)
def test_a_path_is_found_under_another_spelling(tmp_path, stored, listed):
    put(tmp_path, stored)
    images = images_from_csv(write(tmp_path / "t.csv", f'path,label\n"{listed}",a\n'))
    assert images.load(0).max() == 0
    assert images.ids == (listed,)
    assert "1 paths are spelled differently" in images.notes[0]


def test_an_exact_path_is_preferred(tmp_path):
    put(tmp_path, "e\u0301.png", "\u00e9.png")
    images = images_from_csv(write(tmp_path / "t.csv", "path,label\ne\u0301.png,a\n\u00e9.png,b\n"))
    assert [int(images.load(row).max()) for row in (0, 1)] == [0, 1]
    assert "differ only in invisible characters" in images.notes[0]


def test_a_path_that_may_mean_two_files_is_refused(tmp_path):
    put(tmp_path, "1.png ", "1 .png", "\u200b1.png")
    with pytest.raises(DataError, match=r"line 2 of .* several names in .* look the same"):
        images_from_csv(write(tmp_path / "t.csv", "path,label\n1.png,a\n"))


def test_labels_have_one_normal_form(tmp_path):
    put(tmp_path, "1.png", "2.png", "3.png", "4.png")
    text = "path,label\n1.png,caf\u00e9\n2.png,cafe\u0301\n3.png, caf\u00e9\u00a0\n4.png,caf\u200b\u00e9\n"
    assert images_from_csv(write(tmp_path / "t.csv", text)).classes == ("caf\u00e9",)


def test_headers_in_any_case_and_other_columns_twice_are_accepted(tmp_path):
    put(tmp_path, "1.png")
    text = "\ufeffID,Path,LABEL,Split,id,note,note\n7,1.png,a,Testing,8,x,y\n"
    images = images_from_csv(write(tmp_path / "t.csv", text))
    assert (images.ids, images.classes, images.splits.tolist()) == (("1.png",), ("a",), ["test"])


@pytest.mark.parametrize(
    ("written", "splits"),
    [
        (("training", "dev", "testing"), ("train", "val", "test")),
        (("train", "validation", "eval"), ("train", "val", "test")),
        (("train", "eval", "test"), ("train", "val", "test")),
    ],
)
def test_usual_names_of_splits_are_known_in_tables(tmp_path, written, splits):
    put(tmp_path, "0.png", "1.png", "2.png")
    lines = [f"{row}.png,a,{name}\n" for row, name in enumerate(written)]
    images = images_from_csv(write(tmp_path / "t.csv", "path,label,split\n" + "".join(lines)))
    assert tuple(images.splits) == splits


def test_a_column_that_may_hold_splits_is_noted(tmp_path):
    put(tmp_path, "0.png")
    images = images_from_csv(write(tmp_path / "t.csv", "path,label,Subset\n0.png,a,train\n"))
    assert images.notes == (
        "column 'Subset' is not used: if it holds the splits, rename it to split",
    )


FIELDS = st.sampled_from(
    [
        "path",
        "label",
        "split",
        "1.png",
        "2.png",
        "a",
        "train",
        "test",
        "",
        " ",
        '"',
        "\0",
        "\u200b",
        "..",
        "/",
        "x" * 300,
    ]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(FIELDS, max_size=4).map(",".join), max_size=5).map("\n".join).map(str.encode)
    | st.binary(max_size=60)
    | st.text(max_size=40).map(
        lambda text: f"path,label\n{text},a\n1.png,{text}".encode("utf-8", "replace")
    )
)
def test_any_content_is_read_or_refused_in_one_line(tmp_path, content):
    put(tmp_path, "1.png", "2.png")
    (tmp_path / "t.csv").write_bytes(content)
    message = ""
    try:
        assert len(images_from_csv(tmp_path / "t.csv").classes) >= 1
    except DataError as error:
        message = str(error)
    assert "\n" not in message


def test_the_metadata_of_a_hugging_face_imagefolder_is_a_csv_source(tmp_path):
    """``file_name`` is the path; the name is that of the folder; ``path`` takes precedence."""
    folder = tmp_path / "scans"
    (folder / "train").mkdir(parents=True)
    lines = ["file_name,label,split"]
    for number in range(8):
        pixels = np.full((4, 4, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / "train" / f"{number}.png")
        lines.append(f"train/{number}.png,{'ab'[number % 2]},{'test' if number > 5 else 'train'}")
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    images = load_images(folder / "metadata.csv")
    assert (images.name, images.ids[3]) == ("scans", "train/3.png")
    assert [len(images.rows(split)) for split in ("train", "test")] == [6, 2]
    text = "\n".join(lines).replace("file_name", "path").replace("split", "split,file_name", 1)
    rows = text.splitlines()
    rows = [rows[0], *(f"{row},other" for row in rows[1:])]
    (folder / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    assert load_images(folder / "metadata.csv").name == "metadata"
