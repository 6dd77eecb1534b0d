"""Audits of images with known errors."""

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
    """Return a function that loads the features of the photos."""

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


def add_copies(photos):
    """Copy one image within its class and one to another class; return the pairs of names."""
    shutil.copy(photos / "red" / "0.png", photos / "red" / "copy.png")
    shutil.copy(photos / "blue" / "0.png", photos / "green" / "blue.png")
    return {("red/0.png", "red/copy.png"), ("blue/0.png", "green/blue.png")}


def test_copies_are_found_by_content(opened, photos):
    """Within a class and across classes; each finding names both images."""
    pairs = add_copies(photos)
    found = audit(opened()).findings()["identical"]
    assert {(line.image, line.other) for line in found} == pairs
    assert {(line.label, line.other_label) for line in found} == {("red", "red"), ("blue", "green")}


def test_a_wrong_label_is_the_first_suspect(opened, photos):
    """A red image among the blue ones is found, and red is suggested."""
    (photos / "red" / "7.png").rename(photos / "blue" / "stray.png")
    first = audit(opened()).findings()["suspect"][0]
    assert (first.image, first.label, first.other_label) == ("blue/stray.png", "blue", "red")
    assert first.score > 1


def test_copies_do_not_support_a_wrong_label(opened, photos):
    """A wrong label is found even if the image is there many times."""
    for number in range(6):
        shutil.copy(photos / "red" / "7.png", photos / "blue" / f"stray{number}.png")
    (photos / "red" / "7.png").unlink()
    assert audit(opened()).findings()["suspect"][0].image == "blue/stray0.png"


def test_leaks_are_test_images_that_are_also_in_train(opened, photos):
    """Copies within one split are no leaks."""
    add_copies(photos)
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
    """Keys are those of the images that have features."""
    (photos / "blue" / "0.png").write_bytes(b"not an image")
    given = {"data": str(photos), "backbone": "resnet18", "weights": "random", "resize": "32"}
    source = load_features(given, tmp_path / "cache", Compute(on_error="skip"))
    assert len(cached_keys(source)) == len(source.embeddings) == 23
    assert "blue/0.png" not in {
        line.image for lines in audit(source).findings().values() for line in lines
    }


def test_classes_too_small_to_be_checked_are_noted_and_listed(opened, photos):
    """Their labels are not suspect."""
    for place, colour in enumerate(("black", "white")):
        (photos / colour).mkdir()
        Image.fromarray(np.full((20, 24, 3), 255 * place, np.uint8)).save(photos / colour / "0.png")
    done = audit(opened(), few=2)
    assert {line.label for line in done.findings()["small"]} == {"black", "white"}
    assert done.notes[0].startswith("2 labels not checked")
    assert not {"black", "white"} & {line.label for line in done.findings()["suspect"]}


def test_copies_of_a_single_image_cannot_be_audited(opened, photos):
    """There is nothing to compare."""
    for path in photos.rglob("*.png"):
        shutil.copy(photos / "red" / "0.png", path) if path != photos / "red" / "0.png" else None
    with pytest.raises(DataError, match="1 images"):
        audit(opened())


def test_the_same_audit_gives_the_same_findings_as_json_and_csv(opened, photos):
    """Both hold every finding."""
    add_copies(photos)
    source = opened()
    values = audit(source).to_dict()
    assert json.dumps(values, allow_nan=False) == json.dumps(audit(source).to_dict())
    rows = list(csv.DictReader(io.StringIO(audit(source).to_csv())))
    assert [row["image"] for row in rows] == [line["image"] for line in values["findings"]]
    assert values["counts"]["identical"]["found"] == 2
    assert values["counts"]["identical"]["labels_differ"] == 1
    assert values["images"] == 26


@pytest.mark.slow
@pytest.mark.realdata
def test_edited_copies_of_real_photographs_are_near_duplicates(real_data, real_weights, tmp_path):
    """Recompressed, smaller and brighter copies are paired with their originals."""
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
