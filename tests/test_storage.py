"""Files appear whole or not at all, and locks are released when their process dies."""

from __future__ import annotations

import csv
import io
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featkit.errors import SpecError, StorageError
from featkit.storage import (
    LockHeldError,
    available_cores,
    check_file,
    csv_text,
    digest,
    file_sha256,
    lock_owner,
    locked,
    open_file,
    peak_memory_mb,
    publish,
    read_file,
    read_text,
    read_toml,
    safe_name,
    write_file,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_bytes_and_functions_become_files(tmp_path):
    publish(
        tmp_path / "new" / "run", {"a": "ü", "b": b"\0", "c": lambda path: path.write_text("c")}
    )
    assert names(tmp_path / "new") == ["run"]
    assert [(tmp_path / "new" / "run" / name).read_bytes() for name in "abc"] == [
        "ü".encode(),
        b"\0",
        b"c",
    ]


def test_an_older_directory_is_replaced_as_a_whole(tmp_path):
    publish(tmp_path / "run", {"old": ""})
    publish(tmp_path / "run", {"new": ""}, own=["old"])
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["new"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failed_publish_leaves_the_old_directory(tmp_path, error):
    def fail(path):
        raise error

    publish(tmp_path / "run", {"old": ""})
    with pytest.raises(type(error)):
        publish(tmp_path / "run", {"a": "", "b": fail})
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["old"]


def fill_disk(path):
    path.write_text("half")
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_an_error_of_one_line(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*run: No space left on device; "):
        publish(tmp_path / "run", {"a": fill_disk})
    with pytest.raises(StorageError, match=r"cannot write .*file: No space left on device; "):
        write_file(tmp_path / "file", fill_disk)
    assert names(tmp_path) == []


def test_a_file_is_replaced_whole_or_kept(tmp_path):
    path = tmp_path / "new" / "file"
    write_file(path, "old")
    with pytest.raises(StorageError):
        write_file(path, fill_disk)
    assert path.read_text() == "old"
    write_file(path, b"new")
    assert path.read_text() == "new"
    assert names(path.parent) == ["file"]


def test_threads_that_write_the_same_file_do_not_mix_their_contents(tmp_path):
    """As processes with the same number do, in two containers with a common folder."""
    path = tmp_path / "file"
    contents = {letter * 300_000 for letter in "abc"}
    write_file(path, "a" * 300_000)
    seen = set()

    def write(content):
        for _ in range(30):
            write_file(path, content, flush=False)
            seen.add(path.read_text())

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(write, content) for content in contents]:
            done.result()
    assert seen <= contents
    assert names(tmp_path) == ["file"]


def test_a_lock_is_held_until_the_block_ends_and_leaves_no_file(tmp_path):
    lock = tmp_path / ".lock"
    with locked(lock):
        assert f"process {os.getpid()} on " in lock.with_suffix(".owner").read_text()
    with locked(lock):
        pass
    assert names(tmp_path) == []


HOLD = """
import sys
from pathlib import Path
from featkit.storage import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def lock(tmp_path):
    return tmp_path / ".work.lock"


@pytest.fixture
def holder(lock):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_held_lock_is_refused_and_its_owner_named(lock, holder):
    with pytest.raises(LockHeldError, match=f"locked by process {holder.pid} on "), locked(lock):
        pass
    assert lock_owner(lock).startswith(f"process {holder.pid} on ")


def test_waiting_for_a_lock_ends_when_it_is_released(lock, holder):
    owners = []

    def release(owner):
        owners.append(owner)
        holder.stdin.write("\n")
        holder.stdin.flush()

    with locked(lock, on_wait=release):
        assert owners[0].startswith(f"process {holder.pid} on ")


def test_the_lock_of_a_killed_process_is_released(lock, holder):
    holder.kill()
    holder.wait()
    assert lock_owner(lock) == ""
    with locked(lock):
        pass


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"), locked(tmp_path / "file" / ".lock"):
        pass


def test_csv_has_the_columns_of_all_rows_and_quotes_what_needs_it():
    text = csv_text([{"a": 1, "b": None}, {"a": 'x,"y"', "c": 0.5}])
    assert text.startswith("a,b,c\n")
    assert list(csv.reader(io.StringIO(text)))[1:] == [["1", "", ""], ['x,"y"', "", "0.5"]]
    assert csv_text([{"a": 1, "b": 2}], ["b"]) == "b\n2\n"


def test_different_sequences_have_different_digests(tmp_path):
    assert len({digest(parts) for parts in (["ab"], ["a", "b"], ["b", "a"], [])}) == 4
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")


READERS = [
    lambda path: read_file(path, 1000),
    lambda path: read_text(path, 1000),
    lambda path: check_file(path, 1000),
    lambda path: open_file(path, 1000).close(),
    lambda path: file_sha256(path, 1000),
]


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def link_to_itself(path):
    path.symlink_to(path)


def sparse(path):
    with path.open("wb") as file:
        file.truncate(200 * 10**9)


def listening(path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.close()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such files")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (pipe, "it is a named pipe, not a file"),
        (device, "it is a device, not a file"),
        (listening, "it is a socket, not a file"),
        (Path.mkdir, "it is a folder, not a file"),
        (link_to_itself, "Too many levels of symbolic links"),
        (sparse, "200,000 MB are more than the limit of 0 MB"),
        (lambda path: None, "No such file or directory"),
    ],
)
def test_special_and_huge_files_are_refused_at_once(tmp_path, monkeypatch, make, reason):
    monkeypatch.chdir(tmp_path)  # the name of a socket has at most 108 bytes
    make(Path("odd"))
    for read in READERS:
        with pytest.raises(OSError, match=reason) as caught:
            read(Path("odd"))
        assert caught.value.strerror == reason


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_path_that_no_file_can_have_is_refused(name):
    for read in READERS:
        with pytest.raises(OSError, match="not a valid path"):
            read(name)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no named pipes in folders")
def test_a_file_that_becomes_a_pipe_is_refused(tmp_path, monkeypatch):
    """Between the check of the name and opening it."""
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    status = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda self: status)
    with pytest.raises(OSError, match="it is a named pipe"):
        read_file(path, 10)


def test_a_file_of_the_largest_size_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link"):
        assert read_file(tmp_path / name, 3) == b"abc"
        with pytest.raises(OSError, match="limit"):
            read_file(tmp_path / name, 2)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_file_of_unknown_size_is_read_to_its_end_or_to_the_limit():
    assert Path("/proc/self/maps").stat().st_size == 0
    assert read_text("/proc/self/maps").endswith("\n")
    with pytest.raises(OSError, match="more than the limit of 0 MB"):
        read_file("/proc/self/maps", 100)


def test_text_of_another_encoding_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes("é".encode("latin-1"))
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "file")


def test_a_toml_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "grid.toml").write_text("x = [")
    for name in ("grid.toml", "missing.toml"):
        with pytest.raises(SpecError, match=rf"{name} cannot be read as a grid"):
            read_toml(tmp_path / "grid.toml" if name == "grid.toml" else tmp_path / name, "a grid")


def test_names_of_files_are_safe():
    assert [safe_name(name) for name in ("a b/c", "..", "résumé-1.0")] == [
        "a_b_c",
        "images",
        "r_sum_-1.0",
    ]
    # Windows cannot create files with the names of devices.
    assert [safe_name(name) for name in ("Aux", "nul.txt", "COM1", "com10", "auxiliary")] == [
        "_Aux",
        "_nul.txt",
        "_COM1",
        "com10",
        "auxiliary",
    ]


def test_memory_and_cores_are_plausible():
    assert 10 < peak_memory_mb() < 1e6
    assert 1 <= available_cores() <= os.cpu_count()
