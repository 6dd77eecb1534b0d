"""float16 and compressed files."""

from __future__ import annotations

import sys

import h5py
import numpy as np
import pytest

from featkit import extract
from featkit.embeddings import store
from featkit.embeddings.layout import StorageLayout
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.verify import verify
from featkit.errors import DataError, MissingExtraError, SpecError

FAST = {"backbone": "resnet18", "weights": "random", "resize": "32", "precision": "fp32"}


def made(tmp_path):
    (path,) = tmp_path.glob("*.h5")
    return path


@pytest.mark.parametrize(
    "how", ["float32", "float16", "gzip", "zstd", "float16,gzip", "zstd,float16"]
)
def test_stored_features_equal_the_computed_ones(how, tmp_path, colours):
    plain = extract(colours(), cache=tmp_path / "plain", **FAST)
    found = extract(colours(), cache=tmp_path / "new", store=how, **FAST)
    exact = "float16" not in how
    np.testing.assert_allclose(
        found.x, plain.x, rtol=0 if exact else 2**-11, atol=0 if exact else 1e-6
    )
    assert found.x.dtype == np.float32
    assert (found.recipe == plain.recipe) == exact
    assert verify(made(tmp_path / "new"), Compute()) == []
    with h5py.File(made(tmp_path / "new")) as file:
        np.testing.assert_array_equal(file["embeddings"][:].astype(np.float32), found.x)


def test_float16_halves_the_file_and_records_the_rounding_error(tmp_path, colours):
    extract(colours(384), cache=tmp_path / "a", **FAST)
    extract(colours(384), cache=tmp_path / "b", store="float16", **FAST)
    full, half = store.describe(made(tmp_path / "a")), store.describe(made(tmp_path / "b"))
    assert full.size - half.size == pytest.approx(2 * 384 * 512, rel=0.05)
    assert full.rounding == 0
    assert 2**-12 <= half.rounding <= 2**-11


@pytest.mark.parametrize("how", ["float64", "gzip,zstd", "float16,float32", "", "float16,,gzip"])
def test_an_unknown_layout_is_refused(how):
    with pytest.raises(SpecError, match="is unknown; use one of: float32, float16"):
        StorageLayout.parse(how)


def test_a_number_too_large_for_float16_is_refused(tmp_path, colours):
    extract(colours(4), cache=tmp_path, **FAST)
    header = store.read_header(made(tmp_path))
    with pytest.raises(DataError, match="do not fit into float16"):
        store.write(
            tmp_path / "b.h5",
            header,
            iter([(np.arange(4), np.full((4, 3), 7e4, "f4"))]),
            StorageLayout("float16"),
        )
    assert [path.name for path in tmp_path.iterdir()] == [made(tmp_path).name]


def test_zstd_without_its_package_names_the_extra(tmp_path, colours, monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(MissingExtraError, match=r"featkit\[zstd\]"):
        extract(colours(), cache=tmp_path, store="zstd", **FAST)
