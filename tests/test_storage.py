"""A directory of results is there whole or not at all."""

from __future__ import annotations

import pytest

from featkit.errors import StorageError
from featkit.storage import publish


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_bytes_and_functions_become_files(tmp_path):
    publish(tmp_path / "new" / "run", {"a": "ü", "b": b"\0", "c": lambda path: path.write_text("c")})
    assert names(tmp_path / "new") == ["run"]
    assert [(tmp_path / "new" / "run" / name).read_bytes() for name in "abc"] == ["ü".encode(), b"\0", b"c"]


def test_an_older_directory_is_replaced_as_a_whole(tmp_path):
    publish(tmp_path / "run", {"old": ""})
    publish(tmp_path / "run", {"new": ""})
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["new"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    def fail(path):
        raise error

    publish(tmp_path / "run", {"old": ""})
    with pytest.raises(type(error)):
        publish(tmp_path / "run", {"a": "", "b": fail})
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["old"]


def test_a_full_disk_is_one_line(tmp_path):
    def fail(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"cannot write .*run: No space left on device; "):
        publish(tmp_path / "run", {"a": fail})
    assert names(tmp_path) == []
