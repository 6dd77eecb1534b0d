"""An audit of images in which errors were planted."""

from __future__ import annotations

import csv
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError
from featkit.runs.features import cached_keys, load_features
from featkit.studies.audit import audit


@pytest.fixture
def opened(photos, tmp_path):
    """Opens the photos after some change to them."""

    def open_(split="50/0/50"):
        given = {
            "data": str(photos),
            "backbone": "resnet18",
            "weights": "random",
            "resize": "32",
            "split": split,
        }
        return load_features(given, tmp_path / "cache", Compute())

    return open_


def planted(photos):
    """Copies one image within its class, one under another label; returns the names as pairs."""
    shutil.copy(photos / "red" / "0.png", photos / "red" / "copy.png")
    shutil.copy(photos / "blue" / "0.png", photos / "green" / "blue.png")
    return {("red/0.png", "red/copy.png"), ("blue/0.png", "green/blue.png")}


def test_planted_copies_are_found_by_content(opened, photos):
    """Within a class and under another label; each is a line that names both images."""
    pairs = planted(photos)
    found = audit(opened()).findings()["identical"]
    assert {(line.image, line.other) for line in found} == pairs
    assert {(line.label, line.other_label) for line in found} == {("red", "red"), ("blue", "green")}


def test_a_planted_wrong_label_is_the_first_suspect(opened, photos):
    """The red picture among the blue ones is named, and red is suggested."""
    (photos / "red" / "7.png").rename(photos / "blue" / "stray.png")
    first = audit(opened()).findings()["suspect"][0]
    assert (first.image, first.label, first.other_label) == ("blue/stray.png", "blue", "red")
    assert first.score > 1


def test_a_copy_does_not_vouch_for_itself(opened, photos):
    """A wrong label is suspect even if the same wrong image is there many times."""
    for number in range(6):
        shutil.copy(photos / "red" / "7.png", photos / "blue" / f"stray{number}.png")
    (photos / "red" / "7.png").unlink()
    assert audit(opened()).findings()["suspect"][0].image == "blue/stray0.png"


def test_leaks_are_test_images_that_are_in_train(opened, photos):
    """A copy inside one split leaks nothing; one that crosses into test is named with its row."""
    planted(photos)
    source = opened()
    keys, splits = cached_keys(source), source.embeddings.splits
    expected = [
        row
        for row, key in enumerate(keys)
        if splits[row] == "test"
        and any(key == other and splits[at] != "test" for at, other in enumerate(keys))
    ]
    assert audit(source).leaks.tolist() == expected


def test_unreadable_images_are_left_out(opened, photos, tmp_path):
    """The keys are those of the images that have vectors."""
    (photos / "blue" / "0.png").write_bytes(b"not a picture")
    given = {"data": str(photos), "backbone": "resnet18", "weights": "random", "resize": "32"}
    source = load_features(given, tmp_path / "cache", Compute(on_error="skip"))
    assert len(cached_keys(source)) == len(source.embeddings) == 23
    assert "blue/0.png" not in {
        line.image for lines in audit(source).findings().values() for line in lines
    }


def test_classes_too_small_to_be_judged_are_noted_and_listed(opened, photos):
    """Their labels are not called wrong."""
    for place, colour in enumerate(("black", "white")):
        (photos / colour).mkdir()
        Image.fromarray(np.full((20, 24, 3), 255 * place, np.uint8)).save(photos / colour / "0.png")
    done = audit(opened(), few=2)
    assert {line.label for line in done.findings()["small"]} == {"black", "white"}
    assert done.notes[0].startswith("2 labels not checked")
    assert not {"black", "white"} & {line.label for line in done.findings()["suspect"]}


def test_one_image_many_times_is_not_enough(opened, photos):
    """With a single content there is nothing to compare."""
    for path in photos.rglob("*.png"):
        shutil.copy(photos / "red" / "0.png", path) if path != photos / "red" / "0.png" else None
    with pytest.raises(DataError, match="1 vectors"):
        audit(opened())


def test_the_same_audit_gives_the_same_findings_as_json_and_csv(opened, photos):
    """Both hold every finding; counts are of the findings."""
    planted(photos)
    source = opened()
    values = audit(source).to_dict()
    assert json.dumps(values, allow_nan=False) == json.dumps(audit(source).to_dict())
    rows = list(csv.DictReader(io.StringIO(audit(source).to_csv())))
    assert [row["image"] for row in rows] == [line["image"] for line in values["findings"]]
    assert values["counts"]["identical"]["found"] == 2
    assert values["counts"]["identical"]["labels_differ"] == 1
    assert values["images"] == 26


@pytest.mark.realdata
def test_changed_copies_of_real_photographs_are_near_duplicates(real_data, real_weights, tmp_path):
    """A JPEG of lower quality, a smaller one and a brighter one are paired with their originals."""
    changes = {
        "jpeg": lambda image: image,
        "smaller": lambda image: image.resize((image.width * 4 // 5, image.height * 4 // 5)),
        "brighter": lambda image: image.point(lambda value: min(255, value * 11 // 10)),
    }
    expected = set()
    for label in ("airplanes", "ant", "lotus", "Leopards"):
        for number, path in enumerate(
            sorted((real_data / "caltech101" / "train" / label).iterdir())[:15]
        ):
            folder = tmp_path / "photos" / label
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)
            if number < len(changes):
                name, change = list(changes.items())[number]
                with Image.open(path) as image:
                    change(image.convert("RGB")).save(
                        folder / f"{path.stem}-{name}.jpg", quality=60
                    )
                expected.add(
                    tuple(sorted((f"{label}/{path.name}", f"{label}/{path.stem}-{name}.jpg")))
                )
    source = load_features(
        {"data": str(tmp_path / "photos"), "backbone": "resnet18"}, tmp_path / "cache", Compute()
    )
    found = {tuple(sorted((line.image, line.other))) for line in audit(source).findings()["near"]}
    assert len(expected & found) >= 11
    assert len(found - expected) <= 3
