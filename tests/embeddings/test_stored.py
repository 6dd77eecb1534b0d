"""Features that stay in their cache file."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from featkit import blocks
from featkit.blocks import RowView
from featkit.embeddings import store, stored
from featkit.embeddings.layout import StorageLayout
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.validation import images_digest, labels_digest
from featkit.errors import CacheError

N, D = 1500, 64
LAYOUTS = ("float32", "float16", "gzip", "float16,gzip")


def features(n=N, d=D):
    return np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)


def write(path, x, layout="float32", unreadable=(), rows_at_once=200):
    """Write a cache file, with rows in blocks of any size."""
    n = len(x)
    ids = tuple(f"image{row}" for row in range(n))
    keys = tuple(f"{row:064d}" for row in range(n))
    labels, classes = np.arange(n) % 3, ("a", "b", "c")
    recipe = Recipe(
        images=images_digest(ids, keys),
        labels=labels_digest(classes, labels),
        split="none",
        perturb="none",
        backbone="test",
        weights="",
        layer="",
        pool="",
        preprocess={},
        precision="fp32",
    )
    splits = np.random.default_rng(1).choice(["train", "val", "test"], n, p=[0.7, 0.1, 0.2])
    header = store.Header(recipe, ids, keys, labels, splits, classes, {})
    readable = np.setdiff1d(np.arange(n), unreadable)
    parts = np.array_split(readable, range(rows_at_once, len(readable), rows_at_once))
    store.write(path, header, ((part, x[part]) for part in parts), StorageLayout.parse(layout))


@pytest.fixture
def lower_limits(monkeypatch):
    monkeypatch.setattr(blocks, "VIEW_VALUES", 1000)
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 130 * D)
    monkeypatch.setattr(stored, "SPAN_BYTES", 10_000)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_large_file_is_a_view_of_the_same_rows(layout, tmp_path, lower_limits, monkeypatch):
    x = features()
    write(tmp_path / "a.h5", x, layout, unreadable=[3, 700, 701])
    view = store.read(tmp_path / "a.h5")
    with monkeypatch.context() as context:
        context.setattr(blocks, "VIEW_VALUES", 10**9)
        array = store.read(tmp_path / "a.h5")
    assert isinstance(view.x, RowView)
    assert isinstance(array.x, np.ndarray)
    np.testing.assert_array_equal(view.x[:], array.x)
    np.testing.assert_array_equal(view.y, array.y)
    assert view.ids == array.ids
    for split in ("train", "val", "test"):
        part = view.part(split)
        assert isinstance(part.x, RowView)
        np.testing.assert_array_equal(part.x[:], array.part(split).x)
        rows = np.random.default_rng(2).permutation(len(part))
        np.testing.assert_array_equal(part.x[rows], array.part(split).x[rows])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_read_in_any_order_any_number_of_times(layout, tmp_path, lower_limits):
    write(tmp_path / "a.h5", features(), layout)
    view = store.read(tmp_path / "a.h5").x
    whole = view[:]
    rng = np.random.default_rng(4)
    wanted = [[0, 0, 2], [5, 5, 7], [7, 5, 5], [1, 1, 4, 4], [3], [2, 2, 2], []]
    for size in (3, 10, 100, 2000):
        wanted += [rng.integers(0, size, size).tolist() for _ in range(20)]
    for rows in wanted:
        rows = np.array(rows, np.int64) % N
        np.testing.assert_array_equal(view[rows], whole[rows], str(rows[:10]))


def test_rows_are_read_from_a_contiguous_dataset(tmp_path, lower_limits):
    x = features()
    write(tmp_path / "a.h5", x)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["embeddings"]
        file.create_dataset("embeddings", data=x)
    view = store.read(tmp_path / "a.h5").x
    assert isinstance(view._source, stored.PlainRows)
    np.testing.assert_array_equal(view[::-1], x[::-1])


def test_uncompressed_rows_are_read_without_hdf5(tmp_path, lower_limits, monkeypatch):
    x = features()
    write(tmp_path / "a.h5", x)
    view = store.read(tmp_path / "a.h5").x
    monkeypatch.setattr(stored, "open_hdf5", None)
    np.testing.assert_array_equal(view[:], x)


def test_rows_are_read_where_chunks_cannot_be_listed(tmp_path, lower_limits, monkeypatch):
    x = features()
    write(tmp_path / "a.h5", x)
    monkeypatch.setattr(store, "_chunk_places", lambda features: None)
    view = store.read(tmp_path / "a.h5").x
    assert isinstance(view._source, stored.DecodedRows)
    np.testing.assert_array_equal(view[100:900], x[100:900])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_changed_bit_of_a_large_file_is_found(layout, tmp_path, lower_limits):
    """Bits anywhere in the stored features are flipped; compressed ones cannot even be decoded."""
    write(tmp_path / "a.h5", features(300), layout)
    content = (tmp_path / "a.h5").read_bytes()
    with h5py.File(tmp_path / "a.h5") as file:
        dataset = file["embeddings"].id
        chunks = [dataset.get_chunk_info(index) for index in range(dataset.get_num_chunks())]
        used = 300 * D * file["embeddings"].dtype.itemsize
    rng = np.random.default_rng(0)
    for _ in range(12):
        chunk = chunks[rng.integers(len(chunks))]
        damaged = bytearray(content)
        place = rng.integers(chunk.size if "gzip" in layout else min(used, chunk.size))
        damaged[chunk.byte_offset + place] ^= 1 << rng.integers(8)
        path = tmp_path / "b.h5"
        path.write_bytes(damaged)
        try:
            found = store.read(path).x[:]
        except CacheError:
            continue
        np.testing.assert_array_equal(found, store.read(tmp_path / "a.h5").x[:])


def test_the_first_damaged_image_is_named(tmp_path, lower_limits):
    write(tmp_path / "a.h5", features())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["embeddings"][[900, 1200], 5] += 1
    with pytest.raises(CacheError, match="2 images, image900 the first"):
        store.read(tmp_path / "a.h5")


@pytest.mark.parametrize("layout", ["float32", "gzip"])
def test_a_file_that_was_replaced_is_not_read(layout, tmp_path, lower_limits):
    write(tmp_path / "a.h5", features(), layout)
    view = store.read(tmp_path / "a.h5").x
    write(tmp_path / "b.h5", features() + 1, layout)
    # Possible on Windows too: nothing is open.
    (tmp_path / "b.h5").replace(tmp_path / "a.h5")
    with pytest.raises(CacheError, match="was changed while it was in use"):
        view[:10]
    (tmp_path / "a.h5").unlink()
    with pytest.raises(CacheError, match="not found"):
        view[:10]


def test_test_images_of_another_file_are_added(tmp_path, lower_limits):
    write(tmp_path / "a.h5", features())
    whole = store.read(tmp_path / "a.h5")
    other = replace(whole.part("test"), x=np.ones((int((whole.splits == "test").sum()), D)))
    joined = whole.replace_test(other)
    assert (joined.part("test").x == 1).all()
    np.testing.assert_array_equal(joined.part("train").x, whole.part("train").x[:])
