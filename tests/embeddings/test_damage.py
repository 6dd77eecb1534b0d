"""A damaged cache file is refused: no bit of it can change what is read without an error."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featkit.embeddings import store
from featkit.errors import CacheError, FeatkitError
from tests.embeddings.test_store import make_header

N, WIDTH = 24, 32
UNREADABLE = 5
PROVENANCE = {
    "data": "digits",
    "weights": "random:0",
    "request": {"data": "digits", "seed": 0, "limit": "train=20,test=10"},
}


def write_file(path: Path) -> np.ndarray:
    """Write a cache file with one unreadable image; return the features of the others."""
    header = make_header(N, PROVENANCE)
    x = np.random.default_rng(0).standard_normal((N, WIDTH), dtype=np.float32)
    rows = np.delete(np.arange(N), UNREADABLE)
    store.write(path, header, iter([(rows, x[rows])]))
    return x


def everything(path: Path) -> tuple[Any, ...]:
    """Return all that the functions of ``store`` read from a file."""
    embeddings, header, entry = store.read(path), store.read_header(path), store.describe(path)
    return (
        embeddings.x.tobytes(),
        embeddings.y.tolist(),
        embeddings.ids,
        embeddings.classes,
        embeddings.splits.tolist(),
        embeddings.recipe,
        header.ids,
        header.keys,
        header.labels.tolist(),
        header.splits.tolist(),
        entry.provenance,
        (entry.rows, entry.width, entry.invalid, entry.rounding),
    )


def reusable(folder: Path) -> dict[str, bytes]:
    """Return the features that another extraction would reuse from a folder, by key."""
    header = make_header(N)
    places = store.locate(folder, header.recipe, header.keys)
    features = store.read_rows(list(places.values())) if places else []
    return {key: row.tobytes() for key, row in zip(places, features, strict=True)}


def silent_flips(path: Path, content: bytes, flips: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the flips of one bit that change what is read, or reused, without an error."""
    path.write_bytes(content)
    before, reused = everything(path), reusable(path.parent)
    assert len(reused) == N - 1
    silent = []
    for position, bit in flips:
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        path.unlink()
        path.write_bytes(changed)
        try:
            same = everything(path) == before
        except FeatkitError:
            same = True
        with suppress(FeatkitError):
            same &= reusable(path.parent).items() <= reused.items()
        if not same:
            silent.append((position, bit))
    return silent


@pytest.mark.parametrize(
    "count", [40, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.long])]
)
def test_no_flipped_bit_changes_what_is_read_without_an_error(count, tmp_path):
    path = tmp_path / "a.h5"
    write_file(path)
    content = path.read_bytes()
    rng = random.Random(count)
    flips = [(rng.randrange(len(content)), rng.randrange(8)) for _ in range(count)]
    assert silent_flips(path, content, flips) == []


@pytest.mark.parametrize(
    "count", [15, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.long])]
)
def test_no_flipped_bit_of_an_old_file_changes_its_features_or_labels(count, tmp_path):
    """Files of version 0.2.0 have no digest of their provenance, which is left out here."""
    path = tmp_path / f"digits-{make_header(N).recipe.fingerprint[:12]}.h5"
    write_file(path)
    make_old(path)
    content = path.read_bytes()
    provenance = content.index(b'{"data": "digits"')
    left_out = range(provenance, provenance + 200)
    rng = random.Random(count)
    places = [place for place in range(len(content)) if place not in left_out]
    flips = [(rng.choice(places), rng.randrange(8)) for _ in range(count)]
    assert silent_flips(path, content, flips) == []


def make_old(path: Path) -> None:
    """Remove what files of version 0.2.0 did not have."""
    with h5py.File(path, "r+") as file:
        del file.attrs["seal"], file.attrs["columns"]


def test_an_old_file_is_read(tmp_path):
    path = tmp_path / "a.h5"
    write_file(path)
    before = everything(path)
    make_old(path)
    assert everything(path) == before


def exchange(name: str, first: int, second: int) -> Callable[[Any], None]:
    """Return a function that exchanges two values of a column."""

    def change(file: Any) -> None:
        values = file[name][:]
        values[[first, second]] = values[[second, first]]
        file[name][:] = values

    return change


def set_attribute(name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file.attrs[name] = value

    return change


def set_value(name: str, row: int, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file[name][row] = value

    return change


CHANGES = {
    "two labels exchanged": exchange("labels", 0, 1),
    "two ids exchanged": exchange("ids", 0, 1),
    "two keys exchanged": exchange("keys", 0, 1),
    "two splits exchanged": exchange("splits", 0, N - 1),
    "two rows exchanged": exchange("embeddings", 0, 1),
    "two checksums exchanged": exchange("checksums", 0, 1),
    "a readable image marked as unreadable": set_value("valid", 0, False),
    "an unreadable image marked as readable": set_value("valid", UNREADABLE, True),
    "features of an unreadable image": set_value("embeddings", UNREADABLE, 1.0),
    "classes exchanged": set_attribute("classes", '["yes, é", "no"]'),
    "another class": set_attribute("classes", '["no", "yes, é", "maybe"]'),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_values_are_refused(change, old, tmp_path):
    path = tmp_path / "a.h5"
    write_file(path)
    if old:
        make_old(path)
    with h5py.File(path, "r+") as file:
        CHANGES[change](file)
    with pytest.raises(CacheError, match="damaged or not an embeddings file"):
        store.read(path)


@pytest.mark.parametrize("attribute", ["recipe", "provenance", "rounding", "columns", "seal"])
def test_a_changed_attribute_is_refused_wherever_the_file_is_described(attribute, tmp_path):
    path = tmp_path / "a.h5"
    write_file(path)
    with h5py.File(path, "r+") as file:
        value = file.attrs[attribute]
        is_text = isinstance(value, str)
        file.attrs[attribute] = value.replace("0", "1", 1) if is_text else value + 1.0
    good, bad = store.entries(tmp_path)
    assert (len(good), len(bad)) == (0, 1)
    with pytest.raises(CacheError, match="attributes do not match their digest"):
        store.describe(path)


def test_a_damaged_row_is_not_reused_and_the_file_is_named(tmp_path, caplog):
    """It must not get a new checksum in another file."""
    path = tmp_path / "a.h5"
    x = write_file(path)
    with h5py.File(path, "r+") as file:
        file["embeddings"][3, 7] += 1
    header = make_header(N)
    with caplog.at_level(logging.WARNING, "featkit"):
        places = store.locate(tmp_path, header.recipe, header.keys)
    assert header.keys[3] not in places
    assert len(places) == N - 2
    assert "a.h5: the features of 1 images are damaged" in caplog.text
    np.testing.assert_array_equal(store.read_rows([places[header.keys[4]]]), x[[4]])
    with pytest.raises(CacheError, match=r"features of 1 images, ü 3\.png the first, are damaged"):
        store.read_rows([(path, 3)])


def test_rows_that_a_training_reads_are_checked(tmp_path):
    path = tmp_path / "a.h5"
    x = write_file(path)
    with h5py.File(path, "r+") as file:
        file["embeddings"][3, 7] += 1
    with store.open_rows(path) as read:
        np.testing.assert_array_equal(read(np.array([4, 2, 4])), x[[4, 2, 4]])
        with pytest.raises(CacheError, match="are damaged"):
            read(np.array([4, 3]))


def test_features_that_are_not_finite_are_refused_in_files_of_earlier_versions(tmp_path):
    x = np.ones((N, WIDTH), np.float32)
    x[2, 3] = np.inf
    store.write(tmp_path / "a.h5", make_header(N), iter([(np.arange(N), x)]))
    with pytest.raises(CacheError, match="are damaged"):
        store.read(tmp_path / "a.h5")
    header = make_header(N)
    assert header.keys[2] not in store.locate(tmp_path, header.recipe, header.keys)


def test_a_file_under_the_name_of_another_recipe_is_not_called_stale(tmp_path):
    """Extracting again would find the same file again."""
    write_file(tmp_path / "x.h5")
    other = make_header(N + 1).recipe
    path = tmp_path / f"digits-{other.fingerprint[:12]}.h5"
    (tmp_path / "x.h5").rename(path)
    with pytest.raises(CacheError, match="its name does not match its recipe"):
        store.check(path, other)
