"""Maps of features: positions, colours, selection."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from featkit.app.maps import (
    MapChoice,
    cached_features,
    chart_options,
    map_columns,
    map_of_file,
    map_of_run,
    selected_rows,
    selection_csv,
)
from featkit.errors import CacheError, DataError
from tests.app.conftest import CLASSES

PCA = MapChoice(method="pca")


@pytest.fixture
def found(runs, settings):
    return map_of_run(runs[0], settings.cache, PCA)


def test_a_run_is_shown_with_its_predictions(found):
    assert len(found.names) == 18
    assert set(found.labels) == set(CLASSES)
    assert set(found.splits) == {"test"}
    assert found.has_predictions
    assert set(found.groups("error")) <= {"right", "wrong"}
    assert set(found.groups("prediction")) <= set(CLASSES)
    right = sum(a == b for a, b in zip(found.labels, found.predictions, strict=True))
    assert found.groups("error").count("right") == right
    assert all(picture.startswith("data:image/jpeg") for picture in found.pictures)


def test_a_cache_file_is_shown_without_predictions(settings):
    path = next(file for file, name in cached_features(settings.cache).items() if "48" in name)
    found = map_of_file(Path(path), MapChoice(method="pca", split="all", most=20))
    assert len(found.names) == 20
    assert not found.has_predictions
    assert set(found.groups("split")) == {"train", "test"}


def test_names_of_cache_files_say_what_they_hold(settings):
    names = cached_features(settings.cache).values()
    assert any(name.startswith("photos, resnet18, 48 images") for name in names)


def test_images_of_other_splits_have_no_prediction(runs, settings):
    found = map_of_run(runs[0], settings.cache, MapChoice(method="pca", split="train"))
    assert set(found.groups("error")) == {"no prediction"}


def test_features_that_are_gone_are_reported(runs, tmp_path):
    with pytest.raises(DataError, match="are not in"):
        map_of_run(runs[0], tmp_path, PCA)


def test_a_damaged_cache_file_is_reported(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"nothing")
    assert cached_features(tmp_path) == {}
    with pytest.raises(CacheError):
        map_of_file(tmp_path / "a.h5", PCA)


def test_the_chart_has_a_colour_for_each_group_and_box_and_lasso(found):
    columns = map_columns(found, "label")
    assert {len(values) for values in columns.values()} == {18}
    options = chart_options(columns)
    assert options["visualMap"]["categories"] == sorted(CLASSES)
    assert len(set(options["visualMap"]["inRange"]["color"])) == 3
    assert options["toolbox"]["feature"]["brush"]["type"] == ["rect", "polygon", "clear"]


def test_many_groups_have_colours_but_no_legend():
    groups = [str(number) for number in range(60)]
    columns = {"x": [0.0] * 60, "y": [0.0] * 60, "group": groups}
    legend = chart_options(columns)["visualMap"]
    assert not legend["show"]
    assert len(set(legend["inRange"]["color"])) == 60


def test_a_selection_becomes_rows_and_csv(found):
    selection = [{"data_indices": [3, 1, 99, -1]}, {"data_indices": [3, 2]}]
    assert selected_rows(selection, 18) == [1, 2, 3]
    assert selected_rows(None, 18) == []
    rows = list(csv.DictReader(io.StringIO(selection_csv(found, [1, 2]))))
    assert [row["path"] for row in rows] == [found.names[1], found.names[2]]
    # A spreadsheet would take the name of the third class for a formula.
    assert {row["label"] for row in rows} <= {"ant", "<b>bee", "'=cat"}
