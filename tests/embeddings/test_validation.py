"""Malformed, foreign and inaccessible cache files give one error, and do not affect other files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from featkit.embeddings import store, validation
from featkit.embeddings.request import Request
from featkit.errors import CacheError
from tests.embeddings.test_store import make_header

N, WIDTH = 6, 5
DATASETS = ("embeddings", *validation.COLUMNS)
ATTRIBUTES = ("recipe", "classes", "provenance", "complete", "columns", "seal", "rounding")


def write_file(path: Path, provenance: dict[str, Any] | None = None, *, old: bool = False) -> None:
    """Write a cache file; an old one has no seal, so that changes are met by the other checks."""
    features = np.random.default_rng(0).standard_normal((N, WIDTH), dtype=np.float32)
    store.write(path, make_header(N, provenance), iter([(np.arange(N), features)]))
    if old:
        with h5py.File(path, "r+") as file:
            del file.attrs["seal"], file.attrs["columns"]


def assert_refused_or_read(path: Path) -> None:
    """Check that no function raises anything but CacheError, and that the folder stays usable."""
    header = make_header(N)
    for read in (store.read, store.read_header, store.describe):
        with suppress(CacheError):
            read(path)
    assert all("\n" not in str(error) for error in store.entries(path.parent)[1])
    names = [entry.path.name for entry in store.entries(path.parent)[0]]
    assert "good.h5" in names
    assert len(store.locate(path.parent, header.recipe, header.keys)) == N


def replace_dataset(name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        if value is not None:
            file[name] = value

    return change


def replace_attribute(name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file.attrs.pop(name, None)
        if value is not None:
            file.attrs[name] = value

    return change


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "request", "seed", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
"""JSON texts, also with NaN and Infinity."""

array_values = arrays.arrays(
    dtype=st.sampled_from(["f4", "f2", "f8", ">f4", "i8", "u4", "u1", "?", "S5", "S64", "c8"]),
    shape=arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=N),
)


@st.composite
def malformed(draw: st.DrawFn) -> Callable[[Any], None]:
    """Return a function that replaces one dataset or attribute of a file."""
    if draw(st.booleans()):
        name = draw(st.sampled_from(DATASETS))
        texts = st.lists(st.text(st.characters(codec="utf-8", min_codepoint=1), max_size=4))
        return replace_dataset(name, draw(st.none() | array_values | texts | st.integers(0, 9)))
    name = draw(st.sampled_from(ATTRIBUTES))
    text = json_values.map(json.dumps) | st.just("[" * 100_000) | st.just("{")
    return replace_attribute(name, draw(st.none() | text | array_values | st.integers(0, 9)))


@pytest.mark.parametrize(
    "examples", [12, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.long])]
)
@pytest.mark.parametrize("old", [False, True])
def test_malformed_files_are_refused_and_others_stay_usable(examples, old, tmp_path):
    write_file(tmp_path / "good.h5")
    write_file(tmp_path / "original", old=old)
    original = (tmp_path / "original").read_bytes()

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(malformed())
    def check(change: Callable[[Any], None]) -> None:
        path = tmp_path / "bad.h5"
        path.unlink(missing_ok=True)
        path.write_bytes(original)
        with h5py.File(path, "r+") as file:
            try:
                change(file)
            except (TypeError, ValueError):  # h5py itself refuses to write it
                return
        assert_refused_or_read(path)

    check()


def link_to(other: Path, kind: str) -> Callable[[Any], None]:
    """Return a function that makes the features come from another place."""

    def change(file: Any) -> None:
        features = file["embeddings"][:]
        del file["embeddings"]
        if kind == "external link":
            file["embeddings"] = h5py.ExternalLink(other.name, "/embeddings")
        elif kind == "soft link":
            file["elsewhere"] = features
            file["embeddings"] = h5py.SoftLink("/elsewhere")
        elif kind == "virtual data set":
            layout = h5py.VirtualLayout(features.shape, features.dtype)
            layout[:] = h5py.VirtualSource(other, "embeddings", features.shape)
            file.create_virtual_dataset("embeddings", layout)
        else:
            raw = other.with_suffix(".raw")
            raw.write_bytes(features.tobytes())
            file.create_dataset(
                "embeddings", features.shape, "f4", external=[(str(raw), 0, features.nbytes)]
            )

    return change


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("external link", "embeddings is a link"),
        ("soft link", "embeddings is a link"),
        ("virtual data set", "the data of embeddings are in other files"),
        ("external storage", "the data of embeddings are in other files"),
    ],
)
def test_features_in_other_files_are_refused(kind, message, tmp_path):
    """The features are the right ones here: they are refused because of where they are."""
    write_file(tmp_path / "good.h5")
    write_file(tmp_path / "bad.h5")
    with h5py.File(tmp_path / "bad.h5", "r+") as file:
        link_to(tmp_path / "good.h5", kind)(file)
    with pytest.raises(CacheError, match=message):
        store.read(tmp_path / "bad.h5")
    assert_refused_or_read(tmp_path / "bad.h5")


def test_a_small_file_that_unpacks_to_many_gigabytes_is_refused_before_it_is_read(tmp_path):
    write_file(tmp_path / "bad.h5")
    with h5py.File(tmp_path / "bad.h5", "r+") as file:
        for name in DATASETS:
            shape = (10**9, WIDTH) if name == "embeddings" else (10**9,)
            dtype = file[name].dtype
            del file[name]
            file.create_dataset(name, shape, dtype, chunks=(1000, *shape[1:]))
    with pytest.raises(CacheError, match=r"but only \d+ bytes"):
        store.read(tmp_path / "bad.h5")


def test_an_unknown_filter_is_refused(tmp_path):
    write_file(tmp_path / "bad.h5")
    with h5py.File(tmp_path / "bad.h5", "r+") as file:
        features = file["embeddings"][:]
        del file["embeddings"]
        file.create_dataset("embeddings", data=features, compression="lzf")
    with pytest.raises(CacheError, match="unknown filter"):
        store.read(tmp_path / "bad.h5")


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "..", ".", "", "a/../b", "a\\..\\..\\b", "C:x", "a\nb", "a\0b"]
)
def test_a_data_name_that_leads_out_of_the_results_folder_is_refused(name, tmp_path):
    write_file(tmp_path / "a.h5", {"data": name, "weights": "w", "request": {"data": ""}})
    with pytest.raises(CacheError, match="the name of the data in its provenance"):
        store.describe(tmp_path / "a.h5")


@pytest.mark.parametrize(
    "request_values",
    [{"seed": "0"}, {"seed": True}, {"views": None}, {"data": 5}, {"backbone": None}, {"part": []}],
)
def test_a_recorded_request_of_wrong_types_is_refused(request_values, tmp_path):
    write_file(tmp_path / "a.h5", {"data": "x", "weights": "w", "request": request_values})
    with pytest.raises(CacheError, match="of the request in its provenance is"):
        store.describe(tmp_path / "a.h5")


def test_the_types_of_requests_are_those_of_the_dataclass():
    hints = get_type_hints(Request)
    expected = {}
    for field in fields(Request):
        hint = hints[field.name]
        expected[field.name] = set(get_args(hint) or (hint,))
    known = {name: set(types) for name, types in validation._REQUEST_TYPES.items()}
    assert known == expected


def test_stray_entries_of_a_cache_folder_do_not_affect_the_others(tmp_path):
    write_file(tmp_path / "good.h5")
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "empty.h5").touch()
    (tmp_path / "text.h5").write_text("rubbish")
    (tmp_path / "dangling.h5").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.h5").symlink_to(tmp_path / "loop.h5")
    os.mkfifo(tmp_path / "fifo.h5")
    good, bad = store.entries(tmp_path)
    assert [entry.path.name for entry in good] == ["good.h5"]
    assert len(bad) == 6
    assert_refused_or_read(tmp_path / "fifo.h5")


HOLD = """
import sys, h5py
with h5py.File(sys.argv[1], "r+"):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_file_that_another_process_writes_is_called_locked(tmp_path):
    path = tmp_path / "a.h5"
    write_file(path)
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(CacheError) as caught:
            store.read(path)
        good, bad = store.entries(tmp_path)
        process.communicate()
    assert f"{path} is locked: process {process.pid}" in str(caught.value)
    assert "rm" not in str(caught.value).split()
    assert (len(good), len(bad)) == (0, 1)
    store.read(path)


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.EAGAIN, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ESTALE]
)
def test_removal_is_not_advised_where_the_system_refuses_access(number, tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    write_file(path)

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(number, "Unable to synchronously open file (errno = ...)")

    monkeypatch.setattr(validation.h5py, "File", fail)
    with pytest.raises(CacheError) as caught:
        store.read(path)
    assert "remove" not in str(caught.value)
    assert "damaged" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_removal_is_not_advised_where_reading_fails_half_way(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    write_file(path)

    def fail(*_args: object) -> None:
        raise OSError(errno.EIO, "file read failed")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
    with pytest.raises(CacheError, match="cannot be read: Input/output error; check the disk"):
        store.read(path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_can_be_read(number, tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    write_file(path)
    open_file = h5py.File

    def fail_to_lock(*args: Any, **options: Any) -> Any:
        if options.get("locking", True):
            raise OSError(number, "unable to lock file")
        return open_file(*args, **options)

    monkeypatch.setattr(validation.h5py, "File", fail_to_lock)
    assert len(store.read(path)) == N


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may read every file")
def test_a_file_without_read_permission_is_not_called_damaged(tmp_path):
    path = tmp_path / "a.h5"
    write_file(path)
    path.chmod(0)
    with pytest.raises(CacheError, match="change its permissions"):
        store.read(path)


def test_a_text_heap_that_hdf5_would_never_finish_reading_is_refused(tmp_path):
    """A free object of length 0 inside a heap: HDF5 2.0 reads it again and again."""
    path = tmp_path / "a.h5"
    write_file(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"GCOL\x01")
    length = int.from_bytes(content[start + 8 : start + 16], "little")
    content[start + 16 : start + length] = bytes(length - 16)
    path.write_bytes(content)
    with pytest.raises(CacheError, match="one of its texts is damaged"):
        store.read(path)
