"""Errors can be sent from a worker process to its client."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from featkit.errors import DecodeError, MissingExtraError, SpecError, StaleCacheError
from featkit.storage import LockHeldError


@pytest.mark.parametrize(
    "error",
    [
        SpecError("wrong", fixes=["do this", "do that"]),
        DecodeError("a.png cannot be decoded"),
        StaleCacheError("stale", {"layer": ("a", "b")}),
        MissingExtraError("distributed", "cluster"),
        LockHeldError(Path("x.lock"), "process 3"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_in_another_process(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
