"""Every control of every page, in Streamlit's own test runner, without a browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from featkit.app.cleaning import DecisionBook
from featkit.app.jobs import FAILED, FINISHED, JobState, list_jobs, write_state
from featkit.app.settings import VARIABLE, AppSettings
from featkit.app.shared import UNEXPECTED
from featkit.app.views import plain
from tests.app.conftest import png
from tests.app.test_jobs import started  # noqa: F401  (a fixture)
from tests.app.test_predictions import rubbish

testing = pytest.importorskip("streamlit.testing.v1")

pytestmark = [
    # Streamlit opens and closes event loops of its own in the test runner.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def open_page(name):
    """Run a page as a new session."""
    script = f"from featkit.app.pages import {name} as page\npage.show()"
    return checked(testing.AppTest.from_string(script, default_timeout=60).run())


def checked(page):
    """Return the page after a run; an exception that it does not handle fails the test."""
    assert not page.exception, page.exception
    failures = [each.value for each in page.error if each.value.startswith(UNEXPECTED)]
    assert failures == []
    return page


def html(page):
    return "\n".join(str(each.proto.body) for each in page.get("html"))


def messages(page):
    return [each.value.replace("\\", "") for each in (*page.error, *page.warning, *page.info)]


@pytest.fixture
def photo(project):
    return (project / "photos" / "test" / "ant" / "0.png").read_bytes()


# Try ----------------------------------------------------------------------------------------------


def test_without_a_run_the_page_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, AppSettings(out=tmp_path / "out").to_json())
    assert "There is no run yet" in messages(open_page("try_models"))[0]


def test_an_upload_is_classified_by_two_models_side_by_side(settings, photo):
    page = open_page("try_models")
    page.multiselect(key="try_models").set_value([*page.multiselect[0].proto.options][:0]).run()
    assert "Choose at least one model." in messages(page)
    keys = [str(path) for path in sorted((Path(settings.runs[0]) / "photos").glob("*/"))]
    page.multiselect(key="try_models").set_value(keys).run()
    page.file_uploader[0].set_value([("a photo.png", photo, "image/png")]).run()
    shown = html(checked(page))
    assert shown.count('class="fk-bars"') == 2
    assert shown.count("Heat map") == 2
    assert "linear on resnet18" in shown
    assert "knn:k=3 on resnet18" in shown
    assert shown.count("Most similar training images") == 2
    assert "<b>bee</b>" not in shown
    assert any("the models disagree on" in each.value for each in page.markdown)
    assert page.get("download_button")


def test_rubbish_gives_a_message_each_and_the_good_image_is_classified(settings, photo):
    page = open_page("try_models")
    uploads = [(name, data, "image/png") for name, (data, _) in rubbish().items()]
    page.file_uploader[0].set_value([*uploads, ("good.png", photo, "image/png")]).run()
    checked(page)
    found = [each.value.replace("\\", "") for each in page.error]
    assert len(found) == len(uploads)
    for text, (name, (_, message)) in zip(found, rubbish().items(), strict=True):
        assert name in text
        assert message in text
        assert "--on-error" not in text
    assert html(page).count('class="fk-bars"') == 1


def test_many_images_are_shown_in_pages(settings, photo):
    page = open_page("try_models")
    uploads = [(f"{number}.png", photo, "image/png") for number in range(8)]
    page.file_uploader[0].set_value(uploads).run()
    assert html(checked(page)).count('class="fk-bars"') == 6
    page.pagination(key="try_page").set_value(2).run()
    assert html(checked(page)).count('class="fk-bars"') == 2


@pytest.mark.parametrize("source", ["Folder", "Camera", "Data set", "Files"])
def test_images_come_from_each_source(settings, source):
    page = open_page("try_models")
    page.segmented_control(key="try_source").set_value(source).run()
    checked(page)
    if source == "Data set":
        page.number_input(key="try_count").set_value(2).run()
        first = html(checked(page))
        assert first.count('class="fk-bars"') == 2
        assert "✓ right" in first or "its class is" in first
        page.button(key="try_other").click().run()
        assert html(checked(page)) != first
        page.selectbox(key="try_data").set_value("digits").run()
        assert html(checked(page)).count('class="fk-bars"') == 2


def test_a_changed_run_is_refused_and_another_one_still_works(
    settings, tmp_path, monkeypatch, photo
):
    shutil.copytree(settings.runs[0], tmp_path / "runs")
    first, second = sorted((tmp_path / "runs" / "photos").glob("*/"))
    (first / "head.skops").write_bytes(b"changed")
    changed = AppSettings(runs=(tmp_path / "runs",), cache=settings.cache, out=tmp_path / "o")
    monkeypatch.setenv(VARIABLE, changed.to_json())
    page = open_page("try_models")
    page.multiselect(key="try_models").set_value([str(first), str(second)]).run()
    assert any("is not the head" in text for text in messages(checked(page)))
    page.file_uploader[0].set_value([("a.png", photo, "image/png")]).run()
    assert html(checked(page)).count('class="fk-bars"') == 1


def test_nothing_of_one_session_shows_in_another(settings, photo):
    first, second = open_page("try_models"), open_page("try_models")
    first.file_uploader[0].set_value([("mine.png", photo, "image/png")]).run()
    assert "mine.png" in html(checked(first))
    assert "mine.png" not in html(checked(second.run()))


# Train --------------------------------------------------------------------------------------------


def test_data_are_counted_and_checked(settings):
    page = open_page("train")
    assert any("**48** images in **3** classes" in each.value for each in page.markdown)
    assert any("fewer than 20 training images" in text for text in messages(page))
    page.button(key="train_check").click().run()
    assert "Every image can be read, and no two are the same." in checked(page).success[0].value


def test_every_choice_of_a_training_is_in_its_request(settings, started):  # noqa: F811
    page = open_page("train")
    page.multiselect(key="train_heads").set_value(["linear", "svm"]).run()
    page.selectbox(key="train_backbone").set_value("resnet34").run()
    page.radio(key="train_weights_resnet34").set_value("random").run()
    page.checkbox(key="train_tune").check().run()
    page.slider(key="train_reject").set_value(0.05).run()
    page.button(key="train_start").click().run()
    checked(page)
    (job,) = list_jobs(settings)
    assert job.request.heads == ("linear", "svm")
    assert job.request.backbone == "resnet34"
    assert job.request.weights == "random"
    assert job.request.tune
    assert job.request.reject == 0.05
    assert job.request.data == settings.data[0]
    page.button(key="train_start").click().run()
    assert len(list_jobs(settings)) == 1


def test_weights_that_are_not_here_are_not_downloaded_but_explained(settings):
    page = open_page("train")
    assert any("the app downloads nothing" in text for text in messages(page))


def test_no_head_is_an_error_on_the_page(settings, started):  # noqa: F811
    page = open_page("train")
    page.multiselect(key="train_heads").set_value([]).run()
    page.button(key="train_start").click().run()
    assert "no head is chosen: choose at least one, such as linear" in messages(checked(page))
    assert started == []


@pytest.mark.parametrize("folder", ["/etc", "nowhere", ".."])
def test_folders_that_were_not_named_are_refused(settings, folder):
    page = open_page("train")
    page.selectbox(key="train_data").set_value("Another folder …").run()
    page.text_input(key="train_folder").set_value(folder).run()
    assert any("was not named when the app was started" in each for each in messages(checked(page)))


def test_a_folder_below_the_named_one_can_be_used(settings):
    page = open_page("train")
    page.selectbox(key="train_data").set_value("Another folder …").run()
    assert not checked(page).button
    page.text_input(key="train_folder").set_value(f"{settings.data[0]}/train").run()
    assert any("**30** images" in each.value for each in checked(page).markdown)


def test_a_folder_of_one_class_is_explained(settings):
    page = open_page("train")
    page.selectbox(key="train_data").set_value("Another folder …").run()
    page.text_input(key="train_folder").set_value(f"{settings.data[0]}/train/ant").run()
    assert messages(checked(page))


def test_a_running_training_shows_its_progress_and_can_be_stopped(settings, started):  # noqa: F811
    page = open_page("train")
    page.button(key="train_start").click().run()
    (job,) = list_jobs(settings)
    page.run()
    assert any("It goes on when this page is closed" in each.value for each in page.caption)
    write_state(job.folder, JobState(results=("linear: <b>right</b> for 97%",)))
    page.run()
    assert [each.value for each in page.success] == [plain("linear: <b>right</b> for 97%")]
    page.button(key=f"stop_{job.id}").click().run()
    checked(page)


def test_a_failed_training_says_why_and_can_be_continued(settings, started):  # noqa: F811
    page = open_page("train")
    page.button(key="train_start").click().run()
    (job,) = list_jobs(settings)
    write_state(job.folder, JobState(status=FAILED, error="a <b>disk</b> is full", messages=("m",)))
    page.run()
    assert "a <b>disk</b> is full" in messages(checked(page))
    assert "m" in messages(page)
    page.button(key="train_resume").click().run()
    assert len(started) == 2


def test_a_finished_training_shows_comparison_report_and_files(settings, started, runs):  # noqa: F811
    for run in runs:
        (run / "report.html").write_text("<html>report</html>")
    page = open_page("train")
    page.button(key="train_start").click().run()
    (job,) = list_jobs(settings)
    write_state(job.folder, JobState(status=FINISHED, runs=tuple(map(str, runs))))
    page.run()
    checked(page)
    assert page.dataframe
    assert any("points" in each.value for each in page.markdown)  # the paired difference
    assert len(page.get("download_button")) == 1
    assert page.get("iframe")
    page.selectbox(key=f"train_run_{job.id}").set_value(runs[1]).run()
    checked(page)
    for run in runs:
        (run / "report.html").unlink()


@pytest.mark.slow
def test_a_run_is_exported_to_onnx_and_can_be_downloaded(settings, started, runs):  # noqa: F811
    pytest.importorskip("onnxruntime")
    page = open_page("train")
    page.button(key="train_start").click().run()
    (job,) = list_jobs(settings)
    write_state(job.folder, JobState(status=FINISHED, runs=(str(runs[0]),)))
    page.run()
    page.button(key=f"export_{runs[0].name}").click().run()
    assert len(checked(page).get("download_button")) == 2
    (runs[0] / "model.onnx").unlink()


def test_a_full_disk_is_reported(settings, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("featkit.storage._write_content", full)
    page = open_page("train")
    page.button(key="train_start").click().run()
    assert any("No space left" in text or "full" in text for text in messages(checked(page)))


# Clean --------------------------------------------------------------------------------------------


@pytest.fixture
def dirty(project, settings, tmp_path, monkeypatch):
    """Settings of an app on photos with a wrong label and a copy."""
    photos = tmp_path / "dirty"
    shutil.copytree(project / "photos", photos)
    (photos / "train" / "ant" / "0.png").rename(photos / "train" / "=cat" / "wrong.png")
    shutil.copy(photos / "train" / "ant" / "2.png", photos / "train" / "ant" / "copy.png")
    made = AppSettings(
        runs=settings.runs,
        data=(str(photos),),
        cache=project / "cache",
        out=tmp_path / "out",
        device="cpu",
    )
    monkeypatch.setenv(VARIABLE, made.to_json())
    return made


@pytest.mark.slow
def test_labels_and_copies_are_decided_and_written(dirty, started):  # noqa: F811
    page = open_page("clean")
    assert any("Finds labels that are probably wrong" in each.value for each in page.caption)
    page.button(key="clean_find").click().run()
    checked(page)
    book = DecisionBook(dirty.out, dirty.data[0])
    for name in ("next", "previous", "keep"):
        page.button(key=f"clean_{name}").click().run()
        checked(page)
    assert [each.action for each in book.read().values()] == ["keep"]
    page.segmented_control(key="clean_kind").set_value("duplicates").run()
    page.button(key="clean_drop").click().run()
    checked(page)
    assert sorted(each.action for each in book.read().values()) == ["drop", "keep"]
    page.button(key="clean_forget").click().run()
    page.button(key="clean_accept").click().run()
    assert sorted(each.action for each in book.read().values()) == ["drop", "keep"]
    page.button(key="clean_write").click().run()
    assert "Written" in checked(page).success[0].value
    assert book.list_file.read_text().startswith("path,label,split,group")
    page.button(key="clean_retrain").click().run()
    checked(page)
    (job,) = list_jobs(dirty)
    assert job.request.baseline == dirty.data[0]
    assert job.request.data == str(book.list_file)
    # A reload in the middle: a new session has the decisions.
    again = open_page("clean")
    again.button(key="clean_find").click().run()
    assert any("are listed" in each.value for each in checked(again).markdown)


@pytest.mark.slow
def test_a_label_is_changed_to_the_chosen_one(dirty):
    page = open_page("clean")
    page.button(key="clean_find").click().run()
    label = next(each for each in page.selectbox if each.key.startswith("clean_label_"))
    label.set_value("ant").run()
    page.button(key="clean_relabel").click().run()
    checked(page)
    (decision,) = DecisionBook(dirty.out, dirty.data[0]).read().values()
    assert (decision.action, decision.label) == ("relabel", "ant")


@pytest.mark.slow
def test_images_to_label_next_are_suggested(settings, tmp_path, project, monkeypatch):
    folder = tmp_path / "new"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(6):
        (folder / f"{number}.png").write_bytes(png(rng.integers(0, 255, (40, 40, 3), np.uint8)))
    made = AppSettings(
        runs=settings.runs, data=(str(folder),), cache=settings.cache, out=tmp_path / "out"
    )
    monkeypatch.setenv(VARIABLE, made.to_json())
    page = open_page("clean")
    page.segmented_control(key="clean_task").set_value("What to label next").run()
    page.number_input(key="next_count").set_value(4).run()
    page.button(key="next_start").click().run()
    assert html(checked(page)).count("<figure>") == 4
    assert page.get("download_button")


# Map ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["label", "prediction", "error", "split"])
def test_a_map_is_coloured_and_its_groups_become_a_gallery(settings, colour):
    page = open_page("map")
    page.selectbox(key="map_method").set_value("pca").run()
    page.segmented_control(key="map_colour_4").set_value(colour).run()
    checked(page)
    assert any("trustworthiness" in each.value for each in page.caption)
    groups = page.multiselect[0]
    groups.set_value(groups.options[:1]).run()
    assert html(checked(page)).count("<figure>") > 0
    assert page.get("download_button")


def test_splits_sizes_and_cache_files_can_be_chosen(settings):
    page = open_page("map")
    page.selectbox(key="map_method").set_value("pca").run()
    page.selectbox(key="map_split").set_value("all").run()
    page.selectbox(key="map_most").set_value(500).run()
    assert any("48 images" in each.value for each in checked(page).caption)
    source = page.selectbox(key="map_source")
    file = next(settings.cache.glob("*.h5"))
    source.set_value(str(file)).run()
    assert any("PCA" in each.value for each in checked(page).caption)


def test_a_split_without_images_is_explained(settings):
    page = open_page("map")
    page.selectbox(key="map_split").set_value("val").run()
    assert any("cannot project 0 images" in text for text in messages(checked(page)))


def test_without_features_the_map_says_what_to_do(tmp_path, monkeypatch):
    made = AppSettings(cache=tmp_path, out=tmp_path / "out")
    monkeypatch.setenv(VARIABLE, made.to_json())
    assert "There are no features yet" in messages(open_page("map"))[0]


# Studies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["caltech101_heads", "caltech101_longtail", "compression"])
def test_each_part_of_a_study_is_shown(monkeypatch, tmp_path, name):
    experiments = Path(__file__).parents[2] / "experiments"
    made = AppSettings(studies=(experiments,), out=tmp_path)
    monkeypatch.setenv(VARIABLE, made.to_json())
    page = open_page("studies")
    select = page.selectbox(key="studies_study")
    select.set_value(select.options.index(name)).run()
    assert checked(page).dataframe
    page.segmented_control(key="studies_part").set_value("Figures").run()
    assert checked(page).get("imgs") or page.image or page.info
    if name != "compression":
        page.segmented_control(key="studies_part").set_value("Report").run()
        assert checked(page).get("iframe")


def test_without_studies_the_page_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, AppSettings(out=tmp_path).to_json())
    assert "There are no results yet" in messages(open_page("studies"))[0]
