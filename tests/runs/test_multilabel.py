"""Runs on images with several labels each, from the command line to predictions."""

from __future__ import annotations

import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict

import featkit
from featkit.cli.main import main
from featkit.errors import FeatkitError
from featkit.heads.multilabel import MultiLabelHead
from featkit.images.iterative import iterative_folds
from featkit.runs.classifier import open_classifier
from featkit.runs.multilabel import MultiLabelRun
from featkit.runs.results import read_any_run, read_label_predictions
from featkit.runs.summary import summarise_run
from tests.scenes import LABELS, NETWORK, fit_scenes, write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Write images with a bright square for each of their labels, and a table."""
    return write_scenes(tmp_path_factory.mktemp("scenes")).parent


@pytest.fixture(scope="module")
def fitted(scenes, tmp_path_factory) -> tuple[featkit.api.FitResults, Path]:
    """Fit two heads and write their runs."""
    work = tmp_path_factory.mktemp("work")
    return fit_scenes(scenes / "labels.csv", work, ["linear", "knn:k=3"]), work


@pytest.fixture(scope="module")
def folded(scenes, fitted) -> featkit.api.FitResults:
    """Cross-validate two heads."""
    heads = ["linear", "knn:k=3"]
    return fit_scenes(scenes / "labels.csv", fitted[1], heads, folds=4, repeats=2)


def test_a_run_has_the_mean_average_precision_of_scikit_learn(fitted):
    found, _ = fitted
    for run in found.runs:
        assert isinstance(run, MultiLabelRun)
        test = run.source.embeddings.part("test")
        scores = run.head.predict_proba(test.x)
        expected = average_precision_score(test.targets, scores, average="macro")
        assert run.report.mean_average_precision == pytest.approx(expected, abs=1e-9)
        assert run.report.labels == LABELS
    assert found.runs[0].report.mean_average_precision > 0.6
    (pair,) = found.comparison.pairs
    values = [run.report.mean_average_precision for run in found.runs]
    assert abs(pair.difference) == pytest.approx(abs(values[0] - values[1]), abs=1e-12)


def test_thresholds_and_calibration_use_validation_images_only(fitted):
    run = fitted[0].runs[0]
    assert run.report.provenance["val"] == "16 images of train"
    assert run.report.provenance["n_train"] == 80
    assert 0 < run.report.provenance["val_mean_average_precision"] <= 1


def test_the_run_directory_is_read_back(fitted):
    found, _ = fitted
    for run, path in zip(found.runs, found.paths, strict=True):
        _, report, predictions = read_any_run(path)
        assert report.to_dict() == json.loads(json.dumps(run.report.to_dict()))
        assert np.mean(predictions.scores) == pytest.approx(
            run.report.mean_average_precision, abs=1e-12
        )
        with (path / "predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [name for name in rows[0] if name.startswith("p(")] == [
            f"p({label})" for label in LABELS
        ]
        assert (path / "precision.png").read_bytes().startswith(b"\x89PNG")


def test_new_images_get_the_labels_whose_probability_reaches_the_threshold(fitted, scenes):
    found, _ = fitted
    run, path = found.runs[0], found.paths[0]
    predictions = featkit.predict(path, [scenes / f"{row}.png" for row in range(80, 120)])
    expected = [str(labels) for labels in run.predictions.predicted]
    agree = 0
    for prediction, labels, row in zip(predictions, expected, run.probabilities, strict=True):
        found_labels = prediction.labels
        assert np.allclose(list(prediction.probabilities.values()), row, atol=1e-3)
        agree += (";".join(sorted(found_labels)) or "(none)") == labels
    assert agree >= 38  # a probability may be next to its threshold
    in_memory = featkit.predict(run, scenes / "80.png")
    assert in_memory[0].predicted == predictions[0].predicted


def test_commands_print_labels_and_comparisons(fitted, scenes):
    found, _ = fitted
    image, paths = str(scenes / "0.png"), [str(path) for path in found.paths]
    shown = CliRunner().invoke(main, ["predict", paths[0], image])
    assert shown.exit_code == 0, shown.output
    assert "labels" in shown.output
    as_csv = CliRunner().invoke(main, ["predict", paths[0], image, "--csv"])
    assert as_csv.output.startswith("path,predicted,p(left),p(right),p(top)")
    compared = CliRunner().invoke(main, ["compare", *paths])
    assert "mAP %" in compared.output
    table = CliRunner().invoke(main, ["compare", *paths, "--markdown", "-"])
    assert "Micro F1" in table.output


def test_several_heads_are_tuned_by_validation_map(fitted, scenes):
    _, work = fitted
    run = featkit.fit(scenes / "labels.csv", head="knn", tune=True, cache=work / "cache", **NETWORK)
    best = max(candidate.mean_average_precision for candidate in run.candidates)
    options = next(c.options for c in run.candidates if c.mean_average_precision == best)
    assert run.head.head == str(featkit.registry.Spec("knn", None, options))
    assert run.report.provenance["val_mean_average_precision"] == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "prototypical"}, "prototypical .* cannot give it several labels"),
        ({"folds": 200}, "--folds 200, but there are 120 images: use fewer folds"),
        ({"reject": 0.1}, "--reject needs one label per image"),
        ({"balance": "reweight"}, "--balance needs one label per image"),
        ({"subset": "kshot:k=2"}, "--subset needs one label per image"),
    ],
    ids=["prototypical", "too many folds", "reject", "balance", "subset"],
)
def test_options_that_do_not_fit_say_so(fitted, scenes, options, message):
    _, work = fitted
    with pytest.raises(FeatkitError, match=message):
        featkit.fit(scenes / "labels.csv", cache=work / "cache", **NETWORK, **options)


def test_commands_that_need_one_label_say_so(fitted, scenes):
    found, work = fitted
    data, cache = str(scenes / "labels.csv"), str(work / "cache")
    network = ["--backbone", "resnet18", "--weights", "random", "--resize", "32", "--crop", "32"]
    features = ["--data", data, "--cache", cache, *network]
    path = str(found.paths[0])
    for command in (
        ["fewshot", *features],
        ["audit", *features],
        ["finetune", "--data", data, "--backbone", "resnet18", "--weights", "random"],
        ["suggest", path, str(scenes)],
        ["plot", "projection", path],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1, (command, result.output)
        assert "several labels per image" in result.output, (command, result.output)
        assert "Traceback" not in result.output


def test_all_heads_leave_out_those_that_cannot(fitted, scenes, caplog):
    _, work = fitted
    features = ["--data", str(scenes / "labels.csv"), "--cache", str(work / "cache")]
    network = ["--backbone", "resnet18", "--weights", "random", "--resize", "32", "--crop", "32"]
    result = CliRunner().invoke(
        main, ["fit", *features, *network, "--head", "all", "--out", str(work / "all"), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert len(list((work / "all").glob("*/*/card.json"))) == 4


def test_a_grid_compares_heads_by_map_and_skips_those_that_cannot(fitted, scenes):
    _, work = fitted
    data, cache = str(scenes / "labels.csv"), str(work / "cache")
    network = ["--backbone", "resnet18", "--weights", "random", "--resize", "32", "--crop", "32"]
    heads = ["--head", "linear", "--head", "knn:k=3", "--head", "prototypical"]
    out = ["--out", str(work / "grids")]
    command = ["ablate", "--data", data, "--cache", cache, *network, *heads, *out]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "mAP %" in result.output
    folder = next((work / "grids").glob("*/*/results.csv")).parent
    with (folder / "results.csv").open() as file:
        rows = {row["head"]: row for row in csv.DictReader(file)}
    assert rows["prototypical"]["status"] == "skipped"
    for run in fitted[0].runs:
        value = float(rows[run.head_spec]["mean_average_precision"])
        assert value == pytest.approx(run.report.mean_average_precision, abs=1e-12)
        assert rows[run.head_spec]["run"] == run.id
    page = (folder / "report.html").read_text()
    assert "Images have several labels each" in page
    assert "mAP" in (folder / "summary.md").read_text()
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 0, again.output


def test_runs_are_listed_with_their_metric(fitted):
    found, work = fitted
    listed = CliRunner().invoke(main, ["runs", "ls", "--out", str(work / "runs")])
    assert " mAP" in listed.output, listed.output
    shown = CliRunner().invoke(main, ["runs", "show", str(found.paths[0])])
    assert shown.output.count("mAP") == 1


def test_labels_and_probabilities_are_read_from_the_run_directory(fitted):
    found, _ = fitted
    run, path = found.runs[0], found.paths[0]
    _, _, predictions = read_any_run(path)
    read = read_label_predictions(path, predictions)
    test = run.source.embeddings.part("test")
    assert np.array_equal(read.targets, test.targets)
    thresholds = [label.threshold for label in run.report.per_label]
    assert np.array_equal(read.predicted, run.probabilities >= np.asarray(thresholds))
    assert np.allclose(read.probabilities, run.probabilities, atol=1e-6)


def test_out_of_fold_scores_are_those_of_scikit_learn(folded):
    run = folded.runs[1]
    images = run.source.embeddings
    fold_of = run.folds.fold_of[0]
    assert np.array_equal(fold_of, iterative_folds(images.targets, 4, 0))
    expected = cross_val_predict(
        MultiLabelHead(head="knn:k=3"),
        images.x,
        images.targets,
        cv=PredefinedSplit(fold_of),
        method="predict_proba",
    )
    precision = average_precision_score(images.targets, expected, average="macro")
    assert run.report.mean_average_precision == pytest.approx(precision, abs=1e-9)
    assert run.report.n == len(images) == 120


def test_a_cross_validation_has_a_metric_for_each_fold_and_one_over_all(folded):
    run, path = folded.runs[0], folded.paths[0]
    report = run.report
    folds = report.folds
    assert (folds.folds, folds.repeats, sum(folds.sizes)) == (4, 2, 240)
    assert len(folds.precisions) == len(folds.intervals95) == 8
    assert report.headline.value == folds.mean_average_precision
    low, high = folds.interval95
    assert low < folds.mean_average_precision < high
    _, read, predictions = read_any_run(path)
    assert read.to_dict() == json.loads(json.dumps(report.to_dict()))
    assert read.folds == folds
    assert np.mean(predictions.scores) == pytest.approx(report.mean_average_precision, abs=1e-12)
    assert summarise_run(path).folds == 4
    with (path / "folds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 240
    assert {"repeat", "fold", "id", "true", "predicted", "p(left)"} <= set(rows[0])
    (pair,) = folded.comparison.folds
    assert pair.difference == pytest.approx(
        np.mean(folds.precisions) - np.mean(folded.runs[1].report.folds.precisions), abs=1e-12
    )
    assert "corrected t-test over 4 folds x 2 repeats" in pair.sentence
    (predicted,) = featkit.predict(path, Path(run.source.request.data).parent / "0.png")
    assert set(predicted.probabilities) == set(LABELS)


def test_folds_and_a_test_set_are_not_compared(fitted, folded):
    with pytest.raises(FeatkitError, match="evaluated by --folds on all images"):
        featkit.compare([fitted[0].paths[0], folded.paths[0]])


def test_several_seeds_have_a_mean_map_with_an_interval(fitted, scenes):
    _, work = fitted
    table = work / "seeds.csv"
    rows = [line.rsplit(",", 1)[0] for line in (scenes / "labels.csv").read_text().splitlines()]
    table.write_text("\n".join([rows[0], *(f"{scenes}/{row}" for row in rows[1:])]))
    found = fit_scenes(table, work, ["knn:k=3"], seeds=3)
    summary = found.seeds["knn:k=3"]
    values = [run.report.mean_average_precision for run in found.runs]
    assert summary.values == pytest.approx(values, abs=1e-12)
    assert len(set(values)) > 1
    assert summary.metric == "mAP"
    assert summary.interval95[0] < summary.mean < summary.interval95[1]
    written = json.loads(next((work / "runs").glob("seeds/seeds-*/results.json")).read_text())
    assert written["mean_average_precision"] == pytest.approx(values)
    assert "top1" not in written


def test_an_open_classifier_gives_the_labels_of_predict(fitted, scenes):
    path = fitted[0].paths[0]
    (expected,) = featkit.predict(path, scenes / "90.png", device="cpu")
    with Image.open(scenes / "90.png") as image:
        pixels = np.asarray(image)
    classifier = open_classifier(path, "cpu")
    found = classifier.classify(pixels).prediction
    assert classifier.multilabel
    assert found.labels == expected.labels
    assert found.most_probable == expected.top[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["knn:k=3"])
def test_an_exported_file_gives_the_labels_of_its_run(head, scenes, fitted, tmp_path):
    pytest.importorskip("onnxruntime")
    found = fit_scenes(scenes / "labels.csv", fitted[1], [head], precision="fp32")
    exported = featkit.export(found.paths[0], out=tmp_path / "model.onnx", check=40, device="cpu")
    assert exported.check.multilabel
    assert exported.check.largest < 1e-4
    files = [scenes / f"{row}.png" for row in range(80, 120)]
    from_run = featkit.predict(found.paths[0], files, device="cpu")
    from_file = featkit.predict(exported.path, files, device="cpu")
    for ours, theirs in zip(from_run, from_file, strict=True):
        assert ours.labels == theirs.labels
        assert list(ours.probabilities) == list(theirs.probabilities)
        values = [list(each.probabilities.values()) for each in (ours, theirs)]
        assert np.allclose(*values, atol=1e-3)
    with Image.open(files[0]) as image:
        answer = open_classifier(exported.path).classify(np.asarray(image))
    assert answer.prediction.labels == from_file[0].labels
    service = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "serve.py"))
    served = service["Model"](str(exported.path)).predict(files[0].read_bytes())
    assert set(served["labels"]) == set(from_file[0].labels)
    assert served["probabilities"] == pytest.approx(dict(from_file[0].probabilities), abs=1e-3)


@pytest.mark.long
def test_a_quantized_run_is_compared_by_map(fitted, tmp_path):
    pytest.importorskip("onnxruntime")
    found, _ = fitted
    model = featkit.quantize(found.paths[0], out=tmp_path, device="cpu")
    facts = json.loads((model.path / "quantize.json").read_text())["classifier"]
    run = found.runs[0].report.mean_average_precision
    assert facts["mean_average_precision_of_run"] == pytest.approx(run, abs=0.02)
    assert facts["difference"]["metric"] == "mAP"
    assert abs(facts["difference"]["difference"]) < 0.2


def test_a_long_tail_study_says_what_to_do(fitted, scenes):
    _, work = fitted
    data, cache = str(scenes / "labels.csv"), str(work / "cache")
    network = ["--backbone", "resnet18", "--weights", "random", "--resize", "32", "--crop", "32"]
    command = ["longtail", "--data", data, "--cache", cache, *network, "--out", str(work / "tail")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "several labels per image, and a long-tail study needs one" in result.output
    assert "--subset" not in result.output


@pytest.mark.parametrize(
    ("command", "option"),
    [(["profile"], "--data"), (["prune", "--sparsity", "0.5", "--head", "linear"], "--head")],
    ids=["profile", "prune"],
)
def test_the_accuracy_of_networks_needs_one_label(fitted, scenes, command, option, tmp_path):
    _, work = fitted
    data = ["--data", str(scenes / "labels.csv"), "--cache", str(work / "cache")]
    network = ["--weights", "random", "--resize", "32", "--crop", "32"]
    out = ["--out", str(tmp_path)] if command[0] == "prune" else []
    given = [command[0], "resnet18", *command[1:], *data, *network, *out]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 1, result.output
    assert f"the accuracy of a network needs one: leave out {option}" in result.output


def test_a_robustness_study_uses_the_map(fitted, scenes):
    _, work = fitted
    data, cache = str(scenes / "labels.csv"), str(work / "cache")
    network = ["--backbone", "resnet18", "--weights", "random", "--resize", "32", "--crop", "32"]
    options = ["--head", "knn:k=3", "--family", "contrast", "--level", "strong"]
    out = ["--out", str(work / "robust")]
    command = ["robustness", "--data", data, "--cache", cache, *network, *options, *out]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "mAP" in result.output
