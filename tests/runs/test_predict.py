"""Prediction with a saved run, as a program calls it again and again."""

from __future__ import annotations

import gc

import pytest
from torch import nn

import featkit


@pytest.fixture
def no_collection():
    """Turn Python's garbage collector off: only reference counts free memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def live_modules():
    # type() and not isinstance(): some objects of torch warn when they are asked for a class.
    return sum(issubclass(type(each), nn.Module) for each in gc.get_objects())


@pytest.mark.parametrize("layer", [None, "layer2.0.conv1"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_networks_are_freed_without_the_garbage_collector(
    photos, tmp_path, layer, precision, no_collection
):
    """A loop over ``predict`` needs constant memory: no network is in a cycle of references."""
    run = featkit.fit(
        photos,
        weights="random",
        resize="32",
        layer=layer,
        precision=precision,
        head="prototypical",
        cache=tmp_path / "cache",
        out=tmp_path / "runs",
    )
    image = photos / "red" / "0.png"
    assert featkit.predict(run, image)[0].top[0][0] == "red"
    gc.collect()  # what the first imports have left behind
    start = live_modules()
    for _ in range(3):
        featkit.predict(run, image)
    assert live_modules() == start
