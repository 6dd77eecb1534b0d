"""Cell files: what is damaged is reported as such, so that the cell is computed again."""

from __future__ import annotations

import gzip
import json
import os
import random
from contextlib import suppress

import pytest

from featkit.ablation.cells import read_cell, remove_cell, write_cell
from featkit.embeddings.pipeline import Compute
from featkit.errors import RunError
from featkit.runs.card import seal
from featkit.runs.features import load_features
from featkit.runs.fit import fit_run


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """The bytes of a cell file."""
    folder = tmp_path_factory.mktemp("cell")
    given = {"data": "digits", "weights": "random", "resize": "16", "crop": "16"}
    source = load_features({**given, "limit": "train=20,test=20"}, folder / "cache", Compute())
    write_cell(folder, "cell", fit_run(source, "prototypical"), 0.5)
    return (folder / "cell.json.gz").read_bytes()


def read(folder, data):
    (folder / "cell.json.gz").write_bytes(data)
    return read_cell(folder, "cell", {})


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path, cell):
    whole = read(tmp_path, cell)
    assert (whole.val_score, whole.report.n, len(whole.predictions.ids)) == (0.5, 20, 20)
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(cell)
        damaged[rng.randrange(len(cell))] ^= 1 << rng.randrange(8)
        try:
            found = read(tmp_path, damaged)
        except RunError:
            refused += 1
        else:  # a bit of gzip's header, such as the time
            assert found.to_row() == whole.to_row()
    assert refused > 50


DEEP = b"[" * 100_000
WRONG = [
    *("answers", "report", "cost", "val_score", "data", "run", "weights"),
    *("answers.ids", "answers.y", "answers.predicted", "cost.fit_seconds", "report.n"),
]


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", gzip.compress(b"", mtime=0), gzip.compress(DEEP, mtime=0), DEEP],
    ids=["empty", "null", "no content", "deep", "not compressed"],
)
def test_a_file_of_another_kind_is_refused(tmp_path, data):
    with pytest.raises(RunError, match="cannot be read"):
        read(tmp_path, data)


@pytest.mark.parametrize("value", [None, [], {}, "x", [None], float("nan"), 10**400, True])
@pytest.mark.parametrize("name", WRONG)
def test_a_resealed_cell_with_a_wrong_type_is_refused_or_read(tmp_path, cell, name, value):
    content = json.loads(gzip.decompress(cell))
    part, _, key = name.rpartition(".")
    (content[part] if part else content)[key] = value
    content["sha256"] = seal(content)
    with suppress(RunError):
        found = read(tmp_path, gzip.compress(json.dumps(content).encode()))
        found.to_row()
        json.dumps(found.report.to_dict())


def test_a_cell_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, cell):
    monkeypatch.setattr("featkit.ablation.cells._LIMIT", 10_000)
    with pytest.raises(RunError, match="more than 0 MB"):
        read(tmp_path, gzip.compress(b" " * 20_000))


def test_a_cell_whose_end_is_missing_or_that_has_more_data_is_refused(tmp_path, cell):
    for data in (cell[:-1], cell + cell):
        with pytest.raises(RunError, match="its end is missing"):
            read(tmp_path, data)


def test_a_cell_in_another_order_of_keys_is_read_as_in_earlier_versions(tmp_path, cell):
    content = json.loads(gzip.decompress(cell))
    assert content["sha256"] == seal(content)
    reordered = dict(reversed(content.items()))
    found = read(tmp_path, gzip.compress(json.dumps(reordered).encode()))
    assert found.to_row() == read(tmp_path, cell).to_row()
    with pytest.raises(RunError, match="was changed"):
        read(tmp_path, gzip.compress(json.dumps({**reordered, "run": "0"}).encode()))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_is_refused_and_removed(tmp_path):
    os.mkfifo(tmp_path / "cell.json.gz")
    with pytest.raises(RunError, match="a named pipe"):
        read_cell(tmp_path, "cell", {})
    remove_cell(tmp_path, "cell")
    assert read_cell(tmp_path, "cell", {}) is None
