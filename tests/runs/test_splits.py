"""Splits of an experiment into train, validation and test rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featkit import extract
from featkit.errors import DataError, SpecError
from featkit.images.augment import add_augmented_views
from featkit.runs.splits import (
    make_splits,
    train_counts,
    untested_class_warnings,
    without_views,
)


def test_fit_val_and_test_share_no_image(vectors):
    parts = make_splits(vectors(), 0)
    fit, val, test = (set(part.ids) for part in (parts.fit, parts.val, parts.test))
    assert not fit & val
    assert not (fit | val) & test
    assert set(parts.final.ids) == fit | val
    assert len(val) == 8
    assert not parts.own_val


def test_classes_without_a_test_image_are_named():
    names = [f"class {number}" for number in range(9)]
    everything, two = np.arange(9), np.array([0, 1])
    assert untested_class_warnings(names, everything, everything) == []
    assert untested_class_warnings(names, np.arange(8), everything) == [
        "no test image of class 8: its accuracy is not known"
    ]
    (warning,) = untested_class_warnings(names, two, everything)
    assert warning.startswith("no test image of 7 classes (class 2, class 3, class 4, class 5, ")
    assert untested_class_warnings(names, two, two) == []


def test_a_validation_split_of_the_data_is_kept(vectors):
    splits = np.array(["train", "val", "test"] * 20)
    parts = make_splits(vectors(splits=splits), 0)
    assert parts.own_val
    assert set(parts.val.splits) == {"val"}
    assert (len(parts.fit), len(parts.final)) == (20, 40)


def test_the_seed_determines_the_held_out_images(vectors):
    first, again, other = (make_splits(vectors(), seed).val.ids for seed in (0, 0, 1))
    assert first == again != other


def test_augmented_views_stay_with_their_image_and_val_has_none(tmp_path, colours):
    images = add_augmented_views(colours(30), "basic", 3)
    embeddings = extract(images, cache=tmp_path, backbone="resnet18", weights="random", resize="32")
    parts = make_splits(embeddings, 0)
    assert not any("#view" in name for name in parts.val.ids)
    assert not {name.partition("#")[0] for name in parts.fit.ids} & set(parts.val.ids)
    assert len(parts.fit) == 4 * (20 - len(parts.val))
    assert train_counts(parts.final).tolist() == [10, 10]
    assert without_views(embeddings).ids == colours(30).ids


@pytest.mark.parametrize(
    "splits",
    [["train"] * 60, ["test"] * 60, ["train", *["test"] * 59]],
    ids=["no test", "no train", "one class"],
)
def test_too_few_images_are_refused(splits, vectors):
    with pytest.raises(DataError, match="too few images"):
        make_splits(vectors(splits=np.array(splits)), 0)


def test_columns_that_are_not_finite_are_refused(vectors):
    found = vectors()
    x = found.x.copy()
    x[7, 2] = np.inf
    with pytest.raises(DataError, match=r"1 columns .*first column 2, image 7"):
        make_splits(replace(found, x=x), 0)


def test_a_subset_applies_to_train_only(vectors):
    embeddings = vectors(240)
    parts = make_splits(embeddings, 0, "longtail:if=10")
    counts = np.sort(np.bincount(parts.final.y))
    assert counts[-1] / counts[0] == pytest.approx(10, rel=0.3)
    assert parts.test.ids == make_splits(embeddings, 0).test.ids
    with pytest.raises(SpecError, match="unknown subset 'tail'"):
        make_splits(embeddings, 0, "tail:if=10")


def test_with_a_subset_the_validation_split_is_not_fitted_on(vectors):
    splits = np.array(["train", "val", "test"] * 80)
    parts = make_splits(vectors(240, splits=splits), 0, "kshot:k=3")
    assert (len(parts.fit), len(parts.val), len(parts.final)) == (12, 80, 12)


def test_no_train_images_at_all_are_refused_before_a_subset_is_drawn(vectors):
    embeddings = vectors(12, np.full(12, "test"))
    for subset in (None, "longtail:if=2"):
        with pytest.raises(DataError, match="too few images: 0 train images"):
            make_splits(embeddings, 0, subset)
