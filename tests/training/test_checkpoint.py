"""Checkpoints: damage is found, and a kill while one is written leaves the one before."""

from __future__ import annotations

import os
import random

import pytest
import torch

from featkit.errors import StorageError, TrainingError
from featkit.training import checkpoint
from featkit.training.checkpoint import load_checkpoint, save_checkpoint


def content(number=1):
    names = ("step", "sums", "seconds", "model", "optimiser", "history")
    tensors = {"weight": torch.arange(100.0) + number}
    return {"fingerprint": "f", "number": number, **dict.fromkeys(names, 0), "model": tensors}


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    assert load_checkpoint(tmp_path, "f") is None
    for number in (1, 2):
        save_checkpoint(tmp_path / "new", content(number))
        found = load_checkpoint(tmp_path / "new", "f")
        assert found["number"] == number
        assert torch.equal(found["model"]["weight"], content(number)["model"]["weight"])


@pytest.mark.parametrize("digest", ["with its digest", "of version 0.2.0"])
def test_no_flipped_bit_goes_unnoticed(tmp_path, digest):
    save_checkpoint(tmp_path, content())
    file = tmp_path / checkpoint.CHECKPOINT_FILE
    if digest == "of version 0.2.0":
        (tmp_path / checkpoint.DIGEST_FILE).unlink()
        assert load_checkpoint(tmp_path, "f")["number"] == 1
    data = file.read_bytes()
    rng = random.Random(0)
    silent = 0
    for _ in range(150):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        try:
            found = load_checkpoint(tmp_path, "f")
        except TrainingError:
            continue
        # Without a digest, bytes between the records are not covered; they change no value.
        assert digest != "with its digest"
        silent += not torch.equal(found["model"]["weight"], content()["model"]["weight"])
        silent += {**found, "model": 0} != {**content(), "model": 0}
    assert silent == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("call", [1, 2])
def test_a_write_that_stops_leaves_the_checkpoint_before(tmp_path, monkeypatch, error, call):
    """Before the new digest has its name, and between it and the new checkpoint."""
    save_checkpoint(tmp_path, content(1))
    save_checkpoint(tmp_path, content(2))
    calls, real = [], os.replace

    def stop(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise error
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises((KeyboardInterrupt, StorageError)):
            save_checkpoint(tmp_path, content(3))
    assert load_checkpoint(tmp_path, "f")["number"] == 2
    save_checkpoint(tmp_path, content(4))
    assert load_checkpoint(tmp_path, "f")["number"] == 4


@pytest.mark.parametrize(
    "damage", ["empty", "text", "no keys", "a list", "a folder", "a named pipe"]
)
def test_what_is_not_a_checkpoint_is_refused_in_one_line(tmp_path, damage):
    file = tmp_path / checkpoint.CHECKPOINT_FILE
    if damage in ("no keys", "a list"):
        torch.save({"fingerprint": "f"} if damage == "no keys" else [1], file)
    elif damage == "a folder":
        file.mkdir()
    elif damage == "a named pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no named pipes")
        os.mkfifo(file)
    else:
        file.write_text("" if damage == "empty" else "text")
    with pytest.raises(TrainingError, match="is damaged: start again without --resume"):
        load_checkpoint(tmp_path, "f")
