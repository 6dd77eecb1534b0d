"""Runs with several labels per image in the app."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from featkit.app.jobs import FINISHED, TrainingRequest, read_job, start_job
from featkit.app.maps import MapChoice, map_of_run
from featkit.app.models import load_model
from featkit.app.predictions import SessionPredictions, predictions_csv
from featkit.app.settings import VARIABLE, AppSettings
from featkit.app.uploads import uploaded_image
from featkit.app.worker import main
from featkit.images.multilabel import split_labels
from tests.app.test_jobs import started  # noqa: F401  (a fixture)
from tests.app.test_pages import checked, html, open_page
from tests.scenes import LABELS, fit_scenes, write_scenes

pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Return a folder with images, a cache and a run."""
    folder = tmp_path_factory.mktemp("labels")
    fit_scenes(write_scenes(folder), folder, ["linear"])
    return folder


@pytest.fixture
def run(work) -> Path:
    """Return the directory of the run."""
    return next((work / "runs").glob("*/*/card.json")).parent


@pytest.fixture
def label_settings(work, tmp_path, monkeypatch) -> AppSettings:
    """Return the settings of an app that was started with the run."""
    made = AppSettings(
        runs=(work / "runs",),
        data=(str(work / "labels.csv"),),
        cache=work / "cache",
        out=tmp_path / "out",
        device="cpu",
    )
    monkeypatch.setenv(VARIABLE, made.to_json())
    return made


def test_an_image_gets_its_labels_with_evidence_for_the_most_probable(run, label_settings, work):
    models = {str(run): load_model(run, label_settings.cache, "cpu")}
    session = SessionPredictions()
    content = (work / "90.png").read_bytes()
    (classified,) = session.classify([uploaded_image("90.png", content)], models)
    prediction = classified.answers[str(run)].prediction
    assert set(prediction.labels) <= set(LABELS)
    session.explain(classified, models)
    evidence = classified.evidence[str(run)]
    assert evidence.notes == ()
    assert evidence.heat_map is not None
    assert evidence.similar
    (row,) = csv.DictReader(io.StringIO(predictions_csv([classified], {str(run): "squares"})))
    assert set(split_labels(row["predicted"])) == set(prediction.labels)
    assert float(row["p(left)"]) == pytest.approx(prediction.probabilities["left"], abs=1e-6)


def test_the_map_of_a_run_has_sets_of_labels(run, label_settings):
    found = map_of_run(run, label_settings.cache, MapChoice(method="pca"))
    assert len(found.names) == 40
    assert "left;right" in found.labels
    assert found.has_predictions
    assert set(found.groups("error")) <= {"right", "wrong"}


def test_the_page_try_shows_labels_and_probabilities(label_settings, work):
    pytest.importorskip("streamlit.testing.v1")
    page = open_page("try_models")
    content = (work / "90.png").read_bytes()
    page.file_uploader[0].set_value([("90.png", content, "image/png")]).run()
    shown = html(checked(page))
    assert all(label in shown for label in LABELS)
    assert "Heat map" in shown


@pytest.mark.slow
def test_a_training_on_several_labels_runs_to_its_report(label_settings, started):  # noqa: F811
    request = TrainingRequest(
        data=label_settings.data[0], backbone="resnet18", heads=("knn",), weights="random"
    )
    job = start_job(label_settings, replace(request, resize="32"))
    assert main(job.folder) == 0
    state = read_job(job.folder).state
    assert (state.status, state.error) == (FINISHED, "")
    assert "mean average precision (mAP) over 3 labels" in state.results[0]
    assert (Path(state.runs[0]) / "report.html").is_file()
