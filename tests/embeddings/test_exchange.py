"""Export and import of features."""

from __future__ import annotations

import csv
import sys
import zipfile
from contextlib import suppress
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from featkit import extract
from featkit.embeddings import exchange, store
from featkit.embeddings.exchange import export_file, import_file
from featkit.errors import DataError, MissingExtraError, SpecError
from featkit.storage import is_formula

FAST = {"backbone": "resnet18", "weights": "random", "resize": "32"}


@pytest.fixture
def file(tmp_path, colours):
    extract(colours(), cache=tmp_path / "cache", **FAST)
    (path,) = (tmp_path / "cache").glob("*.h5")
    return path


@pytest.mark.parametrize("suffix", ["csv", "npz", "parquet"])
def test_exported_features_are_imported_unchanged(suffix, file, tmp_path):
    out = tmp_path / f"vectors.{suffix}"
    export_file(file, out)
    before, after = store.read(file), store.read(import_file(out, tmp_path / "other"))
    np.testing.assert_array_equal(after.x, before.x)
    np.testing.assert_array_equal(after.y, before.y)
    assert (after.ids, after.classes, after.splits.tolist()) == (
        before.ids,
        before.classes,
        before.splits.tolist(),
    )
    assert after.recipe.backbone == f"import:vectors.{suffix}"


def test_any_name_survives_a_csv_file_in_which_none_is_a_formula(tmp_path):
    names = ["=HYPERLINK(1)", "'=1+1", "@SUM(1)", "a\rb", 'c"d,e', "-1", "'f", " g ", "-x"]
    x = np.arange(2.0 * len(names), dtype=np.float32).reshape(len(names), 2)
    labels = np.arange(len(names))
    np.savez(tmp_path / "v.npz", embeddings=x, labels=labels, ids=names, classes=names)
    first = import_file(tmp_path / "v.npz", tmp_path / "cache")
    export_file(first, tmp_path / "w.csv")
    with (tmp_path / "w.csv").open(newline="", encoding="utf-8") as file:
        for row in list(csv.reader(file))[1:]:
            assert not is_formula(row[0])
            assert not is_formula(row[1])
    before, after = store.read(first), store.read(import_file(tmp_path / "w.csv", tmp_path))
    assert after.ids == before.ids == tuple(names)
    assert [after.classes[label] for label in after.y] == names
    np.testing.assert_array_equal(after.x, x)


def test_exported_files_are_read_by_pandas_and_numpy(file, tmp_path):
    for suffix in ("csv", "npz", "parquet"):
        export_file(file, tmp_path / f"v.{suffix}")
    table, columns = pd.read_csv(tmp_path / "v.csv"), pd.read_parquet(tmp_path / "v.parquet")
    assert list(table.columns[:4]) == list(columns.columns[:4]) == ["id", "label", "split", "x0"]
    np.testing.assert_allclose(
        table.filter(regex=r"^x\d").to_numpy(), store.read(file).x, rtol=1e-6
    )
    np.testing.assert_array_equal(np.load(tmp_path / "v.npz")["embeddings"], store.read(file).x)


def test_a_table_without_splits_is_all_train(tmp_path):
    (tmp_path / "v.csv").write_text("id,label,a,b\n1,x,0.5,1\n2,y,1,2e3\n")
    found = store.read(import_file(tmp_path / "v.csv", tmp_path))
    assert found.splits.tolist() == ["train", "train"]
    np.testing.assert_array_equal(found.x, np.array([[0.5, 1], [1, 2000]], np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns id and label"),
        ("id,a\n1,2\n", "columns id and label"),
        ("id,label\n1,x\n", "numbers of images differ"),
        ("id,label,a\n", "numbers of images differ"),
        ("id,label,a\n1,x,nan\n", "finite"),
        ("id,label,a\n1,x,one\n", "cannot be read"),
        ("id,label,a\n1,x,1_0\n", "not a number"),
        ("id,label,a\n1,x,\n", "cannot be read"),
        ("id,label,a\n1,x\n", "different lengths"),
        ("id,label,a,a\n1,x,1,1\n", "same name"),
        ("id,label,a\n1,x,1e300\n", "too large for float32"),
        ("id,label,a\n1,,1\n2,x,1\n", "missing or not text"),
        (f"id,label,a\n1,x,{'1' * 200_000}\n", "field larger"),
        ("id,label,a\n1,x,1\n1,x,2\n", "unique"),
        ("id,label,split,a\n1,x,dev,1\n", "splits one of train, val, test"),
    ],
)
def test_a_malformed_table_is_refused(text, message, tmp_path):
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        import_file(tmp_path / "v.csv", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


TABLE = {
    "ids": np.array(["a", "b", "c"]),
    "labels": np.array([0, 1, 0]),
    "classes": np.array(["x", "y"]),
    "splits": np.array(["train", "train", "test"]),
    "embeddings": np.arange(6, dtype=np.float32).reshape(3, 2),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": np.full((3, 2), 1e300)}, "too large for float32"),
        ({"embeddings": np.full((3, 2), 1j)}, "not real numbers"),
        ({"embeddings": np.full((3, 2), np.datetime64("2025-01-01"))}, "not real numbers"),
        ({"embeddings": np.full((3, 2), "1")}, "not real numbers"),
        ({"embeddings": np.float32(1)}, "cannot be read as features"),
        ({"embeddings": np.ones(3, np.float32)}, "numbers of images differ"),
        ({"embeddings": np.ones((3, 0), np.float32)}, "numbers of images differ"),
        ({"labels": np.array([0, -1, 0])}, "not positions in its 2 classes"),
        ({"labels": np.array([0, 2, 0])}, "not positions in its 2 classes"),
        ({"labels": np.array([0.0, 1.0, 0.0])}, "labels are float64"),
        ({"labels": np.array([True, False, True])}, "labels are bool"),
        ({"labels": np.array([[0], [1], [0]])}, "labels are int64 of shape"),
        ({"classes": np.array(["x", "x"])}, "same name"),
        ({"classes": np.array(["x", " "])}, "missing or not text"),
        ({"classes": np.array([0.5, 1.5])}, "names are float64"),
        ({"ids": np.array(["a", "a", "c"])}, "ids must be unique"),
        ({"ids": np.array(["a", "", "c"])}, "missing or not text"),
        ({"ids": np.array(["a", "b\0b", "c"])}, "missing or not text"),
        ({"ids": np.array(["a", "\ud800", "c"])}, "surrogates not allowed"),
        ({"ids": np.array([b"a", b"\xff", b"c"])}, "cannot be read as features"),
        ({"ids": np.array([None, "b", "c"], dtype=object)}, "cannot be read as features"),
        ({"splits": np.array(["train", "train", "None"])}, "splits one of"),
        ({"splits": np.array(["train"])}, "numbers of images differ"),
    ],
)
def test_malformed_arrays_are_refused(changes, message, tmp_path):
    np.savez(tmp_path / "v.npz", **(TABLE | changes))
    with pytest.raises(DataError, match=message):
        import_file(tmp_path / "v.npz", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_unchanged_arrays_are_imported(tmp_path):
    np.savez(tmp_path / "v.npz", **TABLE)
    found = store.read(import_file(tmp_path / "v.npz", tmp_path / "cache"))
    np.testing.assert_array_equal(found.x, TABLE["embeddings"])
    assert found.y.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("id", ["a", None, "c"], "id None of row 1 is missing"),
        ("label", ["x", None, "x"], "label None of row 1 is missing"),
        ("label", [0.5, 1.5, 0.5], "is missing or not text"),
        ("split", ["train", None, "test"], "splits one of"),
        ("x0", [1.0, None, 2.0], "not finite"),
        ("x0", ["1", "2", "3"], "not real numbers"),
        ("x0", [[1], [2], [3]], "not real numbers"),
        ("x0", [{"a": 1}, {"a": 2}, {"a": 3}], "not real numbers"),
        ("x0", [datetime(2025, 1, 1, tzinfo=UTC)] * 3, "cannot be read as features"),
    ],
)
def test_malformed_columns_are_refused(name, column, message, tmp_path):
    columns = {"id": ["a", "b", "c"], "label": ["x", "y", "x"], "x0": [1.0, 2.0, 3.0]}
    parquet.write_table(pyarrow.table(columns | {name: column}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match=message):
        import_file(tmp_path / "v.parquet", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_small_file_that_unpacks_to_many_gigabytes_is_not_imported(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "_FREE_BYTES", 2**20)
    path = tmp_path / f"v.{suffix}"
    if suffix == "npz":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("ids.npy", bytes(2**22))
    else:
        column = pyarrow.DictionaryArray.from_arrays(np.zeros(10**5, np.int32), [1.0])
        columns = {f"x{number}": column for number in range(100)}
        parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(DataError, match="unpack to"):
        import_file(path, tmp_path / "cache")


@pytest.mark.parametrize("suffix", ["csv", "npz", "parquet"])
@pytest.mark.parametrize(
    "examples", [10, pytest.param(400, marks=[pytest.mark.slow, pytest.mark.long])]
)
def test_damaged_files_are_refused_or_imported_but_never_crash(suffix, examples, tmp_path):
    """Bits are flipped, and bytes are cut off or inserted, in a good file of each format."""
    path, cache = tmp_path / f"v.{suffix}", tmp_path / "cache"
    np.savez(tmp_path / "v.npz", **TABLE)
    export_file(import_file(tmp_path / "v.npz", cache), tmp_path / f"good.{suffix}")
    good = (tmp_path / f"good.{suffix}").read_bytes()

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(good) - 1), st.integers(0, 7), st.binary(max_size=8), st.data())
    def check(position: int, bit: int, inserted: bytes, data: st.DataObject) -> None:
        changed = bytearray(good)
        changed[position] ^= 1 << bit
        changed[position:position] = inserted
        cut = data.draw(st.just(len(changed)) | st.integers(0, len(changed)))
        path.write_bytes(changed[:cut])
        with suppress(DataError):
            assert np.isfinite(store.read(import_file(path, cache)).x).all()

    check()


def test_pickled_arrays_are_not_read(tmp_path):
    np.savez(tmp_path / "v.npz", embeddings=np.array([{}, {}], dtype=object), ids=["a", "b"])
    with pytest.raises(DataError, match="cannot be read as features"):
        import_file(tmp_path / "v.npz", tmp_path / "cache")


def test_an_unknown_format_and_a_missing_file_are_refused(file, tmp_path):
    with pytest.raises(SpecError, match=r"\*\.csv, \*\.npz, \*\.parquet"):
        export_file(file, tmp_path / "v.xlsx")
    with pytest.raises(DataError, match="not found"):
        import_file(tmp_path / "v.npz", tmp_path)


def test_a_missing_folder_is_created(file, tmp_path):
    export_file(file, tmp_path / "new" / "sub" / "v.npz")
    assert [path.name for path in (tmp_path / "new" / "sub").iterdir()] == ["v.npz"]


def test_parquet_without_pyarrow_names_the_extra(file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"featkit\[parquet\]"):
        export_file(file, tmp_path / "v.parquet")
    assert not list(tmp_path.glob(".v*"))
