"""Groups of near duplicates of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

import featkit
from featkit.errors import DataError
from featkit.images import duplicates, load_images
from featkit.images.duplicates import describe, duplicate_groups

Change = Callable[[Image.Image], Image.Image]

CHANGES: dict[str, Change] = {
    "larger": lambda image: image.resize((96, 80)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "softer": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
}


def picture(rng: np.random.Generator) -> Image.Image:
    """Return a picture of smooth random colours."""
    small = rng.integers(40, 200, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC)


def write_photos(root: Path, copies: int = 10, singles: int = 60) -> Path:
    """Write pictures of two classes; the first ones of each with changed copies."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for number in range(singles):
            image = picture(rng)
            image.save(root / label / f"{number:03}.png")
            if number < copies:
                for name, change in CHANGES.items():
                    change(image).save(root / label / f"{number:03}-{name}.jpg", quality=80)
    return root


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEATKIT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_changed_copies_are_in_the_group_of_their_original(tmp_path: Path) -> None:
    """Enlarged, mirrored, brighter and softer ones, compressed as JPEG; no other images are."""
    images = load_images(write_photos(tmp_path / "photos"), group="duplicates")
    originals = [
        name.removesuffix(".png").removesuffix(".jpg").split("-")[0] for name in images.ids
    ]
    groups: dict[str, set[str]] = {}
    for original, group in zip(originals, images.groups, strict=True):
        groups.setdefault(original, set()).add(group)
    assert all(len(found) == 1 for found in groups.values())
    assert len(set(images.groups)) == len(groups) == 120
    assert "20 groups of 5 to 5 near duplicates (100 of 200 images)" in images.notes[-2]
    assert images.notes[-1].startswith("the split keeps groups together")
    of_split = {group: {split} for group, split in zip(images.groups, images.splits, strict=True)}
    for group, split in zip(images.groups, images.splits, strict=True):
        assert of_split[group] == {split}


def test_mirror_images_have_the_same_description() -> None:
    rng = np.random.default_rng(1)
    pixels = np.asarray(picture(rng))
    assert np.allclose(describe(pixels), describe(pixels[:, ::-1]), atol=1e-6)
    assert not np.allclose(describe(pixels), describe(pixels[::-1]), atol=0.05)


def test_images_without_duplicates_are_groups_of_their_own(tmp_path: Path) -> None:
    """Uniform images too, which all look the same: only identical ones are one group."""
    root = write_photos(tmp_path / "photos", copies=0, singles=20)
    for label, value in (("a", 10), ("a", 200), ("b", 10)):
        Image.new("RGB", (8, 8), (value,) * 3).save(root / label / f"flat{value}.png")
    (root / "b" / "broken.png").write_bytes(b"no image")
    groups, note = duplicate_groups(load_images(root))
    assert len(set(groups)) == 43
    assert note.startswith("1 groups of 2 to 2 near duplicates (2 of 44 images)")


def test_a_long_search_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(duplicates, "_REPORT_SECONDS", -1.0)
    images = load_images(write_photos(tmp_path / "photos", copies=0, singles=6))
    with caplog.at_level("INFO", "featkit"):
        duplicate_groups(images)
    lines = [line for line in caplog.messages if line.endswith("images read")]
    assert len(lines) == len(images)
    assert lines[-1] == f"photos: {len(images)} of {len(images)} images read"


def test_groups_are_remembered_until_a_file_changes(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged memory is not used, and young files are not remembered."""
    root = write_photos(tmp_path / "photos", copies=2, singles=12)
    images = load_images(root)
    expected = duplicate_groups(images)
    assert not data_folder.exists()  # the files are younger than two seconds
    monkeypatch.setattr("featkit.storage.YOUNG", 0)
    duplicates._found.clear()
    assert duplicate_groups(images) == expected
    (memory,) = (data_folder / "duplicates").iterdir()
    searches = []
    find = duplicates._find_groups
    monkeypatch.setattr(
        duplicates, "_find_groups", lambda images: searches.append(1) or find(images)
    )
    assert duplicate_groups(images) == expected
    duplicates._found.clear()
    assert duplicate_groups(images) == expected
    assert not searches
    duplicates._found.clear()
    memory.write_text("[1, 2", encoding="utf-8")
    assert duplicate_groups(images) == expected
    picture(np.random.default_rng(5)).save(root / "a" / "000-larger.jpg")
    assert duplicate_groups(load_images(root)) != expected
    assert len(searches) == 2


def test_folds_and_intervals_use_the_groups(tmp_path: Path) -> None:
    """They are recorded with the predictions; the number of groups in the report."""
    root = write_photos(tmp_path / "photos")
    run = featkit.fit(
        root,
        group="duplicates",
        folds=3,
        head="knn:k=1",
        backbone="resnet18",
        weights="random",
        resize="32",
        cache=tmp_path / "cache",
    )
    assert run.report.test_groups == 120
    fold_of = dict(
        zip(run.predictions.groups.tolist(), run.folds.fold_of[0].tolist(), strict=False)
    )
    for group, fold in zip(run.predictions.groups, run.folds.fold_of[0], strict=True):
        assert fold_of[str(group)] == fold
    assert run.report.provenance["request"]["group"] == "duplicates"
    assert run.prediction_rows()[0]["group"]


def test_a_class_of_duplicates_only_and_a_leak_are_refused(tmp_path: Path) -> None:
    """With the errors that any groups give."""
    root = write_photos(tmp_path / "photos", copies=1, singles=12)
    (root / "c").mkdir()
    image = picture(np.random.default_rng(9))
    for name, change in CHANGES.items():
        change(image).save(root / "c" / f"{name}.png")
    with pytest.raises(DataError, match="all 4 images of class 'c' are in group"):
        load_images(root, group="duplicates")
    split = tmp_path / "split"
    for number, path in enumerate(sorted(write_photos(tmp_path / "more", copies=3).rglob("*.*"))):
        target = split / ("test" if number % 4 == 1 else "train") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    with pytest.raises(DataError, match="groups have images in more than one split"):
        load_images(split, group="duplicates")
    assert load_images(split, group="duplicates", split="70/15/15").groups
