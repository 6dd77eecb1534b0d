"""Data sets after decisions and accepted suggestions."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featkit import api, load_images
from featkit.embeddings.base import Embeddings
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.request import Request
from featkit.errors import DataError, SpecError
from featkit.evaluation.audit import LabelErrors
from featkit.runs.directory import save_run
from featkit.similarity import NearDuplicates
from featkit.studies.audit import AuditResult
from featkit.studies.clean import (
    Decision,
    clean,
    duplicate_groups,
    read_decisions,
    suggest_decisions,
    suggestions_csv,
)

SPLITS = ("train", "train", "train", "train", "test", "test")
NAMES = ("a.png", "b.png", "c.png", "d.png", "e.png", "f.png")
LABELS = ("cat", "dog", "cat", "dog", "cat", "dog")


def write_list(folder, names=NAMES, labels=LABELS, splits=SPLITS, groups=None):
    """Write small images and the CSV file that lists them; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,label,split" + (",group" if groups else "")]
    for row, name in enumerate(names):
        Image.fromarray(np.full((2, 2, 3), row, np.uint8)).save(folder / name)
        quoted = '"' + name.replace('"', '""') + '"'
        group = f",{groups[row]}" if groups else ""
        lines.append(f"{quoted},{labels[row]},{splits[row]}{group}")
    path = folder / "list.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    return path


def audit_of(path, *, identical=(), near=(), suspects=()):
    """Return an audit of listed images with given findings; suspects are (row, class)."""
    images = load_images(path)
    embeddings = Embeddings(
        np.eye(len(images), dtype=np.float32),
        images.labels,
        images.ids,
        images.classes,
        images.splits,
        Recipe(*["x"] * 8, {}, "fp32"),
    )
    rows = np.array([row for row, _ in suspects], np.int64)
    suggested = np.array([images.classes.index(name) for _, name in suspects], np.int64)
    return AuditResult(
        data="list",
        request=Request(data=str(path)),
        embeddings=embeddings,
        identical=[np.array(group) for group in identical],
        leaks=np.empty(0, np.int64),
        near=NearDuplicates(
            np.array(near, np.int64).reshape(-1, 2), np.ones(len(near)), 0.1, 2, 3.0, 0.9
        ),
        suspects=LabelErrors(rows, suggested, np.full(len(rows), 5.0)),
        small=np.empty(0, np.int64),
        sizes=np.ones((len(images.classes), 2), np.int64),
        few=20,
    )


def listed(cleaned, folder):
    return {row["path"]: row for row in cleaned.rows(folder)}


def test_decisions_keep_relabel_and_drop(tmp_path):
    result = audit_of(write_list(tmp_path))
    decisions = [
        Decision("a.png", "relabel", "dog"),
        Decision("b.png", "drop"),
        Decision("c.png", "keep"),
    ]
    cleaned = clean(result, decisions)
    rows = listed(cleaned, tmp_path)
    assert list(rows) == ["a.png", "c.png", "d.png", "e.png", "f.png"]
    assert rows["a.png"]["label"] == "dog"
    assert rows["c.png"]["label"] == "cat"
    assert cleaned.counts == {"listed": 5, "relabelled": 1, "dropped": 1}


def test_the_written_list_reads_back_as_the_same_data(tmp_path):
    result = audit_of(write_list(tmp_path), identical=[[0, 2]])
    cleaned = clean(result, [Decision("d.png", "relabel", "cat")])
    for folder in (tmp_path, tmp_path / "other", tmp_path.parent):
        cleaned.write(folder / "clean.csv")
        images = load_images(folder / "clean.csv")
        assert images.split == "own"
        assert images.classes == ("cat", "dog")
        assert images.labels.tolist() == [0, 1, 0, 0, 0, 1]
        assert images.splits.tolist() == list(SPLITS)
        assert [images.groups.count(group) for group in images.groups] == [2, 1, 2, 1, 1, 1]
        assert [images.load(row)[0, 0, 0] for row in range(6)] == list(range(6))


def test_duplicates_that_are_kept_are_in_one_split(tmp_path):
    result = audit_of(write_list(tmp_path), identical=[[0, 4]], near=[(1, 0)])
    cleaned = clean(result)
    assert cleaned.images.splits.tolist() == ["test", "test", "train", "train", "test", "test"]
    assert "2 images are moved to the split of their duplicates" in cleaned.notes[0]
    cleaned.write(tmp_path / "clean.csv")
    images = load_images(tmp_path / "clean.csv")
    assert images.groups[0] == images.groups[1] == images.groups[4]


def test_paths_are_relative_below_the_list_and_absolute_elsewhere(tmp_path):
    cleaned = clean(audit_of(write_list(tmp_path / "data")))
    assert cleaned.rows(tmp_path)[0]["path"] == "data/a.png"
    elsewhere = cleaned.rows(tmp_path / "lists")[0]["path"]
    assert Path(elsewhere) == (tmp_path / "data" / "a.png").resolve()


def test_labels_are_applied_to_train_images_and_left_for_a_decision_in_test(tmp_path):
    result = audit_of(write_list(tmp_path), suspects=[(0, "dog"), (4, "dog")])
    cleaned = clean(result, apply=["labels"])
    assert listed(cleaned, tmp_path)["a.png"]["label"] == "dog"
    assert listed(cleaned, tmp_path)["e.png"]["label"] == "cat"
    assert cleaned.notes[0].startswith("1 suggested labels of test images are not applied")
    by_hand = clean(result, [Decision("e.png", "relabel", "dog")])
    assert listed(by_hand, tmp_path)["e.png"]["label"] == "dog"


def test_copies_of_a_suspect_image_get_the_same_label(tmp_path):
    labels = ("cat", "dog", "cat", "bird", "cat", "dog")
    path = write_list(tmp_path, labels=labels)
    result = audit_of(path, identical=[[0, 2]], suspects=[(0, "dog")])
    rows = listed(clean(result, apply=["labels"]), tmp_path)
    assert rows["a.png"]["label"] == rows["c.png"]["label"] == "dog"


def test_of_duplicates_the_test_image_is_kept_and_else_the_first(tmp_path):
    result = audit_of(write_list(tmp_path), identical=[[0, 4], [1, 3]])
    cleaned = clean(result, apply=["duplicates"])
    assert list(listed(cleaned, tmp_path)) == ["b.png", "c.png", "e.png", "f.png"]
    assert {each.path: each.because for each in cleaned.decisions} == {
        "a.png": "e.png",
        "d.png": "b.png",
    }


def test_near_duplicates_include_identical_images_and_chains(tmp_path):
    result = audit_of(write_list(tmp_path), identical=[[0, 1]], near=[(1, 2)])
    assert duplicate_groups(result, near=True) == [[0, 1, 2]]
    assert duplicate_groups(result, near=False) == [[0, 1]]
    decisions = [Decision("c.png", "keep")]
    cleaned = clean(result, decisions, ["near-duplicates"])
    assert list(listed(cleaned, tmp_path)) == ["c.png", "d.png", "e.png", "f.png"]
    both = clean(result, [*decisions, Decision("a.png", "keep")], ["near-duplicates"])
    assert list(listed(both, tmp_path)) == ["a.png", "c.png", "d.png", "e.png", "f.png"]


def test_a_dropped_image_is_not_the_one_that_is_kept(tmp_path):
    result = audit_of(write_list(tmp_path), identical=[[0, 2]])
    cleaned = clean(result, [Decision("a.png", "drop")], ["duplicates"])
    assert list(listed(cleaned, tmp_path)) == ["b.png", "c.png", "d.png", "e.png", "f.png"]


def test_duplicates_with_other_labels_are_noted(tmp_path):
    result = audit_of(write_list(tmp_path), identical=[[1, 2]])
    assert "have another label" in clean(result, apply=["duplicates"]).notes[0]


def test_groups_of_the_data_are_kept(tmp_path):
    path = write_list(tmp_path, groups=("p1", "p1", "p2", "p2", "=p3", "p3"))
    cleaned = clean(audit_of(path, identical=[[0, 1]]), [Decision("b.png", "drop")])
    cleaned.write(tmp_path / "clean.csv")
    assert "'=p3" in (tmp_path / "clean.csv").read_text()
    assert load_images(tmp_path / "clean.csv").groups == ("p1", "p2", "p2", "=p3", "p3")


def test_hostile_names_survive_the_round_trip_and_are_no_formulas(tmp_path):
    names = ("=a.png", "b\nx.png", 'c,"d".png', "d\r.png", "+e.png", "<b>\x1b[31m.png")
    labels = ("'=cmd()", "@x", "'=cmd()", "@x", "'=cmd()", "@x")
    path = write_list(tmp_path, names=names, labels=labels)
    cleaned = clean(audit_of(path), [Decision("b\nx.png", "relabel", "=cmd()")])
    cleaned.write(tmp_path / "clean.csv")
    images = load_images(tmp_path / "clean.csv")
    assert images.classes == ("=cmd()", "@x")
    assert images.labels.tolist() == [0, 0, 0, 1, 0, 1]
    assert [images.load(row)[0, 0, 0] for row in range(6)] == list(range(6))
    for row in cleaned.to_csv(tmp_path).splitlines():
        assert row.lstrip('"')[:1] not in ("=", "+", "@")
        assert ",=" not in row


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    if os.name != "posix":
        pytest.skip("the system has no such names")
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
    for split, label in ((0, "cat"), (1, "dog")):
        for number in range(4):
            name = tmp_path / "photos" / label / f"{number}.png"
            Image.fromarray(np.full((2, 2, 3), 10 * number + split, np.uint8)).save(name)
    try:
        first = tmp_path / "photos" / "cat" / "0.png"
        first.rename(first.with_name(os.fsdecode(b"\xe9.png")))
    except OSError:
        pytest.skip("the file system has no such names")
    result = audit_of(tmp_path / "photos")
    with pytest.raises(DataError, match="not UTF-8"):
        clean(result).write(tmp_path / "clean.csv")
    assert not (tmp_path / "clean.csv").exists()


@pytest.mark.parametrize(
    ("decision", "problem"),
    [
        (Decision("nothing.png", "drop"), "not an image of list"),
        (Decision("a.png", "relabel", "bird"), "unknown class"),
        (Decision("a.png", "relabel"), "no label"),
        (Decision("a.png", "remove"), "choose keep, relabel, drop"),
    ],
    ids=["image", "class", "label", "action"],
)
def test_a_decision_that_cannot_be_applied_is_refused(tmp_path, decision, problem):
    with pytest.raises(DataError, match=problem):
        clean(audit_of(write_list(tmp_path)), [decision])


def test_two_decisions_about_one_image_are_refused(tmp_path):
    decisions = [Decision("a.png", "drop"), Decision("a.png", "keep")]
    with pytest.raises(DataError, match="two decisions"):
        clean(audit_of(write_list(tmp_path)), decisions)


def test_a_split_without_images_is_refused(tmp_path):
    decisions = [Decision("e.png", "drop"), Decision("f.png", "drop")]
    with pytest.raises(DataError, match="none in test"):
        clean(audit_of(write_list(tmp_path)), decisions)


def test_a_class_without_train_images_is_noted(tmp_path):
    labels = ("cat", "dog", "cat", "bird", "cat", "dog")
    cleaned = clean(audit_of(write_list(tmp_path, labels=labels)), [Decision("d.png", "drop")])
    assert "1 classes have no train image any more, such as bird" in cleaned.notes


def test_images_that_are_gone_or_no_files_are_refused(tmp_path):
    path = write_list(tmp_path)
    result = audit_of(path)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match="has changed since"):
        clean(result)
    path.unlink()
    with pytest.raises(DataError, match="neither a folder nor a CSV file"):
        clean(result)
    with pytest.raises(DataError, match="not single files"):
        clean(result, images=load_images("digits"))


def test_an_unknown_kind_of_suggestion_is_refused(tmp_path):
    with pytest.raises(SpecError, match="duplicates"):
        clean(audit_of(write_list(tmp_path)), apply=["duplicate"])


def test_suggestions_are_a_decisions_file(tmp_path):
    labels = ("cat", "bird", "cat", "dog", "cat", "dog")
    path = write_list(tmp_path, names=("=a.png", *NAMES[1:]), labels=labels)
    findings = {"identical": [[1, 3]], "near": [(0, 2)], "suspects": [(0, "dog"), (3, "cat")]}
    result = audit_of(path, **findings)
    (tmp_path / "suggestions.csv").write_text(suggestions_csv(result))
    found = read_decisions(tmp_path / "suggestions.csv")
    assert [(each.path, each.action, each.label) for each in found] == [
        ("'=a.png", "relabel", "dog"),
        ("d.png", "drop", ""),
        ("c.png", "drop", ""),
    ]
    assert [each.kind for each in suggest_decisions(result)] == [
        "labels",
        "duplicates",
        "near-duplicates",
    ]
    rows = listed(clean(result, found), tmp_path)
    assert list(rows) == ["./=a.png", "b.png", "e.png", "f.png"]
    assert rows["./=a.png"]["label"] == "dog"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,label\na.png,cat\n", "0 columns 'action'"),
        ("path,action,action\na.png,drop,drop\n", "2 columns 'action'"),
        ("path,action\na.png\n", "line 2 of .* not as many values"),
        ("path,action\na.png,delete\n", "line 2 of .* 'delete'"),
        ("path,action,label\na.png,relabel,\n", "line 2 of .* no label"),
        (b"\xff\xfe", "not UTF-8"),
        ('path,action\n"a.png,drop\n', "not CSV"),
    ],
    ids=["no action", "two actions", "short", "unknown action", "no label", "bytes", "quote"],
)
def test_a_malformed_decisions_file_is_one_line(tmp_path, text, problem):
    path = tmp_path / "decisions.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=problem):
        read_decisions(path)


def test_a_missing_decisions_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_decisions(tmp_path / "decisions.csv")


@pytest.mark.parametrize("place", [".", "photos", "lists"])
def test_runs_before_and_after_are_compared_on_the_same_test_images(photos, tmp_path, place):
    """The whole way with real features: fit, audit, write, fit, compare."""
    (photos / "red" / "7.png").rename(photos / "blue" / "=stray.png")
    options = {"backbone": "resnet18", "weights": "random", "resize": "32", "cache": tmp_path / "c"}
    before = api.fit(photos, **options)
    path = tmp_path / place / "clean.csv"
    api.audit(photos, apply=["labels", "duplicates"], out=path, **options)
    after = api.fit(path, **options)
    saved = [save_run(run, tmp_path / "runs", {}) for run in (before, after)]
    (pair,) = api.compare(saved).pairs
    assert pair.n == before.report.n == after.report.n
    gain = after.report.top1 - before.report.top1
    assert abs(pair.difference) == pytest.approx(abs(gain))
