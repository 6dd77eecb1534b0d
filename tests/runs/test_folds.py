"""Cross-validation of heads: folds, protocol, reports and comparison."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.model_selection import PredefinedSplit, StratifiedKFold, cross_val_predict

import featkit
from featkit.cli.compare import print_comparison
from featkit.cli.fit import run_text
from featkit.cli.runs import runs
from featkit.embeddings.base import Embeddings
from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError, OptionsError, SpecError
from featkit.evaluation.compare import mcnemar
from featkit.evaluation.intervals import wilson
from featkit.heads import make_head
from featkit.reports.publication import publication_table
from featkit.reports.run import run_report, run_view
from featkit.reports.wording import accuracy_text
from featkit.runs.compare import compare_runs
from featkit.runs.directory import load_run, save_run
from featkit.runs.features import FeatureSet
from featkit.runs.fit import FitConfig, FittedHead, fit_head, fit_run
from featkit.runs.folds import assign_folds, find_fold_copies, fit_folds
from featkit.runs.results import read_run
from featkit.runs.summary import summarise_run
from featkit.studies.distill import make_teacher
from featkit.studies.inspect import inspect_run
from featkit.training.config import TrainingConfig

OPTIONS = {"backbone": "resnet18", "weights": "random", "resize": "32"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """Return features of 240 digits."""
    cache = tmp_path_factory.mktemp("cache")
    run = featkit.fit("digits", limit="train=150,val=30,test=60", cache=cache, **OPTIONS)
    return run.source


@pytest.mark.parametrize("head", ["knn:k=3", "linear", "prototypical"])
def test_out_of_fold_predictions_are_those_of_scikit_learn(source: FeatureSet, head: str) -> None:
    """``cross_val_predict`` on the same folds; the folds are those of ``StratifiedKFold``."""
    run = fit_folds(source, head, folds=4, seed=3)
    x, y = source.embeddings.x, source.embeddings.y
    fold_of = run.folds.fold_of[0]
    expected = cross_val_predict(make_head(head, seed=3), x, y, cv=PredefinedSplit(fold_of))
    assert run.predictions.ids == source.embeddings.ids
    assert np.array_equal(run.predictions.predicted, expected)
    splitter = StratifiedKFold(4, shuffle=True, random_state=3)
    for fold, (_, rows) in enumerate(splitter.split(x, y)):
        assert np.array_equal(np.flatnonzero(fold_of == fold), rows)
    assert run.report.top1 == pytest.approx(np.mean(expected == y))
    assert run.report.n == len(y)


def test_the_final_head_is_fitted_on_all_images(source: FeatureSet) -> None:
    """And has a temperature, as the heads of the folds have."""
    run = fit_folds(source, "knn:k=1", folds=3)
    assert np.array_equal(run.head.predict(source.embeddings.x), source.embeddings.y)
    assert run.report.provenance["n_train"] == len(source.embeddings)
    assert run.report.temperature is not None
    assert run.report.nll_calibrated < run.report.nll


def test_the_protocol_in_each_fold_is_that_of_a_run(source: FeatureSet) -> None:
    """Hyperparameters and threshold are chosen separately in each fold, without its test images."""
    config = FitConfig(tune=True, reject=0.2)
    run = fit_folds(source, "knn", folds=3, config=config)
    assert run.search is not None
    assert 0.5 < run.report.rejection.coverage < 1
    assert run.report.provenance["tuned"]


def test_repeats_divide_the_images_anew(source: FeatureSet) -> None:
    """The first of them is a run without repeats; the mean is over all of them."""
    once, thrice = (fit_folds(source, "knn", folds=3, repeats=repeats) for repeats in (1, 3))
    assert once.id != thrice.id
    assert np.array_equal(once.predictions.predicted, thrice.predictions.predicted)
    assert once.report.interval95 == thrice.report.interval95
    scores = thrice.report.folds
    assert len(scores.accuracies) == 9
    assert scores.top1 == pytest.approx(np.mean(thrice.folds.predicted == source.embeddings.y))
    assert "out-of-fold predictions of 3 folds; over 3 repeats: top-1" in str(thrice.report)
    assert not np.array_equal(thrice.folds.fold_of[0], thrice.folds.fold_of[1])


def test_runs_on_folds_are_saved_and_compared(source: FeatureSet, tmp_path: Path) -> None:
    """By McNemar's test on the pooled predictions and by the corrected t-test."""
    paths = []
    for head in ("knn:k=1", "prototypical"):
        run = fit_folds(source, head, folds=3, repeats=2)
        paths.append(save_run(run, tmp_path, {}))
        assert read_run(paths[-1])[1].to_dict() == run.report.to_dict()
    with (paths[0] / "folds.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(source.embeddings)
    assert {(row["repeat"], row["fold"]) for row in rows} == {
        (str(repeat), str(fold)) for repeat in (1, 2) for fold in (1, 2, 3)
    }
    found = compare_runs(paths)
    for row, (_, report), path in zip(
        found.to_dict()["runs"], found.runs, found.directories, strict=True
    ):
        shown = summarise_run(path)
        assert row["top1"] == shown.top1 == report.folds.top1 != report.top1
        assert row["interval95"] == shown.interval95 == report.folds.interval95
        assert f"top-1 accuracy {100 * shown.top1:.1f}%" in accuracy_text(report)
    assert "240 images, in %" in publication_table(found).caption
    (pooled,), (resampled,) = found.pairs, found.folds
    assert pooled.n == len(source.embeddings)
    assert (resampled.folds, resampled.repeats) == (3, 2)
    assert "corrected t-test over 3 folds x 2 repeats" in resampled.sentence
    assert found.to_dict()["folds"][0]["p"] == resampled.p
    assert found.note == ""


@pytest.mark.parametrize("other", [{"folds": 4}, {"folds": 3, "repeats": 2}, {"seed": 1}], ids=str)
def test_runs_on_different_folds_are_compared_by_their_pooled_predictions(
    source: FeatureSet, tmp_path: Path, other: dict[str, int]
) -> None:
    """Each prediction is of a head that was fitted without the image; a t-test has no meaning."""
    first = fit_folds(source, "knn:k=1", folds=3)
    second = fit_folds(source, "prototypical", **{"folds": 3, **other})
    paths = [save_run(run, tmp_path, {}) for run in (first, second)]
    found = compare_runs(paths)
    (pair,) = found.pairs
    right, wrong = first.predictions.correct, second.predictions.correct
    assert pair.n == len(source.embeddings)
    only = {int(np.sum(right & ~wrong)), int(np.sum(wrong & ~right))}
    assert {pair.only_a, pair.only_b} == only
    assert pair.p == mcnemar(pair.only_a, pair.only_b)
    assert found.folds == ()
    assert found.common == ()
    assert "have different folds. The paired tests over images hold, but" in found.note
    assert "--folds, --repeats, --seed and --group" in found.to_dict()["note"]


def test_of_three_runs_those_on_the_same_folds_are_compared_over_folds(
    source: FeatureSet, tmp_path: Path
) -> None:
    """With Holm correction over the tests that are made: three pooled ones and one of folds."""
    runs = [fit_folds(source, head, folds=3) for head in ("knn:k=1", "prototypical")]
    runs.append(fit_folds(source, "knn:k=3", folds=4))
    found = compare_runs([save_run(run, tmp_path, {}) for run in runs])
    assert [pair.comparisons for pair in found.pairs] == [3, 3, 3]
    (resampled,) = found.folds
    assert {resampled.a, resampled.b}.isdisjoint({"knn:k=3 on ResNet-18, untrained"})
    assert resampled.p_holm == resampled.p
    assert "left out for such runs" in found.note


def test_a_run_on_folds_is_compared_with_one_on_a_test_set_over_its_test_images(
    source: FeatureSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both have a prediction of these by a head that was not trained on them."""
    folded = fit_folds(source, "knn:k=1", folds=3, repeats=2)
    tested = fit_run(source, "prototypical")
    paths = [save_run(run, tmp_path, {}) for run in (folded, tested)]
    found = compare_runs(paths)
    (pair,) = found.pairs
    rows = [folded.predictions.ids.index(name) for name in tested.predictions.ids]
    top1 = {True: float(np.mean(folded.predictions.correct[rows])), False: tested.report.top1}
    assert pair.n == tested.report.n < folded.report.n
    assert abs(pair.difference) == pytest.approx(abs(top1[True] - top1[False]))
    for (_, report), common in zip(found.runs, found.common, strict=True):
        assert common.top1 == pytest.approx(top1[report.folds is not None])
        assert common.interval95 == pytest.approx(wilson(common.top1 * common.n, common.n))
    assert found.folds == ()
    assert f"over the {tested.report.n} images that all runs were evaluated on" in found.note
    first = found.to_dict()["runs"][0]
    assert first["common_top1"] == max(top1.values())
    table = publication_table(found)
    assert f"same n = {tested.report.n} images" in table.caption
    assert table.numbers == ["top-1 accuracy"]
    print_comparison(found.runs, found.pairs, found.common)
    assert f"on {tested.report.n} common" in capsys.readouterr().out


def test_runs_on_folds_and_on_other_images_are_refused(source: FeatureSet, tmp_path: Path) -> None:
    """Without a common image; and if true classes of common images differ."""
    embeddings = source.embeddings
    train, test = (np.flatnonzero(embeddings.splits == split) for split in ("train", "test"))
    without_test = replace(source, embeddings=embeddings.take(train))
    folded = save_run(fit_folds(without_test, "knn", folds=3), tmp_path / "a", {})
    tested = save_run(fit_run(source, "knn:k=1"), tmp_path, {})
    with pytest.raises(DataError, match="no image was evaluated by all of the runs") as raised:
        compare_runs([folded, tested])
    assert "\n" not in str(raised.value)
    y = embeddings.y.copy()
    y[test[0]] = (y[test[0]] + 1) % len(embeddings.classes)
    relabelled = replace(source, embeddings=replace(embeddings, y=y))
    folded = save_run(fit_folds(relabelled, "knn", folds=3), tmp_path / "b", {})
    with pytest.raises(DataError, match="different true classes for 1 of"):
        compare_runs([folded, tested])


def with_labels(source: FeatureSet, y: list[int], groups: list[str] | None = None) -> Embeddings:
    """Return the first embeddings with other labels."""
    some = source.embeddings.take(np.arange(len(y)))
    named = None if groups is None else np.array(groups)
    return Embeddings(
        some.x, np.array(y), some.ids, ("a", "b", "c"), some.splits, some.recipe, named
    )


@pytest.mark.parametrize(
    ("y", "groups", "folds", "message"),
    [
        ([0, 0, 0, 1, 1, 1], None, 4, "--folds 4, but the largest class has 3 images"),
        ([0, 0, 0, 1, 1, 1, 2], None, 2, "class 'c' has one image, which is in one fold only"),
        ([0, 1] * 6, ["x", "x", "y", "y"] * 3, 3, "2 groups .x, y., too few for 3 splits or folds"),
        ([0, 1] * 4, ["x", "z", "y", "z"] * 2, 2, "all 4 images of class 'b' are in group 'z'"),
    ],
)
def test_images_that_cannot_be_divided_are_refused(
    source: FeatureSet, y: list[int], groups: list[str] | None, folds: int, message: str
) -> None:
    """In one line that says what to do."""
    with pytest.raises(DataError, match=message) as caught:
        assign_folds(with_labels(source, y, groups), folds, seed=0)
    assert "\n" not in str(caught.value)


def test_no_fold_separates_a_group(source: FeatureSet) -> None:
    """Each group is in one fold, and each class in several."""
    y = [0, 1] * 60
    groups = [f"g{row // 6}" for row in range(120)]
    fold_of = assign_folds(with_labels(source, y, groups), 5, seed=1)
    for group in set(groups):
        assert len(set(fold_of[np.array(groups) == group])) == 1
    assert np.bincount(fold_of).tolist() == [24] * 5


def test_contradictory_options_are_refused() -> None:
    """Before any work."""
    with pytest.raises(OptionsError, match="give --folds too"):
        featkit.fit("digits", repeats=3)
    with pytest.raises(OptionsError, match="leave out --seeds"):
        featkit.api.fit_heads(["knn"], seeds=2, folds=3, repeats=1, unknown=None)
    with pytest.raises(OptionsError, match="--folds test all images"):
        featkit.fit("digits", folds=3, perturb="fog:level=strong")
    with pytest.raises(SpecError, match="folds=1: give an integer of 2 or more"):
        featkit.fit("digits", folds=1)
    with pytest.raises(SpecError, match="repeats=0: give an integer of 1 or more"):
        featkit.fit("digits", folds=3, repeats=0)


def test_copies_in_other_folds_are_found(source: FeatureSet, tmp_path: Path) -> None:
    """Ten identical pictures with other names: half of a pair tells what the other half is."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 16, 3), dtype=np.uint8)
    for label in range(2):
        (tmp_path / "photos" / f"class {label}").mkdir(parents=True)
        for number in range(12):
            image = Image.fromarray(pixels[label, max(number, 4)])
            image.save(tmp_path / "photos" / f"class {label}" / f"{number}.png")
    options = {"head": "knn:k=1", "folds": 3, "cache": tmp_path, **OPTIONS}
    run = featkit.fit(tmp_path / "photos", **options)
    copied = [name for name in run.predictions.ids if int(Path(name).stem) <= 4]
    assert sorted(run.source.copies.identical) == sorted(copied)
    assert run.report.without_copies.copies == len(copied) == 10
    assert "without 10 copies of images of other folds" in str(run.report)
    with pytest.raises(DataError, match="10 of 24 images are in another of the 3 folds too"):
        featkit.fit(tmp_path / "photos", strict=True, **options)


def test_copies_in_other_folds_of_any_repeat_are_found(source: FeatureSet) -> None:
    """Two images of equal features share a fold of the first repeat, but not of the second."""
    y = source.embeddings.y
    first, second = (assign_folds(source.embeddings, 3, seed) for seed in (0, 1))
    twins = (y == y[0]) & (first == first[0]) & (second != second[0])
    other = int(np.flatnonzero(twins)[0])
    x = np.random.default_rng(0).normal(size=(len(y), 32))
    x[other] = x[0]
    changed = replace(source, embeddings=replace(source.embeddings, x=x))
    assert not find_fold_copies(changed, 3, 0).ids
    ids = source.embeddings.ids
    assert find_fold_copies(changed, 3, 0, repeats=2).ids == {ids[0], ids[other]}


def test_warnings_of_the_heads_of_folds_are_passed_on(
    source: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final head has none: two of three heads of folds do not converge."""
    fitted = []

    def fit_and_warn(*args: Any) -> FittedHead:
        found = fit_head(*args)
        fitted.append(found)
        if len(fitted) < 3:
            found.head.warnings_ = ("linear did not converge in 7 iterations",)
        return found

    monkeypatch.setattr("featkit.runs.folds.fit_head", fit_and_warn)
    run = fit_folds(source, "prototypical", folds=3)
    assert len(fitted) == 4
    assert run.report.warnings[-1] == "in 2 of 3 folds: linear did not converge in 7 iterations"
    assert "converge" not in "".join(run.report.warnings[:-1])


def test_a_run_on_folds_teaches_no_student(source: FeatureSet, tmp_path: Path) -> None:
    """Its head is fitted on the test images of the student; and it is shown as what it is."""
    path = save_run(fit_folds(source, "prototypical", folds=3), tmp_path, {})
    config = TrainingConfig(request=source.request, cache=source.path.parent)
    with pytest.raises(DataError, match="by --folds on all images and is fitted on all"):
        make_teacher(str(path), "linear", config, Compute(), tmp_path)
    shown = CliRunner().invoke(runs, ["show", str(path)])
    assert "n = 240 images in 3 folds)" in shown.output


def test_the_report_describes_folds(source: FeatureSet, tmp_path: Path) -> None:
    """No sentence speaks of a test set, and the command repeats the run."""
    config = FitConfig(tune=True, reject=0.2)
    run = fit_folds(source, "knn", folds=3, repeats=2, config=config)
    saved = load_run(save_run(run, tmp_path, {}))
    inspection = inspect_run(saved, cache=source.path.parent, compute=Compute(), heat_maps=False)
    view = run_view(inspection)
    scores = run.report.folds
    assert f"{100 * scores.top1:.1f}%" in view.headline
    assert "In 3-fold cross-validation, repeated 2 times, each of 240 images" in view.headline
    assert [row[0].text for row in view.folds.rows][3] == "repeat 2, fold 1"
    assert sum(scores.sizes) == 2 * 240
    (command,) = [text for name, text in view.commands if name == "Repeat the run"]
    assert command.endswith("--head knn --tune --reject 0.2 --folds 3 --repeats 2")
    assert (
        "below the threshold of their fold are rejected as unknown (final head: " in view.rejection
    )
    text = run_text(run)
    assert ") at the threshold of each fold (final head: " in text
    assert "at the temperature of each fold (final head: " in text
    assert run.report.plotted_temperature is None
    page = run_report(inspection)
    assert "test image" not in page
    assert "test set" not in page
