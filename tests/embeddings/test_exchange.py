"""Export and import of features."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from featkit import extract
from featkit.embeddings import store
from featkit.embeddings.exchange import export_file, import_file
from featkit.errors import DataError, MissingExtraError, SpecError, StorageError

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
        ("id,label,a\n1,x\n", "different lengths"),
        ("id,label,a\n1,x,1\n1,x,2\n", "unique"),
        ("id,label,split,a\n1,x,dev,1\n", "splits one of train, val, test"),
    ],
)
def test_a_malformed_table_is_refused(text, message, tmp_path):
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        import_file(tmp_path / "v.csv", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_pickled_arrays_are_not_read(tmp_path):
    np.savez(tmp_path / "v.npz", embeddings=np.array([{}, {}], dtype=object), ids=["a", "b"])
    with pytest.raises(DataError, match="cannot be read as features"):
        import_file(tmp_path / "v.npz", tmp_path / "cache")


def test_an_unknown_format_a_missing_file_and_a_missing_folder_are_refused(file, tmp_path):
    with pytest.raises(SpecError, match=r"\*\.csv, \*\.npz, \*\.parquet"):
        export_file(file, tmp_path / "v.xlsx")
    with pytest.raises(DataError, match="not found"):
        import_file(tmp_path / "v.npz", tmp_path)
    with pytest.raises(StorageError):
        export_file(file, tmp_path / "nowhere" / "v.npz")


def test_parquet_without_pyarrow_names_the_extra(file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"featkit\[parquet\]"):
        export_file(file, tmp_path / "v.parquet")
    assert not list(tmp_path.glob(".v*"))
