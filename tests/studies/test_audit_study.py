"""Audits of images with known errors."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import featkit
from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError
from featkit.runs.features import cached_keys, load_features
from featkit.similarity import nearest_neighbours
from featkit.studies.audit import QUALITY, _folds_of_labels, _label_errors, audit


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


def scenes(folder):
    """Write 40 photos of about the same quality, and one of each kind that differs."""
    rng = np.random.default_rng(0)
    made = {}
    for number in range(40):
        low = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        fine = np.asarray(Image.fromarray(low).resize((64, 48), Image.Resampling.BICUBIC))
        made[f"{number}.png"] = np.clip(fine + rng.normal(0, 20, fine.shape), 0, 255)
    usual = made["0.png"]
    blurred = Image.fromarray(usual.astype(np.uint8)).resize((4, 3)).resize((64, 48))
    made["dark.png"] = usual * 0.04
    made["bright.png"] = 255 - usual * 0.04
    made["blurred.png"] = np.asarray(blurred)
    made["low information.png"] = np.where(usual > 254, 120, 130)
    made["odd size.png"] = np.tile(usual, (5, 5, 1))
    made["odd aspect ratio.png"] = np.tile(usual, (1, 3, 1))[:24]
    for number, (name, pixels) in enumerate(made.items()):
        parent = folder / ("even" if number % 2 else "odd")
        parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(parent / name)


def test_images_of_odd_quality_are_found(tmp_path):
    """Each kind is the first of its findings; the limits and deviations are stated."""
    scenes(tmp_path / "set")
    options = {"backbone": "resnet18", "weights": "random", "resize": "32"}
    result = featkit.audit(tmp_path / "set", cache=tmp_path, **options)
    found = result.findings()
    for kind in QUALITY:
        assert found[kind][0].image.endswith(f"/{kind}.png"), kind
        assert abs(found[kind][0].score) > 3.5
        assert result.counts()[kind]["found"] == len(found[kind]) <= 4
    assert found["dark"][0].score < 0 < found["bright"][0].score
    assert "3.5 robust standard deviations" in result.quality.sentence()
    assert len(result.to_dict()["quality_limits"]) == 5
    assert "dark,odd/dark.png" in result.to_csv()

    plain = featkit.audit(tmp_path / "set", cache=tmp_path, quality=False, **options)
    assert plain.quality is None
    assert not plain.findings().keys() & set(QUALITY)


def test_quality_is_left_out_if_the_images_are_gone(tmp_path, caplog):
    """The features are cached; the other findings do not need the images."""
    scenes(tmp_path / "set")
    options = {"backbone": "resnet18", "weights": "random", "resize": "32"}
    featkit.audit(tmp_path / "set", cache=tmp_path / "cache", quality=False, **options)
    (path,) = (tmp_path / "cache").glob("*.h5")
    (tmp_path / "set" / "odd" / "dark.png").unlink()
    with caplog.at_level("INFO"):
        assert featkit.audit(cache=path, out=tmp_path).quality is None
    assert "no image quality: set has changed since its features were extracted" in caplog.text
    assert (tmp_path / "audit-set" / "findings.csv").exists()
    caplog.clear()
    shutil.rmtree(tmp_path / "set")
    with caplog.at_level("INFO"):
        assert featkit.audit(cache=path).quality is None
    assert "no image quality" in caplog.text


def test_an_unreadable_image_has_no_quality(opened, photos):
    """It was readable when its features were extracted."""
    source = opened()
    images = source.request.source_only.load_images()
    (photos / "red" / "0.png").write_bytes(b"no image")
    result = audit(source, images=images)
    assert result.notes[-1] == "the quality of 1 images is unknown: they cannot be read"


# Groups -------------------------------------------------------------------------------------------


def grouped_images(classes=4, groups=6, size=5, dim=16, seed=0):
    """Return features, labels and groups: images of a group resemble each other."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(classes, dim))
    y = np.repeat(np.arange(classes), groups * size)
    group = np.repeat(np.arange(classes * groups), size)
    own = 2 * rng.normal(size=(classes * groups, dim))[group]
    x = centres[y] + own + 0.1 * rng.normal(size=(len(y), dim))
    return x.astype(np.float32), y.astype(np.int64), group


def audited(opened, x, y, group):
    """Audit features with labels and groups; None for no groups."""
    source = opened()
    n = len(y)
    embeddings = replace(
        source.embeddings,
        x=x,
        y=y,
        ids=tuple(f"{row}.png" for row in range(n)),
        classes=tuple(f"c{label}" for label in range(y.max() + 1)),
        splits=np.full(n, "train"),
        groups=None if group is None else np.array([f"g{each}" for each in group]),
    )
    neighbours = nearest_neighbours(x)
    return _label_errors(embeddings, neighbours, 0, iter)


def test_a_group_with_a_wrong_label_is_found(opened):
    """Images of the group in another fold, and its own neighbours, would confirm the label."""
    x, y, group = grouped_images()
    wrong = group == 7
    given = np.where(wrong, (y + 1) % 4, y)
    without, _ = audited(opened, x, given, None)
    found, notes = audited(opened, x, given, group)
    assert notes == ()
    assert set(np.flatnonzero(wrong)) <= set(found.rows.tolist())
    assert not set(np.flatnonzero(wrong)) & set(without.rows.tolist())


def test_labels_of_a_class_of_one_group_are_not_checked(opened):
    """A head that never saw the class would call all of its labels wrong."""
    x, y, group = grouped_images()
    group = np.where(y == 2, 99, group)
    found, notes = audited(opened, x, y, group)
    assert notes == ("labels of c2 not checked: their groups are too few for 3 folds",)
    assert not set(np.flatnonzero(y == 2)) & set(found.rows.tolist())
    # The only group of the class may fill a fold, which is empty without it.
    large = np.flatnonzero((y == 2) | ((y < 2) & (group % 6 < 2)))
    _, notes = audited(opened, x[large], y[large], group[large])
    assert len(notes) == 1
    found, notes = audited(opened, x, y, np.zeros_like(y))
    assert len(found.rows) == 0
    assert "c0, c1, c2, c3 not checked" in notes[0]


def test_no_group_is_in_two_folds_of_the_label_check(opened):
    x, y, group = grouped_images(size=4)
    embeddings = replace(
        opened().embeddings,
        x=x,
        y=y,
        ids=tuple(map(str, range(len(y)))),
        groups=np.array([f"g{each}" for each in group]),
    )
    fold, lost = _folds_of_labels(embeddings, 0)
    assert len(lost) == 0
    assert set(fold.tolist()) == {0, 1, 2}
    assert all(len(set(fold[group == each].tolist())) == 1 for each in set(group.tolist()))
