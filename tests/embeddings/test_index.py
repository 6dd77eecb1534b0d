"""The index of image files."""

import json
import logging
import os
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featkit.images.files as files_module
from featkit.embeddings.embedder import ImageEmbedder
from featkit.embeddings.extract import Extractor, run_extractions
from featkit.embeddings.index import FileIndex, indexed
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys
from featkit.embeddings.request import Request
from featkit.images.files import images_from_files

COMPUTE = Compute(device="cpu", workers=2)
OLD = time.time() - 3600


@pytest.fixture
def pictures(tmp_path):
    """Six image files that are an hour old; the time of their status is now."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        os.utime(folder / f"{number}.png", (OLD, OLD))
    return sorted(folder.iterdir())


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def later(monkeypatch):
    """Let the index be made an hour from now: the files were only just written."""
    now = time.time_ns
    monkeypatch.setattr("featkit.embeddings.remembered.time.time_ns", lambda: now() + 3600 * 10**9)
    return now


@pytest.fixture
def read_files(monkeypatch):
    """Count how often each file is read for its digest."""
    counts = Counter()
    last = threading.local()
    read, edge = files_module.read_bytes, files_module.jpeg_edge

    def read_and_remember(path):
        last.name = Path(path).name
        return read(path)

    def counted(data):
        """Count a file whose content is looked at, not one that is decoded."""
        counts[last.name] += 1
        return edge(data)

    monkeypatch.setattr(files_module, "read_bytes", read_and_remember)
    monkeypatch.setattr(files_module, "jpeg_edge", counted)
    return counts


def keys_of(pictures, cache, **options):
    with indexed(images_from_files(pictures), cache, **options) as images:
        return content_keys(images, COMPUTE)


def index_of(cache):
    (path,) = cache.glob(".*.index.json")
    return path


def warnings_in(caplog):
    return [each.message for each in caplog.records if each.levelno == logging.WARNING]


def test_files_that_did_not_change_are_not_read_again(pictures, cache, read_files):
    first = keys_of(pictures, cache)
    assert first == content_keys(images_from_files(pictures), Compute())
    read_files.clear()
    assert keys_of(pictures, cache) == first
    assert not read_files


def replace_content(path):
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, (OLD, OLD))


def replace_file(path):
    """As editors save: another inode of the same size and time."""
    new = path.with_suffix(".new")
    new.write_bytes(path.read_bytes()[::-1])
    os.utime(new, (OLD, OLD))
    new.replace(path)


def append(path):
    path.write_bytes(path.read_bytes() + b"x")


def touch(path):
    os.utime(path, (OLD + 1, OLD + 1))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no times of status changes")
@pytest.mark.parametrize("change", [replace_content, replace_file, append, touch])
def test_a_file_that_changed_is_read_again(change, pictures, cache, read_files):
    keys_of(pictures, cache)
    read_files.clear()
    change(pictures[2])
    found = keys_of(pictures, cache)
    assert read_files == {"2.png": 1}
    assert found == content_keys(images_from_files(pictures), Compute())


def test_young_files_get_no_entry(pictures, cache, read_files, monkeypatch, later):
    now = later()
    monkeypatch.setattr("featkit.embeddings.remembered.time.time_ns", lambda: now)
    keys_of(pictures, cache)  # they are an hour old, but their status has just changed
    assert not list(cache.iterdir())
    monkeypatch.setattr("featkit.embeddings.remembered.time.time_ns", lambda: now + 3 * 10**9)
    keys_of(pictures, cache)
    read_files.clear()
    keys_of(pictures, cache)
    assert not read_files


def test_rehash_reads_every_file_and_corrects_the_index(pictures, cache, read_files, caplog):
    keys_of(pictures, cache)
    path = index_of(cache)
    tamper(path, lambda known: known[str(pictures[3])].__setitem__(4, "0" * 64))
    assert keys_of(pictures, cache)[3] == "0" * 64
    read_files.clear()
    found = keys_of(pictures, cache, rehash=True)
    assert len(read_files) == 6
    assert found == content_keys(images_from_files(pictures), Compute())
    assert keys_of(pictures, cache) == found
    (message,) = warnings_in(caplog)
    assert "1 images were changed without their time stamps, such as" in message
    assert "3.png" in message


def tamper(path, change):
    """Change the entries of an index as featkit would write them."""
    known = json.loads(path.read_bytes().partition(b"\n")[2])
    change(known)
    path.write_bytes(FileIndex(path)._remembered.content(known))


DAMAGES = {
    "cut": lambda data: data[:-5],
    "changed": lambda data: data.replace(b".png", b".jpg"),
    "empty": lambda data: b"",
    "list": lambda data: b"[1]\n{}",
    "bytes": lambda data: b"\xff\xfe" + data,
    "version": lambda data: data.replace(b'"version": 2', b'"version": 99'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_index_that_cannot_be_used_is_made_again(damage, pictures, cache, read_files, caplog):
    expected = keys_of(pictures, cache)
    path = index_of(cache)
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    read_files.clear()
    assert keys_of(pictures, cache) == expected
    assert len(read_files) == 6
    (message,) = warnings_in(caplog)
    reason = "is of another version" if damage == "version" else "is damaged"
    assert f"{reason}: all images are read again" in message
    assert path.read_bytes() == whole


def test_an_index_that_cannot_be_written_is_a_warning(pictures, cache, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("featkit.embeddings.remembered.write_file", full)
    assert len(keys_of(pictures, cache)) == 6
    assert "cannot be written" in warnings_in(caplog)[0]


def test_entries_of_other_files_are_kept_unless_they_are_many(
    pictures, cache, read_files, monkeypatch
):
    keys_of(pictures, cache)
    touch(pictures[0])
    keys_of(pictures[:2], cache)
    read_files.clear()
    keys_of(pictures, cache)
    assert not read_files
    monkeypatch.setattr("featkit.embeddings.index._MOST_OTHERS", 0)
    append(pictures[0])
    keys_of(pictures[:2], cache)
    read_files.clear()
    keys_of(pictures, cache)
    assert sorted(read_files) == ["2.png", "3.png", "4.png", "5.png"]


def test_missing_files_raise_the_same_error_as_without_index(pictures, cache):
    keys_of(pictures, cache)
    pictures[1].unlink()
    with pytest.raises(files_module.DecodeError, match=r"1\.png cannot be read"):
        keys_of(pictures, cache)


def test_images_that_are_not_files_have_no_index(colours, cache):
    assert FileIndex.of(colours(), cache) is None
    with indexed(colours(), cache) as images:
        assert len(content_keys(images, COMPUTE)) == 12
    assert not list(cache.iterdir())


def test_an_intensity_range_has_an_index_of_its_own(pictures, cache):
    from featkit.images.intensity import IntensityRange

    keys_of(pictures, cache)
    images = images_from_files(pictures, IntensityRange.parse("0:100"))
    with indexed(images, cache) as found:
        assert content_keys(found, COMPUTE) == content_keys(images, COMPUTE)
    assert len(list(cache.glob(".*.index.json"))) == 2


@pytest.fixture
def request_for(photos):
    for path in photos.rglob("*.*"):
        os.utime(path, (OLD, OLD))
    return Request(data=str(photos), backbone="resnet18", weights="random", resize="32", crop="32")


@pytest.mark.slow
def test_extraction_and_embedder_use_the_index(request_for, tmp_path, read_files):
    cache = tmp_path / "new"
    first = Extractor(cache, COMPUTE).extract([request_for])
    assert read_files
    read_files.clear()
    again = Extractor(cache, COMPUTE).extract([request_for])
    assert (again[0].hit, again[0].path) == (True, first[0].path)
    assert not read_files
    # Shards, perturbed images and views get their keys from those of the files.
    Extractor(cache, COMPUTE).extract(
        [Request.from_dict({**request_for.to_dict(), "augment": "basic"})]
    )
    assert not read_files
    (hit,) = run_extractions([request_for], request_for.load_images(), cache, COMPUTE)
    assert hit.hit
    assert not read_files
    rehash = Compute(device="cpu", rehash=True)
    assert Extractor(cache, rehash).extract([request_for])[0].hit
    assert read_files
    images = request_for.load_images()
    embedder = ImageEmbedder("resnet18", weights="random", resize="32", crop="32", cache=cache)
    embedder.transform(list(images.files[:2]))
    read_files.clear()
    embedder.transform(list(images.files[:2]))
    assert not read_files


def test_nothing_is_written_if_nothing_can_be_extracted(request_for, tmp_path):
    bad = Request.from_dict({**request_for.to_dict(), "weights": "missing.pth"})
    with pytest.raises(Exception, match=r"missing\.pth"):
        Extractor(tmp_path / "new", COMPUTE).extract([bad])
    assert not (tmp_path / "new").exists()
