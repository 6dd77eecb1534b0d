"""Missing options are taken from the newest matching cache file."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from featkit.embeddings import store
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.request import Request, resolve


@pytest.fixture
def cache(tmp_path):
    """Three files, from old to new: digits with resnet50, photos with resnet18, a file made from Python."""
    requests = [
        Request(data="digits", backbone="resnet50", weights="random:3"),
        Request(data=str(tmp_path), backbone="resnet18", limit="train=5", seed=4),
        Request(data=""),
    ]
    for age, request in enumerate(requests):
        recipe = Recipe(str(age), "", "", "", "", "", "", "", {}, "")
        header = store.Header(
            recipe,
            ("a",),
            ("k",),
            np.zeros(1, int),
            np.array(["train"]),
            ("c",),
            {"data": "some", "request": request.to_dict()},
        )
        path = tmp_path / "cache" / f"{age}.h5"
        store.write(path, header, iter([(np.arange(1), np.ones((1, 2), np.float32))]))
        os.utime(path, ns=(time.time_ns(), time.time_ns() - (10 - age) * 10**9))
    return tmp_path / "cache"


def test_without_options_the_newest_file_with_a_data_spec_is_used(cache):
    request, path = resolve({"data": None, "backbone": None}, cache)
    assert path == cache / "1.h5"
    assert request == Request(data=str(cache.parent), backbone="resnet18", limit="train=5", seed=4)


def test_a_backbone_alone_selects_the_newest_file_with_it(cache):
    request, path = resolve({"backbone": "resnet50"}, cache)
    assert (request.data, request.weights, path) == ("digits", "random:3", cache / "0.h5")


def test_data_alone_selects_the_newest_file_with_it(cache, monkeypatch):
    monkeypatch.chdir(cache)
    request, path = resolve({"data": ".."}, cache)
    assert (request.data, request.backbone, path) == ("..", "resnet18", cache / "1.h5")


def test_a_backbone_without_a_file_uses_the_newest_images(cache):
    request, path = resolve({"backbone": "resnet34"}, cache)
    assert request == Request(data=str(cache.parent), backbone="resnet34", limit="train=5", seed=4)
    assert path == cache / "1.h5"


def test_a_given_seed_replaces_that_of_the_file(cache):
    request, _ = resolve({"seed": 7}, cache)
    assert (request.seed, request.limit) == (7, "train=5")


def test_with_data_and_backbone_no_file_is_used(cache):
    assert resolve({"data": "digits", "backbone": "resnet18"}, cache) == (Request(), None)


def test_with_an_empty_cache_digits_are_used(tmp_path):
    assert resolve({}, tmp_path) == (Request(), None)


def test_a_request_survives_json(tmp_path):
    request = Request(data=str(tmp_path), limit="train=5", layer="layer3")
    assert Request.from_dict({**request.to_dict(), "from a later version": 1}) == request
