"""HDF5 files are read back as written, and incomplete files are never published."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featkit.embeddings import store
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.validation import images_digest, labels_digest, splits_digest
from featkit.errors import CacheError, StaleCacheError, StorageError


def make_header(n: int = 6, provenance: Mapping[str, Any] | None = None) -> store.Header:
    """Return a header of n images whose recipe has the digests of its names, labels and splits."""
    ids = tuple(f"ü {row}.png" for row in range(n))
    keys = tuple(f"{row:064x}" for row in range(n))
    labels, classes = np.arange(n) % 2, ("no", "yes, é")
    splits = np.where(np.arange(n) < 2 * n // 3, "train", "test")
    recipe = Recipe(
        images=images_digest(ids, keys),
        labels=labels_digest(classes, labels),
        split=splits_digest(splits),
        perturb="none",
        backbone="resnet18",
        weights="w",
        layer="avgpool",
        pool="avg",
        preprocess={"resize": 256},
        precision="fp32",
    )
    provenance = provenance or {"weights": "random:0"}
    return store.Header(recipe, ids, keys, labels, splits, classes, provenance)


RECIPE = make_header().recipe


def vectors(n: int = 6) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 5), dtype=np.float32)


def write(path: Path, blocks=None) -> None:
    store.write(path, make_header(), iter(blocks or [(np.arange(6), vectors())]))


def test_written_features_are_read_back(tmp_path):
    path = tmp_path / "new" / "a.h5"
    write(
        path,
        [
            (np.array([0, 2, 5]), vectors()[[0, 2, 5]]),
            (np.array([1]), vectors()[[1]]),
            (np.array([3, 4]), vectors()[3:5]),
        ],
    )
    found, header = store.read(path, RECIPE), make_header()
    np.testing.assert_array_equal(found.x, vectors())
    np.testing.assert_array_equal(found.y, header.labels)
    np.testing.assert_array_equal(found.splits, header.splits)
    assert (found.ids, found.classes, found.recipe) == (header.ids, header.classes, RECIPE)
    assert list(path.parent.iterdir()) == [path]


def test_unreadable_images_are_left_out_and_named(tmp_path):
    write(tmp_path / "a.h5", [(np.array([0, 1, 3]), vectors()[[0, 1, 3]])])
    found = store.read(tmp_path / "a.h5")
    np.testing.assert_array_equal(found.x, vectors()[[0, 1, 3]])
    assert found.ids == tuple(make_header().ids[row] for row in (0, 1, 3))
    assert store.check(tmp_path / "a.h5", RECIPE) == [make_header().ids[row] for row in (2, 4, 5)]


def test_the_file_is_plain_hdf5(tmp_path):
    """It can be read without featkit."""
    write(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["embeddings"][:], vectors())
        assert sorted(file) == [
            "checksums",
            "embeddings",
            "ids",
            "keys",
            "labels",
            "splits",
            "valid",
        ]
        assert json.loads(file.attrs["recipe"])["backbone"] == "resnet18"
        assert file["ids"].asstr()[0] == "ü 0.png"


def test_another_recipe_is_refused_and_the_field_named(tmp_path):
    write(tmp_path / "a.h5")
    with pytest.raises(StaleCacheError, match=r"layer: avgpool cached, layer3 requested") as caught:
        store.read(tmp_path / "a.h5", replace(RECIPE, layer="layer3"))
    assert caught.value.fields == {"layer": ("avgpool", "layer3")}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "a.h5"
    write(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CacheError, match="featkit cache rm"):
        store.read(path)


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all"])
def test_a_file_that_is_not_hdf5_is_refused(tmp_path, content):
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(CacheError, match="featkit cache rm"):
        store.read(tmp_path / "a.h5")


def test_a_foreign_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["embeddings"] = vectors()
    with pytest.raises(CacheError, match="not a complete embeddings file"):
        store.read(tmp_path / "a.h5")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CacheError, match=r"missing\.h5 not found"):
        store.read(tmp_path / "missing.h5")


@pytest.mark.parametrize("error", [ValueError("the network failed"), KeyboardInterrupt()])
def test_an_extraction_that_ends_early_leaves_nothing(tmp_path, error):
    def blocks():
        yield np.arange(3), vectors()[:3]
        raise error

    with pytest.raises(type(error)):
        store.write(tmp_path / "a.h5", make_header(), blocks())
    assert list(tmp_path.iterdir()) == []


FILL = """
import resource, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_store import StorageError, make_header, store
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.write(Path(sys.argv[1]), make_header(), iter([(np.arange(6), np.ones((6, 20_000), np.float32))]))
except StorageError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path):
    """A limit on the file's size stands in for the full disk: the write fails in the same place."""
    command = [sys.executable, "-c", FILL, str(tmp_path / "a.h5"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("cannot write"), done.stdout + done.stderr
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write(tmp_path / "file" / "a.h5")


def test_entries_are_readable_files_and_errors_name_the_others(tmp_path):
    write(tmp_path / "a.h5")
    (tmp_path / "b.h5").write_text("rubbish")
    good, bad = store.entries(tmp_path)
    assert [(entry.path.name, entry.rows, entry.width, entry.invalid) for entry in good] == [
        ("a.h5", 6, 5, 0)
    ]
    assert [str(tmp_path / "b.h5") in str(error) for error in bad] == [True]


def test_features_are_found_by_content_in_files_of_the_same_network_only(tmp_path):
    write(tmp_path / "a.h5")
    keys = (make_header().keys[4], "f" * 64)
    found = store.locate(tmp_path, replace(RECIPE, images="others"), keys)
    assert found == {keys[0]: (tmp_path / "a.h5", 4)}
    np.testing.assert_array_equal(store.read_rows([found[keys[0]]] * 2), vectors()[[4, 4]])
    assert store.locate(tmp_path, replace(RECIPE, weights="others"), keys) == {}


def test_files_are_opened_once_for_many_rows(tmp_path, monkeypatch):
    """To open one reads and checks the names of all of its images."""
    files = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for path in files:
        write(path)
    opened, open_file = [], store.open_file
    monkeypatch.setattr(store, "open_file", lambda path, *_: opened.append(path) or open_file(path))
    with store.open_places() as read:
        for row in range(6):
            np.testing.assert_array_equal(
                read([(files[0], row), (files[1], 5 - row)]), vectors()[[row, 5 - row]]
            )
    assert opened == files


def test_rows_are_read_in_the_requested_order(tmp_path):
    write(tmp_path / "a.h5")
    write(tmp_path / "b.h5", [(np.arange(6), -vectors())])
    places = [(tmp_path / "b.h5", 5), (tmp_path / "a.h5", 3), (tmp_path / "b.h5", 0)]
    np.testing.assert_array_equal(
        store.read_rows(places), [-vectors()[5], vectors()[3], -vectors()[0]]
    )
