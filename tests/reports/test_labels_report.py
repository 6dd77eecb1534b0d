"""The report of a run with several labels per image."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import featkit
from featkit.embeddings.pipeline import Compute
from featkit.reports.labels import labels_report, labels_view
from featkit.runs.directory import load_run
from featkit.studies.inspect_labels import inspect_labels
from tests.scenes import LABELS, fit_scenes, write_scenes


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Fit two heads; return the results and the folder of cache and runs."""
    work = tmp_path_factory.mktemp("work")
    table = write_scenes(tmp_path_factory.mktemp("scenes"))
    return fit_scenes(table, work, ["linear", "knn:k=3"], tune=False), work


def inspected(path: Path, cache: Path, **options):
    run = load_run(path, multilabel=True)
    return inspect_labels(run, cache=cache, compute=Compute(), projection="pca", **options)


def test_errors_and_counts_are_those_of_the_predictions(fitted):
    found, work = fitted
    run, report = found.runs[0], found.runs[0].report
    inspection = inspected(found.paths[0], work / "cache")
    test = run.source.embeddings.part("test")
    thresholds = np.array([label.threshold for label in report.per_label])
    predicted = run.probabilities >= thresholds
    assert inspection.n_missed == int((test.targets & ~predicted).sum())
    assert inspection.n_added == int((predicted & (test.targets == 0)).sum())
    assert inspection.counts["left"]["test"] == report.per_label[0].n
    assert sum(inspection.images.values()) == 120
    assert inspection.true_pairs.diagonal().tolist() == [label.n for label in report.per_label]
    confidences = [each.confidence for each in inspection.added]
    assert confidences == sorted(confidences, reverse=True)
    for each in (*inspection.missed, *inspection.added):
        assert (each.label in each.true.split(";")) != (each.label in each.predicted.split(";"))
        assert each.image is not None
        assert each.similar


def test_heat_maps_explain_the_label_in_question(fitted):
    found, work = fitted
    for path in found.paths:
        inspection = inspected(path, work / "cache", heat_maps=True)
        shown = (*inspection.missed, *inspection.added)
        assert shown
        assert all(each.heat is not None and np.isfinite(each.heat).all() for each in shown)
        assert inspection.explanation.startswith("Grad-CAM of the log")


def test_a_page_shows_metrics_errors_and_calibration_of_every_label(fitted):
    found, work = fitted
    path = featkit.report(found.paths[0], cache=work / "cache", projection="pca")
    page = path.read_text(encoding="utf-8")
    report = found.runs[0].report
    assert f"mAP {100 * report.mean_average_precision:.1f} %" in page
    for label in report.per_label:
        assert f"{100 * label.average_precision:.1f}" in page
        assert f"Reliability diagram of {label.name}" in page
    headings = re.findall(r'<h2 id="(\w+)">', page)
    expected = ["result", "labels", "missed", "added", "confusion", "pairs", "map", "calibration"]
    assert headings == [*expected, "data", "use"]
    assert page.count("data:image/jpeg") > 4
    assert 'src="http' not in page


def test_the_view_repeats_the_run(fitted):
    found, work = fitted
    view = labels_view(inspected(found.paths[0], work / "cache", heat_maps=False))
    commands = dict(view.commands)
    assert "--head linear" in commands["Repeat the run"]
    assert "featkit export" in commands["Export to ONNX"]
    assert view.matrix_names == [*LABELS, "(none)"]
    diagonal = [cell.count for cell in view.matrix if cell.row == cell.column]
    assert sum(diagonal) == sum(label.n for label in found.runs[0].report.per_label) - (
        sum(inspected(found.paths[0], work / "cache", heat_maps=False).confusion[:3, 3])
        + _confused_images(found, work)
    )


def _confused_images(found, work):
    """Return the number of missed labels in images to which a label was added."""
    run = found.runs[0]
    test = run.source.embeddings.part("test")
    thresholds = np.array([label.threshold for label in run.report.per_label])
    predicted = run.probabilities >= thresholds
    missed, added = test.targets.astype(bool) & ~predicted, predicted & (test.targets == 0)
    return int(missed[added.any(axis=1)].sum())


def test_folds_tuning_and_missing_images_are_reported(tmp_path):
    table = write_scenes(tmp_path)
    folded = fit_scenes(table, tmp_path, ["knn"], folds=2, tune=True)
    shutil.rmtree(tmp_path / "cache")
    for image in tmp_path.glob("*.png"):
        image.unlink()
    inspection = inspected(folded.paths[0], tmp_path / "cache", heat_maps=False)
    page = labels_report(inspection)
    assert "2-fold cross-validation" in page
    assert "mAP in each fold" in page
    assert "mAP on val (%)" in page
    assert "no image" in page
    assert any("features are not available" in note for note in inspection.notes)
    assert inspection.embedding_map is None
    assert "--folds 2" in dict(labels_view(inspection).commands)["Repeat the run"]


def test_names_of_labels_are_escaped(fitted, tmp_path):
    found, work = fitted
    directory = tmp_path / found.paths[0].name
    shutil.copytree(found.paths[0], directory)
    inspection = inspected(directory, work / "cache", heat_maps=False)
    text = "<script>alert(1)</script>"
    first = replace(inspection.report.per_label[0], name=text)
    report = replace(inspection.report, per_label=(first, *inspection.report.per_label[1:]))
    page = labels_report(replace(inspection, report=report))
    assert text not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
