"""Comparison of saved runs, tuning, rejection and calibration of runs."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError, RunError, SpecError
from featkit.evaluation import Predictions
from featkit.evaluation.intervals import wilson
from featkit.runs.card import read_card
from featkit.runs.compare import RunComparison, compare_runs, over_seeds
from featkit.runs.directory import save_run
from featkit.runs.features import load_features
from featkit.runs.fit import FitConfig, fit_run
from featkit.runs.results import read_run


@pytest.fixture
def source(tmp_path):
    given = {
        "data": "digits",
        "weights": "random",
        "resize": "32",
        "limit": "train=150,test=120",
        "layer": "layer1",
        "precision": "fp32",
    }
    return load_features(given, tmp_path / "cache", Compute())


def test_runs_on_the_same_images_are_compared_in_pairs(source, tmp_path):
    runs = [
        fit_run(source, head) for head in ("linear", "knn:k=1", "prototypical:metric=euclidean")
    ]
    found = compare_runs([save_run(run, tmp_path / "out", {}) for run in runs])
    assert [report.top1 for _, report in found.runs] == sorted(
        (run.report.top1 for run in runs), reverse=True
    )
    assert len(found.pairs) == 3
    (pair,) = [
        pair
        for pair in found.pairs
        if {pair.a, pair.b} == {f"{head} on ResNet-18, untrained" for head in ("linear", "knn:k=1")}
    ]
    by_head = {run.head_spec: run.report.top1 for run in runs}
    assert abs(pair.difference) == pytest.approx(abs(by_head["linear"] - by_head["knn:k=1"]))
    assert found.to_dict()["pairs"][0]["p_holm"] >= found.to_dict()["pairs"][0]["p"]


def test_a_comparison_of_heads_with_trained_networks_says_that_they_use_other_images(source):
    head = fit_run(source, "prototypical").report
    network = replace(head, provenance={**head.provenance, "training": {}})
    mixed = RunComparison((("head", head), ("network", network)), ())
    assert mixed.note.startswith("Heads are fitted on the training and validation images, trained")
    assert mixed.to_dict()["note"] == mixed.note
    for same in (head, network):
        assert RunComparison((("a", same), ("b", same)), ()).note == ""


def test_runs_on_different_images_are_refused(source, tmp_path):
    other = replace(source, embeddings=source.embeddings.take(source.embeddings.y.argsort()[:200]))
    runs = [
        save_run(fit_run(each, "prototypical"), tmp_path / str(place), {})
        for place, each in enumerate((source, other))
    ]
    with pytest.raises(DataError, match="different test images"):
        compare_runs(runs)


def test_directories_that_cannot_be_compared_are_refused(source, tmp_path):
    run = save_run(fit_run(source, "prototypical"), tmp_path / "out", {})
    with pytest.raises(SpecError, match="given twice"):
        compare_runs([run, run])
    with pytest.raises(RunError, match=r"results\.json is missing"):
        compare_runs([run, tmp_path])
    results = (run / "results.json").read_text()
    (run / "results.json").write_text("{}")
    with pytest.raises(RunError, match="cannot be read as a run"):
        compare_runs([run, tmp_path])
    (run / "results.json").write_text(results)


@pytest.mark.parametrize("name", ["results.json", "predictions.csv", "card.json"])
def test_no_flipped_bit_of_a_file_that_compare_reads_goes_unnoticed(source, tmp_path, name):
    run = save_run(fit_run(source, "prototypical"), tmp_path / "out", {})
    before = read_run(run)[1]
    data = (run / name).read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (run / name).write_bytes(damaged)
        if name == "card.json":  # a changed space between values changes nothing
            with suppress(RunError):
                assert read_run(run)[1].to_dict() == before.to_dict()
        else:
            with pytest.raises(RunError):
                read_run(run)
    (run / name).write_bytes(data)
    assert read_run(run)[1].to_dict() == before.to_dict()


def test_a_repeated_run_keeps_the_files_of_others_and_replaces_its_own(source, tmp_path):
    run = fit_run(source, "prototypical")
    directory = save_run(run, tmp_path / "out", {"confusion.png": b"1", "curve.png": b"1"})
    (directory / "model.onnx").write_bytes(b"exported")
    (directory / "notes").mkdir()
    (directory / "notes" / "a.txt").write_text("mine")
    save_run(run, tmp_path / "out", {"confusion.png": b"2"})
    names = sorted(path.name for path in directory.iterdir())
    assert names == [
        *("card.json", "confusion.png", "head.skops", "model.onnx", "notes"),
        *("predictions.csv", "results.json"),
    ]
    assert (directory / "confusion.png").read_bytes() == b"2"
    assert (directory / "notes" / "a.txt").read_text() == "mine"
    assert sorted(read_card(directory).files) == [
        *("confusion.png", "head.skops", "predictions.csv", "results.json")
    ]


def test_a_tuned_run_records_its_candidates_and_does_not_use_test_images(source):
    run = fit_run(source, "prototypical", config=FitConfig(tune=True))
    shuffled = replace(source.embeddings, y=source.embeddings.y.copy())
    test = shuffled.splits == "test"
    shuffled.y[test] = shuffled.y[test][::-1]
    blind = fit_run(
        replace(source, embeddings=shuffled), "prototypical", config=FitConfig(tune=True)
    )
    assert run.search == blind.search
    assert run.search.best.top1 == max(tried.top1 for tried in run.search.candidates)
    best = run.search.best.options
    assert {name: run.head.get_params()[name] for name in best} == best
    with pytest.raises(SpecError, match="--tune chooses the options"):
        fit_run(source, "knn:k=1", config=FitConfig(tune=True))


def test_rejection_trades_coverage_for_accuracy(source):
    report = fit_run(source, "linear", config=FitConfig(reject=0.3)).report
    found = report.rejection
    assert 0.5 < found.coverage < 0.9
    assert found.top1 > report.top1
    assert found.answered == round(found.coverage * report.n)


def test_the_temperature_is_fitted_on_val_and_changes_no_prediction(source):
    report = fit_run(source, "svm").report
    assert report.temperature is not None
    assert report.nll_calibrated < report.nll


def of_seed(hits, rows):
    """Return predictions on the images ``rows``, of which the first ones are correct."""
    y = np.zeros(len(rows), int)
    return Predictions(
        [f"{row}.png" for row in rows], y, (np.arange(len(rows)) >= hits).astype(int)
    )


def test_over_seeds_gives_mean_deviation_and_the_pooled_interval():
    found = over_seeds([of_seed(50, range(100)), of_seed(70, range(100))])
    assert (found.mean, found.deviation) == (pytest.approx(0.6), pytest.approx(0.1414, abs=1e-4))
    assert found.n == 100
    low, high = found.interval95
    assert 0.48 < low < 0.6 < high < 0.71  # two seeds: over test images, not t with one degree
    assert found.to_dict()["images"] == 100


def test_seeds_of_similar_accuracy_do_not_have_a_narrower_interval_than_their_images_allow():
    """Student's t over 90, 91, 92 and 91 % would be 89.7 to 92.3 %, from 100 images in all."""
    same = over_seeds([of_seed(hits, range(100)) for hits in (90, 91, 92, 91)])
    assert same.interval95 == pytest.approx(wilson(91, 100), abs=0.012)
    other = [range(start, start + 100) for start in (0, 100, 200, 300)]
    apart = over_seeds([of_seed(h, rows) for h, rows in zip((90, 91, 92, 91), other, strict=True)])
    assert apart.interval95 == pytest.approx(wilson(364, 400), abs=0.005)
    assert apart.n == 400
