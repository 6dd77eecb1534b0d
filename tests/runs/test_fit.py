"""Fitting, evaluating, saving and loading one run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featkit.embeddings.pipeline import Compute
from featkit.errors import (
    CacheError,
    DataError,
    HeadError,
    RunError,
    SpecError,
    StaleCacheError,
    WeightsError,
)
from featkit.runs import card
from featkit.runs.card import seal
from featkit.runs.directory import load_run, save_run
from featkit.runs.features import load_features
from featkit.runs.fit import FitConfig, fit_run
from featkit.runs.predict import predict


@pytest.fixture
def given(photos):
    return {"data": str(photos), "backbone": "resnet18", "weights": "random", "resize": "32"}


@pytest.fixture
def source(given, tmp_path):
    return load_features(given, tmp_path / "cache", Compute())


@pytest.fixture
def saved(source, tmp_path):
    return save_run(fit_run(source, "prototypical"), tmp_path / "out", {"confusion.png": b"png"})


def test_a_run_is_evaluated_on_the_test_images(source):
    run = fit_run(source, "prototypical")
    assert run.report.n == (source.embeddings.splits == "test").sum() == 4
    assert run.report.provenance["n_train"] == (source.embeddings.splits != "test").sum()
    assert run.report.top1 > 0.5
    assert run.report.cost["peak_memory_mb"] > 10


@pytest.mark.parametrize("head", ["linear", "svm", "knn:k=3", "mlp", "prototypical"])
def test_the_same_run_gives_the_same_results(source, head):
    assert fit_run(source, head, seed=1).to_dict() == fit_run(source, head, seed=1).to_dict()


def test_a_run_converts_to_dict_frame_and_html(source):
    run = fit_run(source, "knn:k=1")
    assert json.loads(json.dumps(run.to_dict()))["run"] == run.id
    frame = run.to_frame()
    assert (frame["true"] == frame["predicted"]).mean() == run.report.top1
    assert run.id in run._repr_html_()


def test_another_seed_or_head_is_another_run(source):
    ids = {
        fit_run(source, head, seed=seed).id for head in ("knn:k=1", "knn:k=3") for seed in (0, 1)
    }
    assert len(ids) == 4


def test_a_run_directory_is_complete_and_its_results_have_no_times(saved):
    assert sorted(path.name for path in saved.iterdir()) == [
        *("card.json", "confusion.png", "head.skops", "predictions.csv", "results.json")
    ]
    assert saved.parent.name == "photos"
    found = json.loads((saved / "results.json").read_text())
    expected = {
        "run",
        "n",
        "top1",
        "top5",
        "balanced_accuracy",
        "macro_f1",
        "interval95",
        "per_class",
        "confusion",
    }
    assert expected <= found.keys()
    assert "seconds" not in json.dumps(found)


def test_a_saved_run_predicts(saved, photos):
    found = predict(
        load_run(saved), [str(photos / "red" / "0.png"), str(photos / "blue" / "1.png")], Compute()
    )
    assert [prediction.top[0][0] for prediction in found] == ["red", "blue"]
    assert all(abs(sum(value for _, value in prediction.top) - 1) < 1e-6 for prediction in found)


@pytest.mark.slow
def test_a_moved_run_predicts_the_same_in_a_fresh_process_without_pickle(saved, photos, tmp_path):
    image_file = str(photos / "red" / "0.png")
    here = predict(load_run(saved), [image_file], Compute())
    shutil.move(saved, tmp_path / "elsewhere")
    code = f"""
import pickle
def refuse(*args, **options):
    raise AssertionError("pickle")
pickle.load = pickle.loads = refuse
from pathlib import Path
from featkit.embeddings.pipeline import Compute
from featkit.runs.predict import predict
from featkit.runs.directory import load_run
print(predict(load_run(Path({str(tmp_path / "elsewhere")!r})), [{image_file!r}], Compute())[0].top)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(here[0].top), done.stderr


@pytest.mark.parametrize("part", ["card.json", "head.skops"])
def test_a_run_directory_with_a_missing_file_is_refused(saved, part):
    (saved / part).unlink()
    with pytest.raises(RunError, match=f"{part} is missing"):
        load_run(saved)


def test_a_run_id_without_its_folder_gives_the_path_of_the_run(saved, monkeypatch):
    monkeypatch.chdir(saved.parent.parent)
    monkeypatch.setattr(card, "RUNS_FOLDER", Path())
    with pytest.raises(RunError, match=f"did you mean {saved.parent.name}/{saved.name}"):
        load_run(Path(saved.name[:6]))


def test_a_changed_head_file_is_refused(saved):
    (saved / "head.skops").write_bytes((saved / "head.skops").read_bytes() + b" ")
    with pytest.raises(RunError, match="is not the head"):
        load_run(saved)


def test_a_head_file_with_an_untrusted_type_is_refused(saved):
    import hashlib

    import skops.io

    content = skops.io.dumps(Path("/tmp"))
    card = json.loads((saved / "card.json").read_text())
    card["head"]["sha256"] = hashlib.sha256(content).hexdigest()
    (saved / "head.skops").write_bytes(content)
    (saved / "card.json").write_text(json.dumps({**card, "sha256": seal(card)}))
    with pytest.raises(HeadError):
        load_run(saved)


def test_weights_other_than_those_of_the_run_are_refused(saved, photos):
    card = json.loads((saved / "card.json").read_text())
    card["request"]["weights"] = "random:9"
    (saved / "card.json").write_text(json.dumps({**card, "sha256": seal(card)}))
    with pytest.raises(WeightsError, match="random:0"):
        predict(load_run(saved), [str(photos / "red" / "0.png")], Compute())


def test_fit_without_options_uses_the_newest_cache_file(source, tmp_path):
    again = load_features({}, tmp_path / "cache", Compute())
    assert again.path == source.path
    assert str(source.path) in again.notes[0]


def test_cached_features_are_used_after_their_images_were_deleted(source, photos, tmp_path):
    shutil.rmtree(photos)
    again = load_features({}, tmp_path / "cache", Compute())
    np.testing.assert_array_equal(again.embeddings.x, source.embeddings.x)
    assert "not found" in again.notes[0]


def test_a_missing_image_folder_is_refused(source, photos, given, tmp_path):
    shutil.rmtree(photos)
    with pytest.raises(DataError):
        load_features(given, tmp_path / "cache", Compute())


def test_a_cache_file_can_be_given_by_path(source, given):
    np.testing.assert_array_equal(
        load_features({}, source.path, Compute()).embeddings.x, source.embeddings.x
    )
    np.testing.assert_array_equal(
        load_features(given, source.path, Compute()).embeddings.x, source.embeddings.x
    )


def test_a_cache_file_with_another_recipe_is_refused_with_the_differing_fields(source):
    with pytest.raises(StaleCacheError) as caught:
        load_features({"layer": "layer3"}, source.path, Compute())
    assert set(caught.value.fields) == {"layer"}


def test_a_missing_cache_file_is_refused(tmp_path):
    with pytest.raises(CacheError):
        load_features({}, tmp_path / "missing.h5", Compute())


def test_an_unknown_head_is_refused(source):
    with pytest.raises(SpecError, match="known: linear, svm, knn, mlp, prototypical"):
        fit_run(source, "forest")


def test_fitting_on_a_cache_needs_no_torch(source, given, tmp_path):
    code = f"""
import sys
from pathlib import Path
from featkit.embeddings.pipeline import Compute
from featkit.runs.fit import FitConfig, fit_run
from featkit.runs.features import load_features
for head in ("linear", "svm", "knn:k=1", "mlp", "prototypical"):
    fit_run(load_features({given!r}, Path({str(tmp_path / "cache")!r}), Compute()), head)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "change", [{"classes": ["green", "blue", "red"]}, {"temperature": None}, {"threshold": 1.0}]
)
def test_a_changed_card_is_refused(saved, change):
    card = json.loads((saved / "card.json").read_text())
    (saved / "card.json").write_text(json.dumps({**card, **change}))
    with pytest.raises(RunError, match=r"card\.json was changed after the run"):
        load_run(saved)


def test_a_correction_is_part_of_the_run_and_of_its_directory(source, tmp_path, photos):
    plain, corrected = (
        fit_run(source, "linear", config=FitConfig(balance=each)) for each in (None, "logit_adjust")
    )
    assert plain.id != corrected.id
    assert corrected.report.provenance["balance"] == "logit_adjust"
    saved = load_run(save_run(corrected, tmp_path / "out", {}))
    assert predict(saved, [str(photos / "red" / "0.png")], Compute())[0].top[0][0] == "red"


def test_the_options_of_a_correction_are_chosen_by_balanced_accuracy_on_val(source):
    """Not by test images; the final head has the selected options."""
    run = fit_run(source, "linear", config=FitConfig(tune=True, balance="logit_adjust"))
    best = run.search.best
    assert best.balanced_accuracy == max(tried.balanced_accuracy for tried in run.search.candidates)
    assert run.head.correction == best.options["correction"]
    assert run.report.provenance["val_balanced_accuracy"] == best.balanced_accuracy


@pytest.mark.parametrize("perturb", [None, "gaussian_noise:level=strong"])
def test_features_that_extract_made_are_a_cache_hit_for_fit(given, tmp_path, monkeypatch, perturb):
    import featkit
    from featkit.embeddings import extract as extraction

    options = {**given, "perturb": perturb}
    extracted = featkit.extract(**options, cache=tmp_path / "new")
    monkeypatch.setattr(extraction, "embed", None)  # a miss would call it
    features = load_features(options, tmp_path / "new", Compute()).embeddings
    assert features.recipe == extracted.recipe
    np.testing.assert_array_equal(features.x, extracted.x)
    np.testing.assert_array_equal(features.splits, extracted.splits)


def test_only_perturbed_test_images_are_extracted_and_train_is_reused(given, source, tmp_path):
    noisy = load_features(
        {**given, "perturb": "gaussian_noise:level=strong"}, tmp_path / "cache", Compute()
    )
    clean, test = source.embeddings, source.embeddings.splits == "test"
    places = {name: place for place, name in enumerate(noisy.embeddings.ids)}
    found = noisy.embeddings.x[[places[name] for name in clean.ids]]
    np.testing.assert_array_equal(found[~test], clean.x[~test])
    assert not np.allclose(found[test], clean.x[test])
    assert noisy.embeddings.recipe.perturb == "gaussian_noise:level=strong"


def test_scores_that_are_not_probabilities_have_no_temperature(source, monkeypatch):
    from featkit.heads.prototypical import PrototypicalHead

    plain = PrototypicalHead.predict_proba
    monkeypatch.setattr(PrototypicalHead, "predict_proba", lambda self, X: 3 * plain(self, X))
    report = fit_run(source, "prototypical").report
    assert (report.temperature, report.nll) == (None, None)
    assert report.top1 > 0.5
