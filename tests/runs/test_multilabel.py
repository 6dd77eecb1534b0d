"""Runs on images with several labels each, from the command line to predictions."""

from __future__ import annotations

import csv
import json
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import average_precision_score

import featkit
from featkit.cli.main import main
from featkit.errors import FeatkitError
from featkit.runs.compare import read_any_run
from featkit.runs.multilabel import MultiLabelRun

NETWORK = {"backbone": "resnet18", "weights": "random", "resize": "32", "crop": "32"}
LABELS = ("left", "right", "top")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Write images with a bright square for each of their labels, and a table."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    lines = ["path,label,split"]
    for row in range(120):
        pixels = rng.integers(0, 90, (32, 32, 3)).astype(np.uint8)
        found = rng.random(3) < (0.5, 0.4, 0.3)
        for label, place in zip(found, ((12, 0), (12, 20), (0, 10)), strict=True):
            if label:
                pixels[place[0] : place[0] + 12, place[1] : place[1] + 12] += 25
        Image.fromarray(pixels).save(folder / f"{row}.png")
        names = ";".join(np.array(LABELS)[found]) or "(none)"
        lines.append(f"{row}.png,{names},{'train' if row < 80 else 'test'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def fitted(scenes, tmp_path_factory) -> tuple[featkit.api.FitResults, Path]:
    """Fit two heads and write their runs."""
    work = tmp_path_factory.mktemp("work")
    parameters = signature(featkit.fit).parameters
    defaults = {name: each.default for name, each in parameters.items() if name != "head"}
    options = {**defaults, **NETWORK, "data": scenes / "labels.csv", "cache": work / "cache"}
    found = featkit.api.fit_heads(["linear", "knn:k=3"], **{**options, "out": work / "runs"})
    return found, work


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
        ({"folds": 3}, "folds needs one label per image"),
        ({"reject": 0.1}, "--reject needs one label per image"),
        ({"balance": "reweight"}, "--balance needs one label per image"),
        ({"subset": "kshot:k=2"}, "--subset needs one label per image"),
    ],
    ids=["prototypical", "folds", "reject", "balance", "subset"],
)
def test_options_that_need_one_label_say_so(fitted, scenes, options, message):
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
