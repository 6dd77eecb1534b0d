"""Checks of cache files, explanation of misses, and garbage collection."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
from PIL import Image

from featkit.embeddings.extract import run_extractions
from featkit.embeddings.journal import open_journal
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys, plan_extraction
from featkit.embeddings.request import Request
from featkit.embeddings.verify import collect_garbage, explain, verify

COMPUTE = Compute(device="cpu", workers=2)


@pytest.fixture
def request_(photos):
    return Request(data=str(photos), weights="random", resize="32", precision="fp32")


@pytest.fixture
def path(request_, tmp_path):
    return run_extractions([request_], request_.load_images(), tmp_path / "cache", COMPUTE)[0].path


def job_of(request, cache):
    images = request.load_images()
    return plan_extraction(request, images, content_keys(images, COMPUTE), cache)


def test_a_new_file_has_no_problems(path):
    assert verify(path, COMPUTE) == []


@pytest.mark.parametrize("dataset", ["embeddings", "checksums"])
def test_a_corrupted_row_is_named(path, dataset):
    with h5py.File(path, "r+") as file:
        row = file[dataset][5]
        file[dataset][5] = row + np.asarray(1, row.dtype)
    assert verify(path, COMPUTE) == [f"{path}: the features of blue/5.png are damaged"]


@pytest.mark.parametrize(
    ("dataset", "wrong"),
    [("labels", "labels or classes"), ("keys", "names or keys"), ("ids", "names or keys")],
)
def test_changed_labels_names_or_keys_are_noticed(path, dataset, wrong):
    with h5py.File(path, "r+") as file:
        file[dataset][0] = file[dataset][9]
    assert any(wrong in line for line in verify(path, COMPUTE))


def test_a_changed_recipe_is_noticed(path):
    with h5py.File(path, "r+") as file:
        file.attrs["recipe"] = file.attrs["recipe"].replace("avgpool", "layer3")
    (line,) = verify(path, COMPUTE)
    assert f"{path} is damaged" in line
    assert "its attributes do not match their digest" in line


def test_a_file_under_another_name_is_noticed(path):
    renamed = path.rename(path.with_name("renamed.h5"))
    assert verify(renamed, COMPUTE) == [f"{renamed}: the file name does not match the recipe"]


def test_a_truncated_file_is_named(path):
    path.write_bytes(path.read_bytes()[:5000])
    (line,) = verify(path, COMPUTE)
    assert str(path) in line


def test_images_that_differ_from_those_on_disk_are_named(path, photos):
    Image.new("RGB", (9, 9), "red").save(photos / "red" / "0.png")
    (photos / "red" / "1.png").unlink()
    Image.new("RGB", (9, 9), "pink").save(photos / "red" / "new.png")
    lines = [line.removeprefix(f"{path}: ") for line in verify(path, COMPUTE)]
    changes = ["red/new.png is new", "red/0.png is changed", "red/1.png is removed"]
    assert lines == [f"{change} since the file was made" for change in changes]


def test_a_miss_is_explained_by_field(path, request_):
    cache = path.parent
    assert explain(job_of(request_, cache)) == f"hit: {path}"
    text = explain(job_of(replace(request_, layer="layer3"), cache))
    assert text.startswith("miss: 24 of 24 images must be embedded")
    assert text.endswith("differs in layer: avgpool cached, layer3 requested")
    assert "there is no embeddings file" in explain(job_of(request_, cache / "none"))


def test_a_miss_counts_the_images_to_embed(path, request_, photos):
    Image.new("RGB", (9, 9), "red").save(photos / "red" / "0.png")
    assert "miss: 1 of 24 images must be embedded" in explain(job_of(request_, path.parent))


def test_garbage_is_collected_but_not_that_of_running_extractions(tmp_path):
    for name in (".a.partial", ".b.partial"):
        with open_journal(tmp_path / name, print) as journal:
            journal.append(["key"], np.ones((1, 2)))
    with open_journal(tmp_path / ".b.partial", print):
        removed, busy = collect_garbage(tmp_path)
    assert removed == [tmp_path / ".a.partial"]
    assert len(busy) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.partial"]
