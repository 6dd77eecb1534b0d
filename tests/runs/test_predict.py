"""Prediction with a saved run, as a program calls it again and again."""

from __future__ import annotations

import csv
import gc
import io
from pathlib import Path

import pytest
from torch import nn

import featkit
from featkit.errors import DataError
from featkit.runs.predict import Prediction, prediction_rows, predictions_csv, sort_into


@pytest.fixture
def no_collection():
    """Turn Python's garbage collector off: only reference counts free memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def live_modules():
    # type() and not isinstance(): some objects of torch warn when they are asked for a class.
    return sum(issubclass(type(each), nn.Module) for each in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, "layer2.0.conv1"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_networks_are_freed_without_the_garbage_collector(
    photos, tmp_path, layer, precision, no_collection
):
    """A loop over ``predict`` needs constant memory: no network is in a cycle of references."""
    run = featkit.fit(
        photos,
        weights="random",
        resize="32",
        layer=layer,
        precision=precision,
        head="prototypical",
        cache=tmp_path / "cache",
        out=tmp_path / "runs",
    )
    image = photos / "red" / "0.png"
    assert featkit.predict(run, image)[0].top[0][0] == "red"
    gc.collect()  # what the first imports have left behind
    start = live_modules()
    for _ in range(3):
        featkit.predict(run, image)
    assert live_modules() == start


TWO = (("red", 0.75), ("blue", 0.25))
PREDICTIONS = [
    Prediction("a.png", TWO, probabilities=dict(TWO)),
    Prediction("b.png", TWO, rejected=True, probabilities=dict(TWO)),
]


def test_csv_json_and_python_have_the_same_schema():
    first = PREDICTIONS[0]
    assert (first.predicted, first.confidence, first.answer) == ("red", 0.75, "red")
    assert PREDICTIONS[1].answer == "unknown"
    flat = {"path": "a.png", "predicted": "red", "confidence": 0.75, "rejected": False}
    flat |= {"top2": "blue", "confidence2": 0.25}
    assert first.to_dict() == {**flat, "probabilities": {"red": 0.75, "blue": 0.25}}
    rows = prediction_rows(PREDICTIONS)
    assert rows[0] == {**flat, "p(red)": 0.75, "p(blue)": 0.25}
    read = list(csv.DictReader(io.StringIO(predictions_csv(PREDICTIONS))))
    assert list(read[0]) == list(rows[0])
    assert read[1]["rejected"] == "true"
    assert read[0]["p(red)"] == "0.750000"
    assert predictions_csv([]) == "path,predicted,confidence,rejected\n"


def image(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def test_images_are_copied_into_folders_by_class_and_never_overwritten(tmp_path):
    paths = [
        image(tmp_path / "in" / folder / "1.jpg", content)
        for folder, content in (("x", b"1"), ("y", b"2"), ("z", b"3"))
    ]
    classes = (("a/b", 0.9),)
    found = [Prediction(paths[0], TWO), Prediction(paths[1], TWO)]
    found += [Prediction(paths[2], TWO, rejected=True), Prediction(paths[0], classes)]
    for _ in range(2):  # again: nothing is copied twice
        counts = sort_into(found, tmp_path / "out")
        copies = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
        names = [str(path.relative_to(tmp_path / "out")) for path in copies]
        assert names[1:] == ["red/1-2.jpg", "red/1.jpg", "unknown/1.jpg"]
        assert names[0].startswith("a_b-")  # no folder outside
        assert [path.read_bytes() for path in copies] == [b"1", b"2", b"1", b"3"]
    assert [counts[name] for name in ("red", "unknown")] == [2, 1]
    assert all(Path(path).is_file() for path in paths)
    with pytest.raises(DataError, match="choose another folder"):
        sort_into(found, tmp_path / "in")


def test_a_class_called_unknown_does_not_share_the_folder_of_rejected_images(tmp_path):
    path = image(tmp_path / "in" / "1.jpg", b"1")
    of_class = Prediction(path, (("Unknown", 0.9),))
    counts = sort_into([of_class, Prediction(path, TWO, rejected=True)], tmp_path / "out")
    assert sorted(counts.values()) == [1, 1]
    assert "unknown" in counts
    assert all(name == "unknown" or name.startswith("Unknown-") for name in counts)


def test_classes_that_differ_in_case_only_do_not_share_a_folder(tmp_path):
    """As on macOS and Windows, also if one of them was copied before."""
    path = image(tmp_path / "in" / "1.jpg", b"1")
    for labels in (["cat"], ["Cat", "CAT", "cat"], ["Cat", "aux", "Nul"]):
        predictions = [Prediction(path, ((label, 0.9),)) for label in labels]
        counts = sort_into(predictions, tmp_path / "out")
        assert list(counts.values()) == [1] * len(labels)
    names = [folder.name for folder in (tmp_path / "out").iterdir()]
    assert len({name.casefold() for name in names}) == len(names) == 5
    assert "cat" in names
    assert all(name.casefold() not in ("aux", "nul") for name in names)


def test_a_loaded_run_predicts_as_the_function_does(photos, tmp_path):
    run = featkit.fit(
        photos,
        weights="random",
        resize="32",
        head="prototypical",
        cache=tmp_path / "cache",
        out=tmp_path / "runs",
    )
    loaded = featkit.load_run(run.id)
    here = loaded.predict(photos, all_probabilities=True)
    there = featkit.predict(run, photos, all_probabilities=True, sort_into=tmp_path / "sorted")
    assert here == there
    assert len(here) == 24
    assert sum(here[0].probabilities.values()) == pytest.approx(1)
    assert len(list((tmp_path / "sorted" / "red").iterdir())) == 8
