"""What the page Train says about images before anything is trained on them."""

from __future__ import annotations

import shutil

import featkit
from featkit.app.data import check_files, summarise_data


def test_images_are_counted_by_class_and_split(project):
    found = summarise_data(featkit.load_images(project / "photos"))
    assert found.n == 48
    assert found.split == "the data's own"
    assert found.counts[0] == {"class": "<b>bee", "train": 10, "val": 0, "test": 6}
    assert any("3 classes have fewer than 20 training images" in text for text in found.warnings)


def test_a_class_without_test_images_is_reported(project, tmp_path):
    shutil.copytree(project / "photos", tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos" / "test" / "ant")
    found = summarise_data(featkit.load_images(tmp_path / "photos"))
    assert "1 classes have no test image: ant." in found.warnings


def test_unreadable_and_identical_files_are_found(project, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(project / "photos", photos)
    (photos / "train" / "ant" / "1.png").write_bytes(b"")
    shutil.copy(photos / "train" / "ant" / "2.png", photos / "train" / "ant" / "3.png")
    shutil.copy(photos / "train" / "ant" / "4.png", photos / "test" / "ant" / "4.png")
    steps = []
    found = check_files(
        featkit.load_images(photos), lambda done, total: steps.append((done, total))
    )
    assert [name for name, _ in found.unreadable] == ["train/ant/1.png"]
    assert "empty" in found.unreadable[0][1]
    assert found.shared == (("test/ant/4.png", "train/ant/4.png"),)
    assert found.duplicates == 1
    assert steps[-1] == (48, 48)


def test_intact_files_have_no_findings(project):
    found = check_files(featkit.load_images(project / "photos"))
    assert found.unreadable == found.shared == ()
    assert found.duplicates == 0
