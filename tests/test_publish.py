"""``publish`` loses nothing: it is interrupted and killed at every step, with and without an atomic exchange."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from featkit import storage
from featkit.errors import RunError, StorageError
from featkit.storage import exchange, publish, read_directory

posix = pytest.mark.skipif(os.name != "posix", reason="forks processes")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def shown(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    """Do not wait for the disk: thousands of files are written."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["exchange", "two renames"])
def mode(request, monkeypatch):
    """Run a test with the atomic exchange of directories, and as on a system without it."""
    if request.param == "two renames":
        monkeypatch.setattr(storage, "_exchange_function", lambda: None)
    return request.param


@pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="no atomic exchange")
def test_directories_are_exchanged_and_a_missing_one_is_an_error(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == (["b"], ["a"])
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_a_file_system_without_the_exchange_uses_two_renames(tmp_path, monkeypatch, code):
    monkeypatch.setattr(storage, "_exchange_function", lambda: lambda a, b: code)
    publish(tmp_path / "run", {"a": "old"})
    publish(tmp_path / "run", {"a": "new"})
    assert (names(tmp_path), shown(tmp_path / "run")) == (["run"], {"a": "new"})


class Interruption:
    """Raises KeyboardInterrupt, as Ctrl-C does, at one line of storage.py."""

    def __init__(self, at):
        self.at, self.lines = at, 0

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename != storage.__file__:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("stride", [pytest.param(1, marks=[pytest.mark.slow, pytest.mark.long]), 7])
def test_an_interruption_at_any_line_leaves_the_old_or_the_new_directory(tmp_path, mode, stride):
    old, new = {"card": "old", "a": "old"}, {"card": "new", "b": "new"}
    at, before = 0, sys.gettrace()
    found = set()
    while True:
        publish(tmp_path / "run", old, own=new)
        at += stride
        interruption = Interruption(at)
        sys.settrace(interruption)
        try:
            publish(tmp_path / "run", new, own=old)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        if interruption.lines < at:
            break
        # ``read_directory`` is what readers use; nothing else has run since the interruption.
        content = read_directory(tmp_path / "run", lambda: shown(tmp_path / "run"))
        assert content in (old, new)
        found.add(content["card"])
        publish(tmp_path / "run", new, own=old)
        assert (names(tmp_path), shown(tmp_path / "run")) == (["run"], new)
    assert at > 50
    assert found == {"old", "new"}


KILLED = """
import json, os, signal, sys
from pathlib import Path
from featkit import storage
from featkit.storage import publish, read_directory

place, mode = Path(sys.argv[1]) / "run", sys.argv[2]
os.fsync = lambda descriptor: None
if mode == "two renames":
    storage._exchange_function = lambda: None
old, new = {"card": "old", "a": "old"}, {"card": "new", "b": "new"}

def kill_at(step):
    # Before and after each system call, and each function of the module.
    calls = 0
    def count(frame, event, argument):
        nonlocal calls
        if event.startswith("c_"):
            counted = getattr(argument, "__module__", "") in ("posix", "fcntl", "io", "_io")
        else:
            counted = frame.f_code.co_filename == storage.__file__
        if counted:
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
    return count

def shown():
    return {path.name: path.read_text() for path in place.iterdir()}

step, wrong, seen, missing = 0, [], set(), 0
stride = int(sys.argv[3])
while True:
    step += stride
    publish(place, old, new)
    (place / "notes.txt").write_text("mine")
    child = os.fork()
    if not child:
        sys.setprofile(kill_at(step))
        publish(place, new, old)
        sys.setprofile(None)
        os._exit(0)
    finished = os.waitpid(child, 0)[1] == 0
    missing += not (place / "card").exists()
    content = read_directory(place, shown)
    if content not in ({**old, "notes.txt": "mine"}, {**new, "notes.txt": "mine"}):
        wrong.append([step, content])
    seen.add(content["card"])
    # Another directory in the same folder is published: it cleans up.
    publish(place.with_name("other"), old)
    if sorted(os.listdir(place.parent)) != ["other", "run"]:
        wrong.append([step, os.listdir(place.parent)])
    (place / "notes.txt").unlink()
    if finished:
        break
print(json.dumps({"steps": step, "wrong": wrong, "seen": sorted(seen), "missing": missing}))
"""


def kill_at_every_step(folder, mode, stride):
    command = [sys.executable, "-c", KILLED, str(folder), mode, str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@posix
@pytest.mark.parametrize(
    "stride",
    [pytest.param(1, marks=[pytest.mark.slow, pytest.mark.long]), 41],
    ids=["every call", "every 41st call"],
)
def test_a_kill_at_any_call_loses_nothing_and_is_cleaned_up_by_the_next(tmp_path, mode, stride):
    found = kill_at_every_step(tmp_path, mode, stride)
    assert found["steps"] > 200
    assert found["wrong"] == []
    assert found["seen"] == ["new", "old"]
    if mode == "exchange":  # readers never see a gap, even those that know nothing of featkit
        assert found["missing"] == 0


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("function", ["mkdir", "rename", "open", "fsync", "rmdir", "link"])
def test_a_failing_system_call_leaves_the_old_or_the_new_directory(
    tmp_path, monkeypatch, mode, function, call
):
    publish(tmp_path / "run", {"a": "old"})
    (tmp_path / "run" / "notes.txt").write_text("mine")
    real, calls = getattr(os, function), []

    def fail(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise OSError(errno.EIO, "Input/output error")
        return real(*arguments, **options)

    complete = {"new", "old"}
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with suppress(StorageError):
            publish(tmp_path / "run", {"a": "new"})
            complete = {"new"}
    content = shown(tmp_path / "run")
    assert content["notes.txt"] == "mine"
    assert content["a"] in complete
    publish(tmp_path / "run", {"a": "new"})
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("function", ["mkdir", "rename", "open", "fsync"])
def test_a_disk_that_fails_for_good_leaves_the_old_directory(tmp_path, monkeypatch, function):
    monkeypatch.setattr(storage, "_exchange_function", lambda: None)
    publish(tmp_path / "run", {"a": "old"})

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(StorageError, match="No space left on device"):
            publish(tmp_path / "run", {"a": "new"})
    assert shown(tmp_path / "run") == {"a": "old"}
    publish(tmp_path / "run", {"a": "new"})
    assert names(tmp_path) == ["run"]


def test_readers_during_rewriting_always_find_matching_files(tmp_path, mode):
    publish(tmp_path / "run", {"card": "0", "head": "0"})
    stop = threading.Event()

    def rewrite():
        number = 0
        while not stop.is_set():
            number += 1
            publish(tmp_path / "run", {"card": str(number), "head": str(number)})

    def read():
        card, head = ((tmp_path / "run" / name).read_text() for name in ("card", "head"))
        if card != head:
            raise RunError("card and head are of different runs")
        return int(card)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        found = [read_directory(tmp_path / "run", read) for _ in range(300)]
    finally:
        stop.set()
        writer.join()
    assert found == sorted(found)
    assert found[-1] > found[0]


def test_a_reader_gets_the_error_of_a_directory_that_is_not_being_replaced(tmp_path, mode):
    publish(tmp_path / "run", {"card": "0"})
    calls = []

    def fail():
        calls.append(1)
        raise RunError("damaged")

    for place in ("run", "missing"):
        with pytest.raises(RunError, match="damaged"):
            read_directory(tmp_path / place, fail)
    assert len(calls) == 2


def test_files_of_others_in_a_published_directory_are_kept(tmp_path, mode):
    run = tmp_path / "run"
    publish(run, {"card": "1", "figure": "1"})
    (run / "model.onnx").write_text("exported")
    (run / "plots").mkdir()
    (run / "plots" / "mine").write_text("mine")
    (run / "link").symlink_to("nowhere")
    for number in "23":
        publish(run, {"card": number}, own=["figure"])
        assert names(run) == ["card", "link", "model.onnx", "plots"]
        assert (run / "card").read_text() == number
    assert (run / "plots" / "mine").read_text() == "mine"
    assert (run / "link").readlink().name == "nowhere"


def test_a_directory_of_version_0_1_0_is_replaced_and_its_other_files_are_kept(tmp_path, mode):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "card").write_text("old")
    (tmp_path / "run" / "notes").write_text("mine")
    publish(tmp_path / "run", {"card": "new"})
    assert shown(tmp_path / "run") == {"card": "new", "notes": "mine"}


def test_what_version_0_1_0_left_behind_is_put_back_or_removed(tmp_path):
    scratch = tmp_path / ".run.ab12_xyz"
    for part in ("new", "old"):
        (scratch / part).mkdir(parents=True)
        (scratch / part / "card").write_text(part)
    assert read_directory_of_others(tmp_path) == "old"
    assert names(tmp_path) == ["other", "run"]


def read_directory_of_others(folder):
    publish(folder / "run", {"b": ""})
    publish(folder / "other", {})
    return (folder / "run" / "card").read_text()


def test_a_linked_directory_stays_a_link(tmp_path, mode):
    publish(tmp_path / "disk" / "run", {"a": "old"})
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    publish(tmp_path / "run", {"a": "new"})
    assert (tmp_path / "run").is_symlink()
    assert shown(tmp_path / "disk" / "run") == {"a": "new"}
    assert names(tmp_path / "disk") == ["run"]


def test_a_file_in_the_place_of_the_directory_is_kept(tmp_path, mode):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(StorageError, match="a file of this name exists"):
        publish(tmp_path / "run", {"a": ""})
    assert (tmp_path / "run").read_text() == "mine"
    assert names(tmp_path) == ["run"]
