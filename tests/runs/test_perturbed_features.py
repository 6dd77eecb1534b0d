"""Perturbed images of one split are stored beside the others and never fitted on."""

from __future__ import annotations

import os

import pytest

from featkit.embeddings import store
from featkit.embeddings.extract import Extractor
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request, resolve
from featkit.errors import DataError
from featkit.runs.features import load_features
from featkit.runs.fit import FitConfig, fit_run

FOG = "fog:level=mild"


@pytest.fixture
def request_(photos):
    return Request(data=str(photos), weights="random", resize="32", augment="basic", views=1)


@pytest.fixture
def cache(request_, tmp_path):
    folder = tmp_path / "cache"
    Extractor(folder, Compute()).extract([request_])
    return folder


def test_fitting_with_a_perturbation_twice_leaves_the_cache_usable(cache, request_, photos):
    for subset in (None, None, "longtail:if=2"):
        for perturb in (FOG, None, FOG):
            source = load_features({"perturb": perturb}, cache, Compute())
            run = fit_run(source, "prototypical", config=FitConfig(subset=subset))
            assert source.request.data == str(photos)
            assert source.request.augment == request_.augment
            assert run.report.n == 4
            assert (source.embeddings.splits == "train").sum() > 20
    parts = [entry.provenance["request"]["part"] for entry in store.entries(cache)[0]]
    assert sorted(map(str, parts)) == ["None", "test"]


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_newest_file_of_one_split_is_not_chosen(part, cache, request_):
    (whole,) = cache.glob("*.h5")
    (side,) = Extractor(cache, Compute()).extract([request_.perturbed(part, FOG)])
    os.utime(side.path, (2e9, 2e9))
    for given in ({}, {"perturb": FOG}, {"backbone": "resnet34"}, {"data": request_.data}):
        request, path = resolve(given, cache)
        assert path == whole
        assert (request.part, request.augment) == (None, request_.augment)
        assert request.perturb == given.get("perturb")
    with pytest.raises(DataError, match=f"holds the perturbed {part} images only"):
        load_features({}, side.path, Compute())
