"""Decisions about an audited data set."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

import featkit
from featkit.app.cleaning import (
    DecisionBook,
    compare_on_same_images,
    review_items,
)
from featkit.errors import DataError
from featkit.studies.clean import Decision, clean
from featkit.studies.inspect import ImageReader

pytestmark = pytest.mark.slow

OPTIONS = {"backbone": "resnet18", "weights": "random", "resize": "64", "crop": "64"}


@pytest.fixture(scope="module")
def audited(project, tmp_path_factory):
    """Photos with a wrong label and a copy, and their audit."""
    folder = tmp_path_factory.mktemp("clean")
    photos = folder / "photos"
    shutil.copytree(project / "photos", photos)
    (photos / "train" / "ant" / "0.png").rename(photos / "train" / "=cat" / "wrong.png")
    shutil.copy(photos / "train" / "ant" / "2.png", photos / "train" / "ant" / "copy.png")
    result = featkit.audit(photos, cache=folder / "cache", **OPTIONS)
    return folder, photos, result


def test_suggestions_are_listed_by_kind_with_their_reason(audited):
    _, _, result = audited
    items = review_items(result)
    suspects = {each.path: each for each in items["labels"]}
    wrong = suspects["train/=cat/wrong.png"]
    assert (wrong.label, wrong.suggestion.label, wrong.split) == ("=cat", "ant", "train")
    assert wrong.note.startswith("odds ")
    (copy,) = items["duplicates"]
    assert {copy.path, copy.other} == {"train/ant/2.png", "train/ant/copy.png"}
    assert copy.suggestion.action == "drop"
    near = [each.path for each in items["near-duplicates"]]
    assert copy.path not in near


def test_decisions_are_kept_in_a_file(tmp_path):
    book = DecisionBook(tmp_path, "photos")
    assert book.read() == {}
    book.decide([Decision("=a.png", "relabel", "=cat"), Decision("b.png", "drop")])
    book.decide([Decision("b.png", "keep")])
    again = DecisionBook(tmp_path, "photos").read()
    assert [(each.path, each.action, each.label) for each in again.values()] == [
        ("=a.png", "relabel", "=cat"),
        ("b.png", "keep", ""),
    ]
    book.forget(["b.png", "unknown"])
    assert list(book.read()) == ["=a.png"]
    assert DecisionBook(tmp_path, "other").read() == {}


def test_decisions_of_two_pages_at_the_same_time_are_all_kept(tmp_path):
    names = [f"{row}.png" for row in range(60)]

    def decide(name):
        DecisionBook(tmp_path, "photos").decide([Decision(name, "drop")])

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(decide, name) for name in names]:
            done.result()
    assert sorted(DecisionBook(tmp_path, "photos").read()) == sorted(names)


def test_runs_before_and_after_are_compared_on_the_same_files(audited):
    folder, photos, result = audited
    decisions = [Decision("train/=cat/wrong.png", "relabel", "ant")]
    cleaned = clean(result, decisions)
    cleaned.write(folder / "clean.csv")
    for data in (photos, folder / "clean.csv"):
        featkit.fit(data, cache=folder / "cache", out=folder / "runs", **OPTIONS)
    (before,) = (folder / "runs" / "photos").glob("*/")
    (after,) = (folder / "runs" / "clean").glob("*/")
    found = compare_on_same_images(before, after)
    assert found.n == 18
    assert (found.a, found.b) == ("cleaned data", "original data")
    same = compare_on_same_images(before, before)
    assert same.difference == 0


def test_runs_on_other_images_cannot_be_compared(audited, runs):
    folder, _, _ = audited
    featkit.fit(folder / "photos", cache=folder / "cache", out=folder / "runs2", **OPTIONS)
    (other,) = (folder / "runs2" / "photos").glob("*/")
    with pytest.raises(DataError, match="no test image in common"):
        compare_on_same_images(runs[0], other)


def test_pictures_that_are_unknown_or_damaged_are_none(audited):
    _, photos, _ = audited
    read = ImageReader(featkit.load_images(photos))
    assert read.thumbnail("train/ant/2.png", 20).shape[1] == 20
    assert read("unknown") is None
