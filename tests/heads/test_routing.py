"""Groups of samples in the inner folds of heads, also through scikit-learn's metadata routing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import sklearn
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_validate
from sklearn.pipeline import make_pipeline

from featkit import ImageEmbedder
from featkit.embeddings.pipeline import Compute
from featkit.heads import CORRECTIONS, balance, make_head, svm
from featkit.heads.balance import BalancedHead
from featkit.heads.base import UnfitDataError
from featkit.heads.corrections import Correction
from featkit.heads.multilabel import MultiLabelHead
from featkit.heads.search import search, search_correction
from featkit.heads.svm import SVMHead
from featkit.images.augment import original_id
from featkit.runs.features import FeatureSet, load_features
from featkit.runs.fit import FitConfig, fit_run, group_parts
from featkit.runs.folds import fit_folds
from featkit.runs.label_folds import fit_label_folds
from featkit.runs.multilabel import fit_labels as fit_labels_run
from featkit.runs.splits import make_splits, whole_split

HEAD = "svm:scale=none"
Rows = NDArray[np.float32]


@dataclass
class Calibrations:
    """The rows and folds of every calibration; rows of a group are known by their content."""

    groups: dict[bytes, str] = field(default_factory=dict)
    seen: list[tuple[Rows, NDArray[np.intp]]] = field(default_factory=list)

    def expect(self, x: Rows, groups: NDArray[np.str_]) -> None:
        for row, group in zip(x, groups.tolist(), strict=True):
            self.groups[row.tobytes()] = group

    @property
    def crossing(self) -> int:
        """Number of groups with rows in two folds of a calibration, of rows that are used in it."""
        count = 0
        for rows, folds_of_rows in self.seen:
            folds: dict[str, set[int]] = {}
            for row, fold in zip(rows, folds_of_rows.tolist(), strict=True):
                group = self.groups.get(row.tobytes())
                if group is None:  # a synthetic sample
                    assert fold == -1
                elif fold >= 0:
                    folds.setdefault(group, set()).add(fold)
            count += sum(len(each) > 1 for each in folds.values())
        return count


@pytest.fixture
def calibrations(monkeypatch: pytest.MonkeyPatch) -> Calibrations:
    found = Calibrations()
    fit_machines = SVMHead._fit_machines

    def record(head: SVMHead, samples: Any) -> Any:
        data = fit_machines(head, samples)
        found.seen.append((samples.x, data.folds))
        return data

    monkeypatch.setattr(SVMHead, "_fit_machines", record)
    return found


@pytest.fixture(scope="module")
def samples() -> tuple[Rows, NDArray[np.int64], NDArray[np.str_]]:
    """Return 20 groups of six similar samples of three classes, in 8 dimensions."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(20), 6)
    y = codes % 3
    x = rng.normal(size=(20, 8))[codes] + 0.2 * rng.normal(size=(120, 8))
    x[np.arange(120), y] += 1.0
    return x.astype(np.float32), y, np.array([f"p{code}" for code in codes])


def fit_svm(x: Rows, y: Any, groups: Any) -> Any:
    return make_head(HEAD).fit(x, y, groups=groups)


def fit_labels(x: Rows, y: Any, groups: Any) -> Any:
    return MultiLabelHead(head=HEAD).fit(x, np.eye(3, dtype=int)[y], groups=groups)


def tune(x: Rows, y: Any, groups: Any) -> Any:
    return search("svm", x, y, x, y, groups=groups)


def tune_correction(x: Rows, y: Any, groups: Any) -> Any:
    head = BalancedHead(head=HEAD, correction="effective")
    return search_correction(head, x, y, x, y, groups=groups)


@pytest.mark.parametrize("fit", [fit_svm, fit_labels, tune_correction])
def test_no_group_is_in_two_folds_of_a_calibration(
    samples: Any, calibrations: Calibrations, fit: Callable[..., Any]
) -> None:
    """Without the groups, folds separate them, and the probabilities are too high."""
    x, _, groups = samples
    calibrations.expect(x, groups)
    fit(*samples)
    assert calibrations.seen
    assert calibrations.crossing == 0
    fit(*samples[:2], None)
    assert calibrations.crossing > 0


def test_the_scores_of_a_search_are_calibrated_in_groups(
    samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temperature is fitted on them; the scaling of the best candidate may be any."""
    folds = []
    group_folds = svm._group_folds

    def record(groups: Any, codes: Any) -> Any:
        folds.append(group_folds(groups, codes))
        return folds[-1]

    monkeypatch.setattr(svm, "_group_folds", record)
    tune(*samples)
    (found,) = folds
    assert all(len(set(found[samples[2] == group])) == 1 for group in set(samples[2]))


@pytest.mark.parametrize(
    "correction",
    [name for name in CORRECTIONS.names() if CORRECTIONS.make(name).applies(SVMHead())],
)
def test_corrections_pass_groups_on(
    samples: Any, calibrations: Calibrations, correction: str
) -> None:
    """Drawn samples keep their group; synthetic ones have none and are left out."""
    if correction == "smote":
        pytest.importorskip("imblearn")
    x, y, groups = samples
    rows = np.flatnonzero((y > 0) | (np.arange(len(y)) < 60))
    x, y, groups = x[rows], y[rows], groups[rows]
    calibrations.expect(x, groups)
    head = BalancedHead(head=HEAD, correction=correction).fit(x, y, groups)
    assert len(calibrations.seen) == 1
    assert calibrations.crossing == 0
    assert not head.warnings_


def test_a_correction_that_does_not_know_groups_is_warned_of(
    samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of a plug-in, whose ``train`` has no such parameter; other heads need none."""

    class Reversed(Correction):
        def train(self, head: Any, x: Any, y: Any, seed: int) -> Any:  # type: ignore[override]
            return head.fit(x[::-1], y[::-1])

    monkeypatch.setattr(balance, "_make_correction", lambda spec: Reversed())
    head = BalancedHead(head=HEAD, correction="reversed").fit(*samples)
    assert ["does not pass groups on" in text for text in head.warnings_] == [True]
    assert BalancedHead(correction="reversed").fit(*samples).warnings_ == ()


def test_the_slope_is_that_of_whole_groups(samples: Any) -> None:
    """Images of a held-out group look like those of no other: scores are lower than without."""
    x, y, groups = samples
    plain, grouped = make_head(HEAD).fit(x, y), fit_svm(*samples)
    assert grouped.calibration_[0] < 0.8 * plain.calibration_[0]
    np.testing.assert_array_equal(grouped.predict(x), plain.predict(x))
    order = np.random.default_rng(1).permutation(len(x))
    shuffled = fit_svm(x[order], y[order], groups[order])
    np.testing.assert_allclose(shuffled.calibration_, grouped.calibration_, rtol=1e-6)
    numbers = np.unique(groups, return_inverse=True)[1]
    np.testing.assert_allclose(fit_svm(x, y, numbers).calibration_, grouped.calibration_)


def test_few_groups_are_as_many_folds_and_one_group_is_not_divided(samples: Any) -> None:
    x, y, _ = samples
    two = svm._group_folds(np.array(["a", "b"])[np.arange(120) % 2], y)
    assert set(two.tolist()) == {0, 1}
    with_empty = svm._group_folds(np.array(["a", "b", ""])[np.arange(120) % 3], y)
    assert set(with_empty.tolist()) == {0, 1, -1}
    single = fit_svm(x, y, np.full(120, "a"))
    assert single.calibration_[0] == svm.DEFAULT_SLOPE
    assert single.warnings_ == ("svm: too few images to calibrate the scores, which use a default",)
    assert fit_svm(x, y, np.full(120, "")).calibration_[0] == svm.DEFAULT_SLOPE


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        pytest.param(["a"], r"groups of shape \(1,\) for 120 samples", id="too few"),
        pytest.param([1.0, float("nan")] * 60, "sample 1 has no group .60 of 120", id="NaN"),
        pytest.param(["a", None, "b"] * 40, "sample 1 has no group .40 of 120", id="None"),
    ],
)
@pytest.mark.parametrize("head", [SVMHead(), BalancedHead()], ids=["svm", "balanced"])
def test_missing_groups_are_refused(
    samples: Any, head: BaseEstimator, groups: list[Any], message: str
) -> None:
    with pytest.raises(UnfitDataError, match=message):
        head.fit(*samples[:2], groups=groups)


@pytest.fixture
def routing() -> Iterator[None]:
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("head", ["linear", HEAD])
def test_a_search_over_groups_passes_them_to_the_folds_and_to_the_head(
    head: str, tmp_path: Any, calibrations: Calibrations
) -> None:
    """``GridSearchCV`` of a pipeline from images, with scikit-learn's metadata routing."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (36, 8, 8, 3)).astype(np.uint8)
    y, groups = np.arange(36) % 2, np.arange(36) // 4
    embedder = ImageEmbedder(weights="random", resize="32", layer="layer1", cache=tmp_path)
    calibrations.expect(embedder.transform(images), groups.astype(str))
    model = make_pipeline(embedder, make_head(head))
    folds = StratifiedGroupKFold(3)
    found = GridSearchCV(model, {f"{model.steps[-1][0]}__scale": [None]}, cv=folds)
    found.fit(images, y, groups=groups)
    assert found.n_splits_ == 3
    outer = cross_validate(found, images, y, params={"groups": groups}, cv=folds)
    assert len(outer["test_score"]) == 3
    # Three inner folds and one final fit for the search, and for each of the outer folds.
    assert len(calibrations.seen) == (16 if head == HEAD else 0)
    assert calibrations.crossing == 0


@pytest.mark.usefixtures("routing")
def test_routing_can_be_switched_off(samples: Any, calibrations: Calibrations) -> None:
    x, y, groups = samples
    calibrations.expect(x, groups)
    head = make_head(HEAD).set_fit_request(groups=False)
    cross_validate(head, x, y, params={"groups": groups}, cv=StratifiedGroupKFold(3))
    assert calibrations.crossing > 0


@pytest.fixture
def grouped(tmp_path: Any) -> FeatureSet:
    given = {"data": "digits", "weights": "random", "resize": "16", "layer": "layer1"}
    given["limit"] = "train=120,test=40"
    source = load_features(given, tmp_path / "cache", Compute())
    groups = np.array([f"g{row // 3}" for row in range(len(source.embeddings))])
    # The splits must not separate a group either.
    splits = np.where(np.arange(len(groups)) // 3 % 4 == 0, "test", "train")
    return replace(source, embeddings=replace(source.embeddings, groups=groups, splits=splits))


@pytest.mark.parametrize(
    ("head", "config"),
    [
        pytest.param(HEAD, FitConfig(), id="head"),
        pytest.param(HEAD, FitConfig(balance="oversample"), id="correction"),
        pytest.param(HEAD, FitConfig(balance="effective", tune=True), id="tuned correction"),
    ],
)
def test_runs_on_grouped_images_keep_groups_together_in_the_calibration(
    grouped: FeatureSet, calibrations: Calibrations, head: str, config: FitConfig
) -> None:
    """Of the head that is fitted on train and of the final one."""
    embeddings = grouped.embeddings
    assert embeddings.groups is not None
    calibrations.expect(embeddings.x, embeddings.groups)
    fit_run(grouped, head, config=config)
    assert len(calibrations.seen) >= 2
    assert calibrations.crossing == 0


@pytest.fixture
def augmented(tmp_path: Any) -> FeatureSet:
    given = {"data": "digits", "weights": "random", "resize": "16", "layer": "layer1"}
    given |= {"limit": "train=60,test=30", "augment": "shift"}
    return load_features({**given, "views": 2}, tmp_path / "cache", Compute())


def two_labels(source: FeatureSet) -> FeatureSet:
    """Return the same images with the labels ``odd`` and ``large``."""
    embeddings = source.embeddings
    digits = np.array([int(name) for name in embeddings.classes])[embeddings.y]
    sets = np.array(["(none)", "odd", "large", "large;odd"])[digits % 2 + 2 * (digits > 4)]
    classes, y = np.unique(sets, return_inverse=True)
    changed = replace(
        embeddings, y=y.astype(np.int64), classes=tuple(classes.tolist()), multilabel=True
    )
    return replace(source, embeddings=changed)


def check_inner_splits(source: FeatureSet, calibrations: Calibrations) -> None:
    """Fit in every way that divides training images; no image may have views on two sides."""
    embeddings = source.embeddings
    originals = np.array([original_id(name) for name in embeddings.ids])
    calibrations.expect(embeddings.x, originals)
    ways: list[Callable[[], Any]] = [
        lambda: fit_run(source, HEAD),
        lambda: fit_run(source, "svm", config=FitConfig(tune=True)),
        lambda: fit_run(source, HEAD, config=FitConfig(balance="effective", tune=True)),
        lambda: fit_run(source, HEAD, config=FitConfig(balance="oversample")),
        lambda: fit_folds(source, HEAD, folds=2, seed=1),
        lambda: fit_labels_run(two_labels(source), HEAD),
        lambda: fit_labels_run(two_labels(source), "svm", config=FitConfig(tune=True)),
        lambda: fit_label_folds(two_labels(source), HEAD, folds=2),
    ]
    for way in ways:
        calibrations.seen.clear()
        way()
        assert calibrations.seen
        assert calibrations.crossing == 0
    for splits in (make_splits(embeddings, 3), whole_split(embeddings, 3)):
        fitted, held = (
            {original_id(name) for name in part.ids} for part in (splits.fit, splits.val)
        )
        assert held
        assert not fitted & held


def test_views_of_an_image_are_on_one_side_of_every_inner_split(
    augmented: FeatureSet, calibrations: Calibrations
) -> None:
    assert augmented.embeddings.groups is None
    assert len(augmented.embeddings.part("train")) == 180
    check_inner_splits(augmented, calibrations)


def test_views_of_an_image_are_of_its_group(
    augmented: FeatureSet, calibrations: Calibrations
) -> None:
    groups = np.array([f"g{original_id(name)}" for name in augmented.embeddings.ids])
    embeddings = replace(augmented.embeddings, groups=groups)
    assert embeddings.inner_groups is groups
    check_inner_splits(replace(augmented, embeddings=embeddings), calibrations)


def test_images_without_groups_and_views_are_independent(grouped: FeatureSet) -> None:
    assert replace(grouped.embeddings, groups=None).inner_groups is None


def test_only_runs_of_heads_that_use_groups_have_other_ids() -> None:
    """Their numbers differ from those of version 0.4.0, and those of other heads do not."""
    for has_views in (False, True):
        linear = group_parts("linear", ["a", "b"], has_views=has_views)
        assert linear == ["groups", "a", "b"]
        svm = group_parts("svm:C=3", ["a", "b"], has_views=has_views)
        assert svm == ["groups", "a", "b", "grouped calibration"]
        assert group_parts("linear", [], has_views=has_views) == []
    assert group_parts("svm", [], has_views=False) == []
    assert group_parts("svm", [], has_views=True) == ["grouped views"]
