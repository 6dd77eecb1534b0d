"""``featkit audit``: printed findings, written files and exit codes."""

from __future__ import annotations

import csv
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


# --out FILE.csv -----------------------------------------------------------------------------------


def read(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_accepted_suggestions_are_applied_to_a_list_that_fit_reads(leaky):
    done = call(
        "--data", leaky, *FAST, "--apply", "labels", "--apply", "duplicates", "--out", "clean.csv"
    )
    assert "clean.csv: " in done.stderr
    rows = {Path(row["path"]).name + row["split"]: row for row in read("clean.csv")}
    assert rows["stray.pngtrain"]["label"] == "red"
    assert "0.pngtrain" not in {key for key, row in rows.items() if row["label"] == "red"}
    assert rows["copy.pngtest"]["label"] == "red"
    assert not Path("experiments").exists()
    assert (leaky / "train" / "red" / "0.png").exists()
    again = CliRunner().invoke(main, ["fit", "--data", "clean.csv", *FAST])
    assert again.exit_code == 0, again.output


def test_suggestions_of_an_audit_are_a_decisions_file_for_the_next(leaky):
    call("--data", leaky, *FAST)
    suggestions = Path("experiments/runs/audit-leaky/suggestions.csv")
    assert "train/blue/stray.png,relabel,red,labels" in suggestions.read_text()
    call("--data", leaky, *FAST, "--decisions", suggestions, "--out", "clean.csv")
    assert {row["label"] for row in read("clean.csv") if "stray" in row["path"]} == {"red"}


def test_decisions_by_hand_come_before_accepted_suggestions(leaky):
    Path("decisions.csv").write_text("path,action,label\ntrain/blue/stray.png,keep,\n")
    call(
        "--data",
        leaky,
        *FAST,
        "--decisions",
        "decisions.csv",
        "--apply",
        "labels",
        "--out",
        "clean.csv",
    )
    assert {row["label"] for row in read("clean.csv") if "stray" in row["path"]} == {"blue"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--out", "clean.csv"), "nothing to apply"),
        (("--apply", "labels"), "need --out with a file ending in .csv"),
        (("--decisions", "decisions.csv"), "need --out with a file ending in .csv"),
        (("--apply", "everything", "--out", "clean.csv"), "everything"),
    ],
    ids=["nothing", "no list", "no list for decisions", "unknown kind"],
)
def test_options_of_the_list_that_exclude_each_other_are_wrong_usage(photos, arguments, problem):
    done = call("--data", photos, *FAST, *arguments, code=2)
    assert problem in done.stderr
    assert not Path("clean.csv").exists()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nowhere.png,drop,", "'nowhere.png', which is not an image of photos"),
        ("red/0.png,relabel,read", "unknown class"),
        ("red/0.png,delete,", "line 2 of decisions.csv"),
    ],
    ids=["path", "label", "action"],
)
def test_a_wrong_decision_is_one_line_and_writes_nothing(photos, line, problem):
    Path("decisions.csv").write_text(f"path,action,label\n{line}\n")
    done = call(
        "--data", photos, *FAST, "--decisions", "decisions.csv", "--out", "clean.csv", code=1
    )
    assert problem in done.stderr.splitlines()[-1]
    assert not Path("clean.csv").exists()


def test_the_list_that_was_audited_is_not_overwritten(photos):
    lines = ["path,label"]
    lines += [f"{path},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
    Path("clean.csv").write_text("\n".join(lines))
    done = call("--data", "clean.csv", *FAST, "--apply", "labels", "--out", "clean.csv", code=1)
    assert "choose another name" in done.stderr
    assert Path("clean.csv").read_text() == "\n".join(lines)


def test_images_that_are_no_files_cannot_be_listed():
    arguments = ("--data", "digits", "--limit", "train=60,test=20", *FAST)
    done = call(*arguments, "--apply", "labels", "--out", "clean.csv", code=1)
    assert "not single files" in done.stderr.splitlines()[-1]
