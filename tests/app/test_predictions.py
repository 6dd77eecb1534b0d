"""Models that stay open, uploaded images, and the predictions of predictions of a session."""

from __future__ import annotations

import csv
import io
import json
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

import featkit
from featkit.app.models import Model, load_model
from featkit.app.predictions import SessionPredictions, in_order, predictions_csv
from featkit.app.uploads import data_set_images, uploaded_image
from featkit.errors import RunError, WeightsError
from featkit.runs.classifier import open_classifier
from tests.app.conftest import CLASSES, png


@pytest.fixture
def models(settings, runs):
    return {str(path): load_model(path, settings.cache, "cpu") for path in runs}


@pytest.fixture
def test_file(project):
    return project / "photos" / "test" / "ant" / "0.png"


@pytest.mark.parametrize("place", [0, 1])
def test_an_open_classifier_answers_as_predict_does(runs, project, place):
    files = sorted((project / "photos" / "test").glob("*/*.png"))[:5]
    expected = featkit.predict(runs[place], files, device="cpu")
    classifier = open_classifier(runs[place], "cpu")
    for file, found in zip(files, expected, strict=True):
        answer = classifier.classify(np.asarray(Image.open(file)), str(file))
        assert answer.prediction.predicted == found.predicted
        assert answer.prediction.path == str(file)
        for (name, value), (other, other_value) in zip(
            answer.prediction.top, found.top, strict=True
        ):
            assert name == other
            assert value == pytest.approx(other_value, abs=1e-4)
        assert answer.milliseconds > 0


@pytest.mark.slow
def test_an_exported_file_answers_as_its_run_does(runs, project, tmp_path, test_file, settings):
    pytest.importorskip("onnxruntime")
    file = tmp_path / "model.onnx"
    featkit.export(runs[0], out=file, check=4, device="cpu")
    pixels = np.asarray(Image.open(test_file))
    exported, run = open_classifier(file), open_classifier(runs[0], "cpu")
    assert exported.edge == run.edge == 64  # large photos are scaled
    expected = run.classify(pixels).prediction.top
    found = exported.classify(pixels).prediction.top
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [value for _, value in found] == pytest.approx([v for _, v in expected], abs=1e-3)
    evidence = Model(file, settings.cache).evidence(pixels, exported.classify(pixels))
    assert evidence.heat_map is None
    assert "Exported files" in evidence.notes[0]


def test_evidence_is_a_heat_map_and_training_images_of_any_head(models, test_file):
    pixels = np.asarray(Image.open(test_file))
    for model in models.values():
        evidence = model.evidence(pixels, model.classify(pixels))
        assert evidence.heat_map.shape == (64, 64, 3)
        assert evidence.heat_map.std() > 0
        assert len(evidence.similar) == 4
        assert all(each.image is not None for each in evidence.similar)
        assert evidence.notes == ()


def test_without_the_cache_predictions_work_and_a_note_says_what_is_missing(
    runs, tmp_path, test_file
):
    pixels = np.asarray(Image.open(test_file))
    model = Model(runs[0], tmp_path, "cpu")
    evidence = model.evidence(pixels, model.classify(pixels))
    assert evidence.heat_map is not None
    assert "are not in" in evidence.notes[0]


def test_a_model_is_loaded_once_and_again_after_a_change(settings, runs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(runs[0], copy)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(load_model(copy, settings.cache, "cpu")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(model) for model in found}) == 1
    card = json.loads((copy / "card.json").read_text())
    card["threshold"] = 0.9
    (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(RunError, match="was changed after the run"):
        load_model(copy, settings.cache, "cpu")


@pytest.mark.slow
def test_a_run_whose_weights_are_gone_is_refused(runs, tmp_path, settings):
    state = tmp_path / "resnet18.pth"
    torch = pytest.importorskip("torch")
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), state)
    photos = settings.data[0]
    options = {"backbone": "resnet18", "resize": "64", "crop": "64", "cache": settings.cache}
    featkit.fit(photos, weights=str(state), out=tmp_path / "runs", **options)
    (run,) = (tmp_path / "runs").glob("*/*/")
    state.unlink()
    with pytest.raises(WeightsError, match=r"resnet18\.pth"):
        load_model(run, settings.cache, "cpu")


def rubbish():
    """Return uploads that cannot be read, by their names, with what the message says."""
    pixels = np.zeros((30, 30, 3), np.uint8)
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    return {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"hello " * 50, "not one of the formats"),
        "<b>cut</b>.png": (
            png(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))[:400],
            "cannot be decoded",
        ),
        "bomb.png": (bomb.getvalue(), "megapixels"),
        "page.html": (b"<html><script>alert(1)</script></html>", "not one of the formats"),
        "../../etc/passwd": (png(pixels)[:20], "cannot be decoded"),
    }


def test_rubbish_is_reported_and_does_not_stop_the_others(models, test_file):
    predictions = SessionPredictions()
    images = [uploaded_image(name, data) for name, (data, _) in rubbish().items()]
    images.append(uploaded_image("good.png", test_file.read_bytes()))
    classified = list(predictions.classify(images, models))
    for each, (name, (_, message)) in zip(classified, rubbish().items(), strict=False):
        assert message in each.decoded.error
        assert name in each.decoded.error
        assert each.answers == {}
    assert classified[-1].decoded.error == ""
    assert len(classified[-1].answers) == 2
    rows = list(csv.DictReader(io.StringIO(predictions_csv(classified, {k: k for k in models}))))
    assert len(rows) == len(rubbish()) + 2
    assert rows[-1]["path"] == "good.png"
    assert float(rows[-1]["confidence"]) > 0


def test_an_animation_is_classified_by_its_first_frame(models):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    still = io.BytesIO()
    frames[0].save(still, "GIF")
    animated, single = SessionPredictions().classify(
        [uploaded_image("a.gif", buffer.getvalue()), uploaded_image("b.gif", still.getvalue())],
        models,
    )
    assert animated.decoded.error == ""
    for key in models:
        assert animated.answers[key].prediction.top == single.answers[key].prediction.top


def test_predictions_are_computed_once_and_forgotten_with_the_image(models, test_file):
    predictions, images = SessionPredictions(), [uploaded_image("a.png", test_file.read_bytes())]
    first = next(iter(predictions.classify(images, models)))
    assert next(iter(predictions.classify(images, models))) is first
    list(predictions.classify([], models))
    assert next(iter(predictions.classify(images, models))) is not first


def test_a_model_that_is_added_later_classifies_the_same_images(models, test_file):
    predictions, images = SessionPredictions(), [uploaded_image("a.png", test_file.read_bytes())]
    keys = list(models)
    (first,) = predictions.classify(images, {keys[0]: models[keys[0]]})
    assert set(first.answers) == {keys[0]}
    (again,) = predictions.classify(images, models)
    assert set(again.answers) == set(keys)


def test_two_sessions_see_only_their_own_images(models, test_file):
    mine, other = SessionPredictions(), SessionPredictions()
    list(mine.classify([uploaded_image("mine.png", test_file.read_bytes())], models))
    assert list(other.classify([], models)) == []


def test_disagreements_come_first_then_the_least_certain(models, settings):
    images = featkit.load_images(settings.data[0])
    rows = [int(row) for row in images.rows("test")]
    classified = list(SessionPredictions().classify(data_set_images(images, rows), models))
    ordered = in_order(classified, list(models))
    disagree = [each.disagrees(models) for each in ordered]
    assert disagree == sorted(disagree, reverse=True)
    agreeing = [each.confidence(models) for each in ordered if not each.disagrees(models)]
    assert agreeing == sorted(agreeing)
    assert {each.image.true for each in classified} == set(CLASSES)


def jpeg(pixels):
    """Return an image as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Photos that are large for a network that needs 32 pixels, and runs of both decodings."""
    folder = tmp_path_factory.mktemp("album")
    for number in range(12):
        path = folder / "photos" / ("test" if number < 4 else "train") / "ab"[number % 2]
        path.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (150, 200, 3), dtype=np.uint8)
        (path / f"{number}.jpg").write_bytes(jpeg(pixels))
    for decode in ("scaled", "full"):
        featkit.fit(
            folder / "photos",
            backbone="resnet18",
            weights="random",
            resize="32",
            crop="32",
            precision="fp32",
            device="cpu",
            head="linear:C=100",
            decode=decode,
            cache=folder / "cache",
            out=folder / decode,
        )
    return folder


def run_of(album, decode):
    (card,) = (album / decode).rglob("card.json")
    return card.parent


def confidences(prediction):
    return dict(prediction.top)


def test_large_photos_are_decoded_as_each_model_needs_it(album):
    """As ``predict`` does; the size that is shown is that of the photo."""
    file = album / "photos" / "test" / "a" / "0.jpg"
    expected = {}
    for decode in ("scaled", "full"):
        (prediction,) = featkit.predict(run_of(album, decode), [file], device="cpu")
        expected[decode] = confidences(prediction)
    assert expected["scaled"]["a"] != pytest.approx(expected["full"]["a"], abs=1e-4)
    images = featkit.load_images(album / "photos")
    row = images.ids.index("test/a/0.jpg")
    given = [uploaded_image("0.jpg", file.read_bytes()), *data_set_images(images, [row])]
    models = {name: load_model(run_of(album, name), album / "cache", "cpu") for name in expected}
    for each in SessionPredictions().classify(given, models):
        assert each.decoded.size == (200, 150)
        for name, values in expected.items():
            found = confidences(each.answers[name].prediction)
            assert found == pytest.approx(values, abs=1e-5)
