"""A journal keeps complete records after a kill and is locked while it is in use."""

from __future__ import annotations

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


def test_features_are_read_by_key(path):
    fill(path)
    with open_journal(path, refuse) as journal:
        assert len(journal) == 3
        assert "a" in journal
        assert "d" not in journal
        np.testing.assert_array_equal(journal.read(["c", "a"]), [[9, 9, 9], [0, 1, 2]])


def test_a_journal_cut_anywhere_keeps_its_complete_records_and_can_be_continued(path):
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
def test_a_damaged_record_and_all_after_it_are_ignored(path, place):
    fill(path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with open_journal(path, refuse) as journal:
        assert len(journal) == (2 if place == -1 else 0)


def test_an_empty_journal_is_removed(path):
    with open_journal(path, refuse):
        pass
    assert list(path.parent.iterdir()) == []


def test_a_discarded_journal_is_removed(path):
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


def test_a_waiting_process_names_the_owner_and_continues_after_the_release(path, holder):
    told = []

    def free(owner):
        told.append(owner)
        holder.stdin.write("\n")
        holder.stdin.flush()

    assert f"process {holder.pid} on " in lock_owner(lock_of(path))
    with open_journal(path, free) as journal:
        assert len(journal) == 0
    assert f"process {holder.pid} on " in told[0]


def test_a_killed_process_releases_the_lock_and_leaves_its_features(path, holder):
    holder.kill()
    holder.wait()
    assert lock_owner(lock_of(path)) == ""
    with open_journal(path, refuse) as journal:
        assert "a" in journal
