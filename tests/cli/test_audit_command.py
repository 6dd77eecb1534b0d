"""``featkit audit``: printed findings, written files and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from featkit.cli import main

FAST = ("--weights", "random", "--resize", "32")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def leaky(photos):
    """The photos in train and test folders, with one image in both and one under a wrong label."""
    for path in sorted(photos.rglob("*.png")):
        split = "test" if path.stem in "67" else "train"
        target = photos.parent / "leaky" / split / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    root = photos.parent / "leaky"
    shutil.copy(root / "train" / "red" / "0.png", root / "test" / "red" / "copy.png")
    (root / "train" / "red" / "1.png").rename(root / "train" / "blue" / "stray.png")
    return root


def call(*arguments, code=0):
    done = CliRunner().invoke(main, ["audit", *map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_audit_finds_planted_errors_and_writes_four_files(leaky):
    done = call("--data", leaky, *FAST)
    assert "train/blue/stray.png (train)" in done.stdout
    assert "test/red/copy.png (test)" in done.stdout
    assert "closer than 0." in done.stdout
    folder = Path("experiments/runs/audit-leaky")
    assert sorted(path.name for path in folder.iterdir()) == [
        "audit.json",
        "contact.png",
        "findings.csv",
        "suggestions.csv",
    ]
    with Image.open(folder / "contact.png") as sheet:
        assert sheet.width > 1000


def test_json_output_equals_the_file(leaky):
    done = call("--data", leaky, *FAST, "--json")
    assert done.stdout.strip() == Path("experiments/runs/audit-leaky/audit.json").read_text()
    assert json.loads(done.stdout)["in_train_and_test"] == ["test/red/copy.png"]


def test_strict_fails_on_a_shared_image_after_the_report(leaky, photos):
    done = call("--data", leaky, *FAST, "--strict", code=1)
    assert "1 test images are in train too" in done.stderr.splitlines()[-1]
    assert Path("experiments/runs/audit-leaky/audit.json").exists()
    call("--data", photos, *FAST, "--strict")


def test_without_images_only_the_contact_sheet_is_missing(photos):
    call("--data", photos, *FAST)
    shutil.rmtree(photos)
    done = call("--out", "again")
    assert "no contact.png" in done.stderr
    assert sorted(path.name for path in Path("again/audit-photos").iterdir()) == [
        "audit.json",
        "findings.csv",
        "suggestions.csv",
    ]


def test_control_characters_in_names_are_escaped(photos):
    (photos / "red").rename(photos / "r\x1b[31med")
    done = call("--data", photos, *FAST)
    assert "\x1b" not in done.stdout
    assert "r\\x1b[31med" in done.stdout


def test_top_limits_the_printed_findings(photos):
    assert "more in findings.csv" in call("--data", photos, *FAST, "--top", "1").stdout
    assert "train images\n" not in call("--data", photos, *FAST, "--top", "0").stdout
