"""The catalogue of a cache folder: files are not opened to learn what they are."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import threading
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest

from featkit.embeddings import store
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.store import Header, entries, locate

RECIPE = Recipe(*["x"] * 8, {"resize": 32, "crop": [32, 32]}, "fp32")
REQUEST = {"data": "x", "backbone": "resnet18"}


def write(cache, name, number=0, recipe=RECIPE):
    """Write a cache file of two images."""
    from featkit.embeddings.validation import images_digest, labels_digest

    ids, keys = ("a", "b"), (f"{number:064x}", f"{number + 1:064x}")
    labels = np.array([0, 1])
    recipe = replace(
        recipe,
        images=images_digest(ids, keys),
        labels=labels_digest(("p", "q"), labels),
        split="none",
        layer=f"{name}",
    )
    header = Header(
        recipe, ids, keys, labels, np.array(["train", "test"]), ("p", "q"),
        {"data": "x", "request": REQUEST, "weights": "w"},
    )  # fmt: skip
    path = cache / f"{name}-{recipe.fingerprint[:12]}.h5"
    features = np.full((2, 3), number, np.float32)
    store.write(path, header, iter([(np.array([0, 1]), features)]))
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of ten files that are old enough."""
    now = time.time_ns
    monkeypatch.setattr("featkit.embeddings.remembered.time.time_ns", lambda: now() + 3600 * 10**9)
    folder = tmp_path / "cache"
    for number in range(10):
        write(folder, f"file{number}", 10 * number)
    return folder


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that are opened to describe them."""
    names = []
    describe = store.describe

    def noted(path):
        names.append(path.name)
        return describe(path)

    monkeypatch.setattr(store, "describe", noted)
    return names


def warnings_in(caplog):
    return [each.message for each in caplog.records if each.levelno == logging.WARNING]


def test_files_that_did_not_change_are_not_opened(cache, opened):
    first = entries(cache)
    assert len(opened) == 10
    opened.clear()
    assert entries(cache) == first
    assert opened == []


def test_a_moved_folder_keeps_its_catalogue(cache, opened, tmp_path):
    entries(cache)
    cache.rename(tmp_path / "moved")
    opened.clear()
    good, _ = entries(tmp_path / "moved")
    assert opened == []
    assert {entry.path.parent for entry in good} == {tmp_path / "moved"}


def test_new_changed_and_removed_files_are_noticed(cache, opened):
    entries(cache)
    files = sorted(cache.glob("*.h5"))
    files[0].unlink()
    shutil.copy(files[1], files[2])  # in the place of another
    added = write(cache, "new", 500)
    opened.clear()
    good, bad = entries(cache)
    assert sorted(opened) == sorted([files[2].name, added.name])
    assert (len(good), bad) == (10, [])
    by_path = {entry.path: entry.recipe.layer for entry in good}
    assert by_path[files[2]] == by_path[files[1]] == "file1"
    opened.clear()
    assert len(entries(cache)[0]) == 10
    assert opened == []


def test_damaged_files_are_opened_each_time_and_reported(cache, opened):
    entries(cache)
    path = sorted(cache.glob("*.h5"))[3]
    path.write_bytes(path.read_bytes()[:100])
    for _ in range(2):
        opened.clear()
        good, bad = entries(cache)
        assert (len(good), len(bad)) == (9, 1)
        assert path.name in str(bad[0])
        assert opened == [path.name]


DAMAGES = {
    "cut": lambda data: data[:-5],
    "changed": lambda data: data.replace(b"fp32", b"bf16"),
    "empty": lambda data: b"",
    "list": lambda data: b"[1]\n{}",
    "bytes": lambda data: b"\xff\xfe" + data,
    "version": lambda data: data.replace(b'"version": 1', b'"version": 99'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_catalogue_that_cannot_be_used_is_made_again(damage, cache, opened, caplog):
    expected = entries(cache)
    path = cache / ".catalogue.json"
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    opened.clear()
    assert entries(cache) == expected
    assert len(opened) == 10
    (message,) = warnings_in(caplog)
    reason = "is of another version" if damage == "version" else "is damaged"
    assert f"{reason}: all cache files are opened again" in message
    assert path.read_bytes() == whole


def test_entries_of_another_form_are_read_again(cache, opened):
    expected = entries(cache)
    path = cache / ".catalogue.json"
    known = json.loads(path.read_bytes().partition(b"\n")[2])
    for place, (name, values) in enumerate(sorted(known.items())):
        known[name] = [*values[:4], *([[1]], [None, {}, {}], [{}, {"a": 1}, {}])[place % 3]]
    path.write_bytes(store.Catalogue(cache)._remembered.content(known))
    opened.clear()
    assert entries(cache) == expected
    assert len(opened) == 10


def test_features_are_not_taken_from_a_file_that_is_not_the_described_one(cache, caplog):
    """Whoever replaces a file and restores its status: the recipe is checked when it is read."""
    good, _ = entries(cache)
    recipe, path = good[0].recipe, good[0].path
    keys = store.read_header(path).keys
    assert set(locate(cache, recipe, keys)) == set(keys)
    catalogue = cache / ".catalogue.json"
    known = json.loads(catalogue.read_bytes().partition(b"\n")[2])
    for name, values in known.items():
        values[5]["layer"] = recipe.layer if name != path.name else "other"
    catalogue.write_bytes(store.Catalogue(cache)._remembered.content(known))
    assert locate(cache, recipe, keys) == {}
    assert all("its features are computed again" in text for text in warnings_in(caplog))


def test_a_folder_of_few_files_has_no_catalogue(cache, opened):
    for path in sorted(cache.glob("*.h5"))[:3]:
        path.unlink()
    assert len(entries(cache)[0]) == 7
    assert not (cache / ".catalogue.json").exists()


def test_young_files_are_opened_again(tmp_path, opened):
    for number in range(9):
        write(tmp_path, f"file{number}")
    entries(tmp_path)
    assert not (tmp_path / ".catalogue.json").exists()


def test_a_catalogue_that_cannot_be_written_is_no_error(cache, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("featkit.embeddings.remembered.write_file", full)
    assert len(entries(cache)[0]) == 10
    assert warnings_in(caplog) == []


def test_descriptions_of_removed_files_do_not_pile_up(cache, monkeypatch):
    monkeypatch.setattr("featkit.embeddings.store._MOST_OTHERS", 1)
    entries(cache)
    for path in sorted(cache.glob("*.h5"))[:8]:
        path.unlink()
    write(cache, "new", 500)
    entries(cache)
    known = json.loads((cache / ".catalogue.json").read_bytes().partition(b"\n")[2])
    assert len(known) == 3


def test_threads_and_processes_may_write_at_the_same_time(cache, caplog):
    expected = entries(cache)
    catalogue = cache / ".catalogue.json"

    def make_again():
        catalogue.unlink(missing_ok=True)
        assert entries(cache) == expected

    threads = [threading.Thread(target=make_again) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entries(cache) == expected
    assert warnings_in(caplog) == []


@pytest.mark.slow
def test_processes_that_are_killed_leave_a_catalogue_that_can_be_used(cache, caplog):
    expected = entries(cache)
    context = multiprocessing.get_context("spawn")
    for delay in (0.0, 0.02, 0.05):
        ready = context.Event()
        processes = [context.Process(target=rewrite, args=(cache, ready)) for _ in range(2)]
        for process in processes:
            process.start()
        ready.wait(60)
        time.sleep(delay)
        for process in processes:
            process.kill()
            process.join()
        assert entries(cache) == expected
    assert warnings_in(caplog) == []


def rewrite(cache, ready):
    """Write the catalogue again and again."""
    os.environ["OMP_NUM_THREADS"] = "1"
    known = store.Catalogue(cache)._remembered
    while True:
        for name, values in known._known.items():
            known._new[name] = values
        known.save()
        ready.set()


def test_a_virtual_file_is_checked_each_time(cache, opened):
    """Whether its shards are there is not seen in its own status; see test_shards for its checks."""
    path = sorted(cache.glob("*.h5"))[0]
    with h5py.File(path, "r+") as file:
        provenance = {**json.loads(file.attrs["provenance"]), "shards": 3}
        file.attrs["provenance"] = json.dumps(provenance)
        del file.attrs["seal"]
    for _ in range(2):
        opened.clear()
        assert len(entries(cache)[0]) == 10
        assert path.name in opened
    assert opened == [path.name]
