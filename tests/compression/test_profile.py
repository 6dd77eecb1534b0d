"""Cost of networks."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from featkit.backbones import load_backbone
from featkit.backbones.engines import open_engine
from featkit.compression.profile import (
    TimedNetwork,
    count_macs,
    measure_peak_memory,
    measure_size,
    open_any,
    time_engines,
)
from featkit.embeddings.request import Request
from featkit.errors import SpecError
from featkit.storage import available_cores

pytestmark = pytest.mark.slow


def test_macs_follow_the_formula():
    """A convolution: output pixels x kernel x channels in x out; a linear layer: in x out."""
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(5 * 4 * 4, 7)
    )
    assert count_macs(network, (8, 8)) == 4 * 4 * 9 * 3 * 5 + 80 * 7


def test_macs_of_resnet18_equal_the_published_number():
    """1.814 GMACs with the classifier, which has half a million."""
    network = load_backbone("resnet18", weights="random").build()
    assert count_macs(network, (224, 224)) == pytest.approx(1.814e9, rel=1e-3)


def test_a_size_counts_zeros_and_depends_on_the_precision(tiny):
    size = measure_size(tiny, "fp32")
    assert size.parameters == size.nonzero == 3 * 8 * 9 + 8 + 8 * 8 * 9 + 8
    assert (size.bytes, measure_size(tiny, "bf16").bytes) == (
        4 * size.parameters,
        2 * size.parameters,
    )
    with pytest.raises(SpecError, match="give --data"):
        measure_size(tiny, "int8")


def test_the_unoptimised_network_gives_the_same_embeddings(tiny):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_allclose(
        open_any(tiny, "torch")(pixels), open_engine(tiny)(pixels), rtol=1e-5, atol=1e-6
    )


def test_networks_are_timed_interleaved():
    torch.set_num_threads(2)
    calls = []

    def engine(name, seconds):
        def run(pixels):
            calls.append((name, len(pixels), torch.get_num_threads()))
            time.sleep(seconds)
            return pixels

        return run

    networks = [TimedNetwork(engine("a", 0.001), (4, 4)), TimedNetwork(engine("b", 0.01), (4, 4))]
    fast, slow = time_engines(networks, repeats=3, warm_up=1)
    on_one = calls[:12]
    assert [name for name, _, _ in on_one] == ["a", "b"] * 6
    assert [size for _, size, _ in on_one] == [1] * 8 + [32] * 4
    assert {threads for *_, threads in calls} == {1}
    assert [name for name, _, _ in calls[12:]] == [
        *["a"] * available_cores(),
        *["b"] * available_cores(),
    ] * 2
    assert fast.median_ms < slow.median_ms <= slow.p95_ms
    assert fast.images_per_s > slow.images_per_s
    assert fast.images_per_s_all_cores > slow.images_per_s_all_cores
    assert (
        slow.images_per_s_all_cores > 0.5 * available_cores() * slow.images_per_s
    )  # they sleep side by side


def test_a_network_that_shares_a_batch_uses_all_threads():
    torch.set_num_threads(available_cores() + 1)
    calls = []

    def run(pixels):
        calls.append((len(pixels), torch.get_num_threads()))
        return pixels

    time_engines([TimedNetwork(run, (4, 4), shares=True)], repeats=3, warm_up=1)
    assert calls == [(1, 1)] * 4 + [(32, 1)] * 2 + [(32, available_cores())] * 2
    assert torch.get_num_threads() == available_cores() + 1


def test_peak_memory_includes_torch():
    request = Request(data="", backbone="resnet18", weights="random", resize="32")
    assert 100 < measure_peak_memory(request, None, "fp32") < 3000


def test_a_failed_memory_measurement_is_reported():
    with pytest.raises(
        SpecError, match=r"memory of resnet18@fp32 cannot be measured.*missing\.pth"
    ):
        measure_peak_memory(
            Request(data="", backbone="resnet18", weights="missing.pth"), None, "fp32"
        )
