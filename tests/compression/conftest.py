"""Small networks and features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from featkit.backbones.base import Backbone, Preprocess
from featkit.backbones.layers import freeze
from featkit.backbones.state_dict import seeded


@pytest.fixture
def tiny() -> Backbone:
    """Return a network of two convolutions, from 16 x 16 pixels to 8 features."""

    def build() -> nn.Module:
        with seeded(0):
            layers = [
                nn.Conv2d(3, 8, 3, stride=2),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
            ]
            return freeze(nn.Sequential(*layers, nn.Flatten()))

    return Backbone(
        "tiny", "random", "random:0", "5", "avg", Preprocess(resize=16, crop=(16, 16)), build
    )


@pytest.fixture
def blobs() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Return a function that makes features of k separable classes, labels not 0..k-1."""

    def make(k: int = 4, n: int = 60, d: int = 8) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(n) % k
        x = np.random.default_rng(0).normal(size=(n, d)) + 2 * np.eye(d)[y]
        x[0] = 0
        return x.astype(np.float32), 3 * y + 1

    return make


@pytest.fixture(autouse=True)
def _one_thread():
    """Run small matrix products on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
