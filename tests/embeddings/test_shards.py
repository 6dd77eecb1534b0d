"""Shards of an extraction, merged in any order, are the file that one machine makes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from featkit.cli import main
from featkit.embeddings import shards, store
from featkit.embeddings.extract import Extractor
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.embeddings.shards import (
    Shard,
    extract_shard,
    find_shards,
    merge_shards,
    parts_of,
    remove_shards,
)
from featkit.embeddings.verify import verify
from featkit.errors import CacheError, FeatkitError, SpecError

ONE_BY_ONE = Compute(batch_size=1, workers=1)
OPTIONS = {"backbone": "resnet18", "weights": "random", "resize": "32", "crop": "32"}


def request_of(photos, **options):
    return Request(data=str(photos), **{**OPTIONS, **options}).for_device("cpu")


def extract_whole(request, cache, compute=ONE_BY_ONE):
    return Extractor(cache, compute).extract(request.file_requests())[-1].path


def extract_all(request, count, cache, compute=ONE_BY_ONE, job=""):
    """Extract all shards of the last file of a request; return their paths."""
    paths = []
    for number in range(1, count + 1):
        found = extract_shard(
            request.file_requests()[-1:], Shard(number, count), cache, compute, job=job
        )
        paths += [result.path for result in found if result]
    return paths


def contents(path):
    """Return everything in a file that decides its fingerprint or is a feature."""
    with store.open_file(path) as file:
        columns = file.columns
        features, intact = file.read_intact(slice(None))
        return {
            "recipe": file.recipe.to_json(),
            "classes": file.classes,
            "features": features.tobytes(),
            "intact": intact.all(),
            "ids": columns["ids"],
            "keys": columns["keys"],
            **{name: columns[name].tolist() for name in ("labels", "splits", "valid", "checksums")},
        }


def copy_whole_to(whole, cache):
    """Put a finished file where shards find its features, so that no network runs."""
    cache.mkdir()
    (cache / whole.name).write_bytes(whole.read_bytes())


@pytest.mark.parametrize(
    ("count", "virtual"), [(1, False), (3, False), (3, True), (50, False), (50, True)]
)
def test_merged_shards_equal_the_whole_extraction(tmp_path, photos, count, virtual):
    request = request_of(photos)
    whole = extract_whole(request, tmp_path / "whole")
    copy_whole_to(whole, tmp_path / "cache")
    paths = extract_all(request, count, tmp_path / "cache", job=str(tmp_path))
    (tmp_path / "cache" / whole.name).unlink()
    random.Random(count).shuffle(paths)
    merged = merge_shards(paths, tmp_path / "cache", virtual=virtual)
    assert not merged.hit
    assert merged.path.name == whole.name
    assert contents(merged.path) == contents(whole)
    assert verify(merged.path, Compute()) == []
    if not virtual:
        remove_shards(merged.shards)
        assert not list((tmp_path / "cache").glob("shards/*"))
        assert merge_is_a_hit(request, tmp_path / "cache")


def merge_is_a_hit(request, cache):
    result = Extractor(cache, ONE_BY_ONE).extract([request])[0]
    return result.hit and result.embedded == 0


@pytest.mark.parametrize(
    "options", [{"augment": "basic", "views": 2}, {"perturb": "fog:level=mild"}]
)
def test_views_and_perturbed_images_are_cut_too(tmp_path, photos, options):
    request = request_of(photos, **options)
    whole = extract_whole(request, tmp_path / "whole")
    paths = extract_all(request, 3, tmp_path / "cache")
    merged = merge_shards(paths, tmp_path / "cache")
    assert contents(merged.path) == contents(whole)


def test_features_of_other_batches_differ_by_rounding_only(tmp_path, photos):
    request = request_of(photos)
    whole = store.read(extract_whole(request, tmp_path / "whole", Compute(workers=1)))
    paths = extract_all(request, 4, tmp_path / "cache", Compute(workers=1))
    merged = store.read(merge_shards(paths, tmp_path / "cache").path)
    scale = np.abs(whole.x).max()
    np.testing.assert_allclose(merged.x / scale, whole.x / scale, rtol=0, atol=1e-6)


def test_float16_and_compression_are_kept(tmp_path, photos):
    request = request_of(photos, store="float16,gzip")
    whole = extract_whole(request, tmp_path / "whole")
    merged = merge_shards(extract_all(request, 3, tmp_path / "cache"), tmp_path / "cache")
    assert contents(merged.path) == contents(whole)
    with h5py.File(merged.path) as file:
        assert file["embeddings"].compression == "gzip"
    # Relative to the largest number of each written block, which other blocks have others of.
    assert store.describe(merged.path).rounding == pytest.approx(2**-12, rel=1)


def test_unreadable_images_are_recorded(tmp_path, photos):
    (photos / "red" / "3.png").write_bytes(b"no image")
    request = request_of(photos)
    skip = replace(ONE_BY_ONE, on_error="skip")
    whole = extract_whole(request, tmp_path / "whole", skip)
    merged = merge_shards(extract_all(request, 2, tmp_path / "cache", skip), tmp_path / "cache")
    assert merged.invalid == 1
    assert contents(merged.path) == contents(whole)


@given(st.lists(st.text(), unique=True, max_size=30), st.integers(1, 50), st.integers(0, 30))
def test_an_image_stays_in_its_part_when_others_are_added(names, count, kept):
    parts = parts_of(names, count)
    assert all(0 <= part < count for part in parts)
    np.testing.assert_array_equal(parts_of(names[:kept], count), parts[:kept])


def test_parts_are_of_similar_size():
    sizes = np.bincount(parts_of(map(str, range(20_000)), 20))
    assert sizes.min() > 850
    assert sizes.max() < 1150


def test_views_are_in_the_part_of_their_image():
    assert len(set(parts_of(["a/1.png", "a/1.png#view1", "a/1.png#view12"], 1000).tolist())) == 1


def test_added_images_are_embedded_alone(tmp_path, photos):
    request, cache = request_of(photos), tmp_path / "cache"
    extract_all(request, 2, cache)
    Image.new("RGB", (20, 20), (200, 3, 9)).save(photos / "red" / "new.png")
    results = [extract_shard([request], Shard(n, 2), cache, ONE_BY_ONE)[0] for n in (1, 2)]
    assert sum(result.embedded for result in results) == 1
    assert sum(result.reused for result in results) == 24
    assert len(find_shards(cache)) == 2


def test_a_changed_image_replaces_its_shard(tmp_path, photos):
    request, cache = request_of(photos), tmp_path / "cache"
    before = extract_all(request, 2, cache)
    Image.new("RGB", (20, 20), (200, 3, 9)).save(photos / "red" / "3.png")
    after = extract_all(request, 2, cache)
    assert len({path for path in [*before, *after] if path.exists()}) == 2
    merged = merge_shards(after, cache).path
    assert contents(merged) == contents(extract_whole(request, tmp_path / "whole"))


def test_a_finished_shard_is_a_hit(tmp_path, photos):
    request = request_of(photos)
    first = extract_shard([request], Shard(1, 2), tmp_path, ONE_BY_ONE)[0]
    again = extract_shard([request], Shard(1, 2), tmp_path, ONE_BY_ONE)[0]
    assert not first.hit
    assert again.hit
    assert first.path == again.path


def test_two_writers_of_the_same_shard_write_it_once(tmp_path, photos):
    request, results = request_of(photos), []

    def write():
        results.extend(extract_shard([request], Shard(1, 2), tmp_path, ONE_BY_ONE))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.hit for result in results) == [False, True]
    assert len(list(results[0].path.parent.iterdir())) == 1


@pytest.fixture
def three(tmp_path, photos):
    """Return a request, a cache and its three shards."""
    request, cache = request_of(photos), tmp_path / "cache"
    return request, cache, extract_all(request, 3, cache)


def refused(paths, cache, match, **options):
    with pytest.raises(CacheError, match=match) as caught:
        merge_shards(paths, cache, **options)
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("*.h5"))
    assert not list(cache.glob(".*.partial"))


def test_missing_shards_are_named(three):
    _, cache, paths = three
    refused(paths[:1], cache, r"2 of 3 shards .* missing \(2, 3\): .* --shard 2/3")


def test_no_shards_are_refused(tmp_path):
    refused([], tmp_path, "no shards")


def test_overlapping_cuts_are_refused(three):
    request, cache, paths = three
    refused([*paths, *extract_all(request, 2, cache)], cache, "parts of 2 and of 3")


def test_shards_of_other_images_and_networks_are_refused(three, photos):
    request, cache, paths = three
    other = extract_all(replace(request, weights="random:1"), 3, cache)
    refused([paths[0], *other[1:]], cache, "different extractions .*weights")
    Image.new("RGB", (20, 20)).save(photos / "red" / "new.png")
    more = extract_all(request, 3, cache)
    refused([paths[0], *more[1:]], cache, "different extractions .*images")


def test_two_versions_of_a_shard_are_refused(three, photos, tmp_path):
    request, cache, paths = three
    kept = tmp_path / "kept.h5"
    kept.write_bytes(paths[0].read_bytes())
    for name in ("blue", "green", "red"):
        for number in range(8):
            Image.new("RGB", (20, 20), (number, 3, 9)).save(photos / name / f"{number}.png")
    refused([kept, *extract_all(request, 3, cache)], cache, "both shard 1/3")


def test_the_same_shard_twice_is_used_once(three, tmp_path):
    request, cache, paths = three
    copy = tmp_path / "copy.h5"
    copy.write_bytes(paths[0].read_bytes())
    merged = merge_shards([copy, *paths], cache)
    assert contents(merged.path) == contents(extract_whole(request, tmp_path / "whole"))


def test_files_that_are_no_shards_are_refused(three, tmp_path):
    request, cache, paths = three
    whole = extract_whole(request, tmp_path / "whole")
    refused([*paths, whole], cache, "is not a shard")
    (tmp_path / "text.h5").write_text("text")
    refused([*paths, tmp_path / "text.h5"], cache, "not an embeddings file")
    refused([*paths, tmp_path / "absent.h5"], cache, "not found")


def problem_of(paths, cache):
    """Return the error of merging shards, an empty text if there is none."""
    try:
        merge_shards(paths, cache)
    except FeatkitError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("flips", [8, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.long])])
def test_every_damaged_byte_is_noticed(three, flips):
    """A flipped byte gives an error or, where HDF5 keeps no data, the same file."""
    _, cache, paths = three
    expected = contents(merge_shards(paths, cache).path)
    (merged,) = cache.glob("*.h5")
    original, noticed = paths[1].read_bytes(), 0
    places = random.Random(0).sample(range(len(original)), flips)
    for place in places:
        merged.unlink()
        damaged = bytearray(original)
        damaged[place] ^= 1 << place % 8
        paths[1].write_bytes(damaged)
        problem = problem_of(paths, cache)
        if problem:
            noticed += 1
            assert "\n" not in problem
            paths[1].write_bytes(original)
        merged = merge_shards(paths, cache).path
        assert contents(merged) == expected
        paths[1].write_bytes(original)
    assert noticed > flips / 3


def test_positions_that_overlap_or_are_exchanged_are_noticed(three):
    _, cache, paths = three
    with h5py.File(paths[0], "r+") as file:
        file["positions"][0] = file["positions"][0] + 1
    refused(paths, cache, "overlaps|order|not increasing")


def test_a_virtual_file_notices_what_happens_to_its_shards(three):
    _, cache, paths = three
    merged = merge_shards(paths, cache, virtual=True).path
    assert merged.stat().st_size < sum(path.stat().st_size for path in paths)
    rows = np.array([20, 3, 7])
    with store.open_file(merged) as file, store.open_rows(merged) as read:
        np.testing.assert_array_equal(read(rows), file.read_rows(slice(None))[rows])
    whole = paths[2].read_bytes()
    paths[2].unlink()
    with pytest.raises(CacheError, match=r"shard .* is missing"):
        store.read(merged)
    features = store.read(paths[0]).x[0].tobytes()
    content = bytearray(paths[0].read_bytes())
    content[content.index(features)] ^= 1
    paths[2].write_bytes(whole)
    paths[0].write_bytes(content)
    with pytest.raises(CacheError, match="damaged"):
        store.read(merged)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.h5", "shards/../../secret.h5"])
def test_a_virtual_file_cannot_read_other_files(three, name):
    _, cache, paths = three
    merged = merge_shards(paths, cache, virtual=True).path
    with h5py.File(merged, "r+") as file:
        rows, width = file["embeddings"].shape
        del file["embeddings"]
        layout = h5py.VirtualLayout((rows, width), "f4")
        layout[:] = h5py.VirtualSource(name, "embeddings", (rows, width))
        file.create_virtual_dataset("embeddings", layout)
    with pytest.raises(CacheError, match="in other files"):
        store.read(merged)


def test_a_virtual_file_needs_its_shards_beside_it(three, tmp_path):
    _, _, paths = three
    refused(paths, tmp_path / "elsewhere", "without --virtual", virtual=True)


def test_int8_must_be_calibrated_first(tmp_path, photos):
    with pytest.raises(SpecError, match="featkit quantize"):
        extract_shard([request_of(photos, precision="int8")], Shard(1, 2), tmp_path, ONE_BY_ONE)


@pytest.mark.parametrize("text", ["", "0/3", "4/3", "1", "1/0", "-1/3", "a/b", "1/999999", "1.0/2"])
def test_wrong_shards_are_refused(text):
    with pytest.raises(SpecError, match="17/1000"):
        Shard.parse(text)


def test_memory_of_a_merge_is_bounded(three, monkeypatch, tmp_path):
    """With blocks of two rows the result is the same."""
    request, cache, paths = three
    monkeypatch.setattr(shards, "_COLUMN_ROWS", 2)
    monkeypatch.setattr(shards, "_BLOCK_NUMBERS", 1024)
    merged = merge_shards(paths, cache)
    assert contents(merged.path) == contents(extract_whole(request, tmp_path / "whole"))


def test_command_line(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    extract = ["extract", f"--data={photos}", *options]
    for number in (1, 2):
        result = run(main, [*extract, f"--shard={number}/2"])
        assert result.exit_code == 0, result.output
        assert Path(result.stdout.strip()).exists()
    result = run(main, ["cache", "merge", "--remove"])
    assert result.exit_code == 0, result.output
    assert "24 images from 2 shards" in result.stderr
    result = run(main, extract)
    assert "cache hit" in result.stderr
    result = run(main, ["cache", "merge"])
    assert result.exit_code == 1
    assert "there are no shards" in result.stderr
    result = run(main, [*extract, "--shard=3/2"])
    assert result.exit_code == 1
    result = run(main, [*extract, "--shard=1/2", "--explain"])
    assert result.exit_code == 2


KILLED = """
import sys, os, signal
from featkit.embeddings import journal
from featkit.embeddings.shards import Shard, extract_shard
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
request = Request(data=sys.argv[1], backbone="resnet18", weights="random", resize="32", crop="32")
count, append = 0, journal.Journal.append
def append_and_die(self, keys, features):
    global count
    append(self, keys, features)
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.append = append_and_die
extract_shard([request.for_device("cpu")], Shard(1, 2), __import__("pathlib").Path(sys.argv[2]),
              Compute(batch_size=1, workers=1))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_shard_is_resumed(tmp_path, photos):
    killed = subprocess.run([sys.executable, "-c", KILLED, photos, tmp_path / "cache"], check=False)
    assert killed.returncode == -signal.SIGKILL
    request, cache = request_of(photos), tmp_path / "cache"
    with pytest.raises(CacheError, match="no shards were given"):
        merge_shards([path for group in find_shards(cache) for path in group], cache)
    result = extract_shard([request], Shard(1, 2), cache, ONE_BY_ONE)[0]
    assert result.resumed == 3
    paths = [result.path, *extract_all(request, 2, cache)[1:]]
    merged = merge_shards(paths, cache)
    assert contents(merged.path) == contents(extract_whole(request, tmp_path / "whole"))
    assert not list(cache.glob("shards/*/.*"))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("delay", [0.0, 0.005, 0.02, 0.08])
def test_a_killed_merge_leaves_no_file(three, delay):
    _, cache, paths = three
    process = subprocess.Popen([sys.executable, "-c", MERGE, cache], stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(delay)
    process.kill()
    process.wait()
    process.stdout.close()
    for path in cache.glob("*.h5"):
        assert store.describe(path).rows == 24
    merged = merge_shards(paths, cache)
    assert verify(merged.path, Compute()) == []
    assert not list(cache.glob(".*.partial"))


MERGE = """
import sys
from pathlib import Path
from featkit.embeddings.shards import find_shards, merge_shards
(paths,) = find_shards(Path(sys.argv[1]))
print("ready", flush=True)
merge_shards(paths, Path(sys.argv[1]))
"""
