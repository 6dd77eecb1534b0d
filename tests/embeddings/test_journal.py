"""What was done before a process died is still there, and nobody else works on it meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from featkit.embeddings.journal import lock_of, open_journal
from featkit.storage import lock_owner


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".a.partial"


def refuse(owner):
    raise AssertionError(owner)


def fill(path):
    with open_journal(path, refuse) as journal:
        journal.append(["a", "b"], np.arange(6).reshape(2, 3))
        journal.append(["c"], np.full((1, 3), 9))


def test_vectors_are_read_by_key(path):
    fill(path)
    with open_journal(path, refuse) as journal:
        assert len(journal) == 3
        assert "a" in journal
        assert "d" not in journal
        np.testing.assert_array_equal(journal.read(["c", "a"]), [[9, 9, 9], [0, 1, 2]])


def test_cut_anywhere_it_holds_its_whole_records_and_can_go_on(path):
    fill(path)
    content = path.read_bytes()
    counts = []
    for end in range(len(content) + 1):
        path.write_bytes(content[:end])
        with open_journal(path, refuse) as journal:
            counts.append(len(journal))
            journal.append(["d"], np.full((1, 3), 7))
        with open_journal(path, refuse) as journal:
            assert len(journal) == counts[-1] + 1
            np.testing.assert_array_equal(journal.read(["d"]), [[7, 7, 7]])
    assert sorted(set(counts)) == [0, 2, 3]
    assert counts == sorted(counts)


@pytest.mark.parametrize("place", [0, 5, 30, -1])
def test_a_damaged_record_and_all_after_it_are_not_taken(path, place):
    fill(path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with open_journal(path, refuse) as journal:
        assert len(journal) == (2 if place == -1 else 0)


def test_without_a_record_nothing_is_left_behind(path):
    with open_journal(path, refuse):
        pass
    assert list(path.parent.iterdir()) == []


def test_removed_it_is_gone(path):
    fill(path)
    with open_journal(path, refuse) as journal:
        journal.discard()
    assert list(path.parent.iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
import numpy as np
from featkit.embeddings.journal import open_journal
with open_journal(Path(sys.argv[1]), print) as journal:
    journal.append(["a"], np.ones((1, 3)))
    print("held", flush=True)
    sys.stdin.readline()
    journal.discard()
"""


@pytest.fixture
def holder(path):
    """Another process that holds the journal."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_who_waits_is_told_for_whom_and_goes_on_when_it_is_free(path, holder):
    told = []

    def free(owner):
        told.append(owner)
        holder.stdin.write("\n")
        holder.stdin.flush()

    assert f"process {holder.pid} on " in lock_owner(lock_of(path))
    with open_journal(path, free) as journal:
        assert len(journal) == 0
    assert f"process {holder.pid} on " in told[0]


def test_the_lock_of_a_killed_process_is_free_and_its_work_is_there(path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert lock_owner(lock_of(path)) == ""
    with open_journal(path, refuse) as journal:
        assert "a" in journal
