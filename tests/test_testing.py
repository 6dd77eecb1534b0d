"""Checks for plug-in authors accept correct parts and name the fault of others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from featkit.backbones import load_backbone
from featkit.testing import check_backbone, check_head, check_source


class NearestMean(ClassifierMixin, BaseEstimator):
    """A correct head; tests below replace its methods with wrong ones."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.means_ = np.stack([X[y == label].mean(axis=0) for label in self.classes_])
        return self

    def predict_proba(self, X):
        distances = ((X[:, None] - self.means_) ** 2).sum(axis=2)
        scores = np.exp(-distances)
        return scores / np.maximum(scores.sum(axis=1, keepdims=True), 1e-300)

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def test_a_correct_plug_in_head_passes():
    check_head(NearestMean)


class LabelsAsPositions(NearestMean):
    def predict(self, X):
        return self.predict_proba(X).argmax(axis=1)


class OneColumn(NearestMean):
    def predict_proba(self, X):
        return super().predict_proba(X)[:, 0]


class NotFinite(NearestMean):
    def predict_proba(self, X):
        return super().predict_proba(X) * np.nan


class Random(NearestMean):
    def predict_proba(self, X):
        scores = super().predict_proba(X) + 0.01 * np.random.default_rng().random((len(X), 3))
        self.last_ = scores
        return scores

    def predict(self, X):
        return self.classes_[self.last_.argmax(axis=1)]


class ChangesFeatures(NearestMean):
    def fit(self, X, y):
        X -= X.mean(axis=0)
        return super().fit(X, y)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (ChangesFeatures, "changes the features"),
        (LabelsAsPositions, "predict\\(\\) differs"),
        (OneColumn, "returns shape"),
        (NotFinite, "not finite"),
        (Random, "other scores"),
        (BaseEstimator, "no method fit"),
    ],
)
def test_a_wrong_head_is_named(head, message):
    with pytest.raises(AssertionError, match=message):
        check_head(head, persist=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.full(12, 7)}, "positions in classes"),
        ({"splits": np.full(12, "holdout")}, "not holdout"),
        ({"ids": ("a.png",) * 12}, "unique"),
        ({"load": lambda row: np.zeros((4, 4), np.uint8)}, "height, width, 3"),
        ({"key": lambda row: str(row)}, "SHA-256"),
    ],
)
def test_a_wrong_source_is_named(colours, changes, message):
    with pytest.raises(AssertionError, match=message):
        check_source(replace(colours(12), **changes))


def test_a_wrong_backbone_is_named():
    backbone = load_backbone("resnet18", weights="random", resize="32")

    def build():
        return backbone.build().train()

    with pytest.raises(AssertionError, match="eval mode"):
        check_backbone(replace(backbone, build=build))
    with pytest.raises(AssertionError, match="not str"):
        check_backbone("resnet18")
