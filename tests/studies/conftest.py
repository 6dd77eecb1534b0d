"""Vectors that studies work on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from featkit.embeddings.base import Embeddings
from featkit.embeddings.recipe import Recipe


@pytest.fixture
def vectors() -> Callable[..., Embeddings]:
    """Makes random vectors of four classes in memory, a third of them test unless ``splits`` says otherwise."""

    def make(n: int = 60, splits: np.ndarray | None = None, apart: float = 0.0) -> Embeddings:
        y = np.arange(n) % 4
        x = np.random.default_rng(0).normal(size=(n, 4)) + apart * np.eye(4)[y]
        splits = np.where(np.arange(n) % 3 == 0, "test", "train") if splits is None else splits
        recipe = Recipe(*["x"] * 8, {}, "fp32")
        return Embeddings(x.astype(np.float32), y, tuple(map(str, range(n))), tuple("abcd"), splits, recipe)

    return make
