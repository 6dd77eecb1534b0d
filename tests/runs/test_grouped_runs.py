"""Runs on images with groups: splits, intervals, tests and reports."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featkit
from featkit import api
from featkit.embeddings.base import Embeddings
from featkit.errors import DataError
from featkit.images.groups import crossing_groups
from featkit.runs.splits import make_splits
from featkit.studies.fewshot import load_embeddings, save_embeddings

OPTIONS: dict[str, Any] = {"backbone": "resnet18", "weights": "random", "resize": "32"}


def write_images(root: Path, groups: int = 15, each: int = 4) -> Path:
    """Write noisy images: shade by class and, stronger, by patient; ``labels.csv`` lists them."""
    rng = np.random.default_rng(0)
    root.mkdir()
    rows = []
    for group in range(groups):
        tint = rng.integers(0, 160, 3)
        for number in range(2 * each):
            label = number % 2
            noise = rng.integers(0, 40, (16, 16, 3))
            name = f"{group}-{number}.png"
            Image.fromarray((noise + tint + 30 * label).astype(np.uint8)).save(root / name)
            rows.append(f"{name},{'ab'[label]},p{group}")
    (root / "labels.csv").write_text("\n".join(["path,label,group", *rows]), encoding="utf-8")
    return root / "labels.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("groups") / "scans")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    featkit.extract(table, cache=folder, **OPTIONS)
    return folder


def test_groups_do_not_change_the_cache(table: Path, cache: Path) -> None:
    """With groups, with others and without, the same file is used."""
    assert len(list(cache.glob("*.h5"))) == 1
    grouped = featkit.extract(table, cache=cache, **OPTIONS)
    plain = featkit.extract(table, group="none", cache=cache, **OPTIONS)
    assert len(list(cache.glob("*.h5"))) == 1
    assert plain.recipe == grouped.recipe
    assert plain.groups is None
    assert grouped.groups is not None
    assert grouped.groups[:8].tolist() == ["p0"] * 8
    assert crossing_groups(grouped.groups.tolist(), grouped.splits) == []


def test_validation_images_are_held_out_in_groups(table: Path, cache: Path) -> None:
    """Also with augmented views, which stay with their image."""
    data = featkit.extract(table, split="70/0/30", cache=cache, **OPTIONS)
    splits = make_splits(data, seed=3)
    assert not splits.own_val
    assert not set(splits.val.groups) & set(splits.fit.groups)
    assert len(splits.fit) + len(splits.val) == len(splits.final)


def test_a_run_says_that_its_intervals_resample_groups(
    table: Path, cache: Path, tmp_path: Path
) -> None:
    """In the line of metrics, in its files, and in the comparison with another run."""
    found = api.fit_heads(["linear", "knn"], **_fit_options(table, cache), out=tmp_path, reject=0.1)
    run = found.runs[0]
    groups = len(set(run.predictions.groups))
    assert run.report.test_groups == groups
    assert f"images of {groups} groups, which the intervals resample" in str(run.report)
    assert run.report.provenance["groups"] == {"train": 10, "val": 2, "test": 3, "leak": None}
    with (found.paths[0] / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["group"] for row in rows} == set(run.predictions.groups)
    assert found.comparison.pairs[0].groups == groups
    assert f"interval and test over {groups} groups" in found.comparison.pairs[0].sentence
    results = json.loads((found.paths[0] / "results.json").read_text(encoding="utf-8"))
    assert results["test_groups"] == groups
    plain = featkit.fit(table, group="none", cache=cache, **OPTIONS)
    assert plain.id != run.id
    assert plain.report.test_groups is None


def _fit_options(table: Path, cache: Path) -> dict[str, Any]:
    names = ("layer", "pool", "crop", "precision", "split", "limit", "intensity_range")
    names += ("augment", "views", "perturb", "balance", "subset", "batch_size", "workers")
    rest = dict.fromkeys((*names, "group", "allow_group_leak"))
    flags = {
        "folds": None,
        "repeats": 1,
        "unknown": None,
        "cost": None,
        "tune": False,
        "strict": False,
        "compile": False,
        "progress": False,
    }
    more = {
        "seed": 0,
        "device": "auto",
        "engine": "auto",
        "on_error": "fail",
        "cache": cache,
        "data": table,
    }
    return {**rest, **flags, **more, **OPTIONS}


def test_an_allowed_leak_is_in_every_report(table: Path, cache: Path) -> None:
    """As a warning with the number of groups."""
    lines = table.read_text(encoding="utf-8").splitlines()
    rows = [f"{row},{('train', 'test')[place % 8 > 5]}" for place, row in enumerate(lines[1:])]
    leaky = table.with_name("leaky.csv")
    leaky.write_text("\n".join(["path,label,group,split", *rows]), encoding="utf-8")
    with pytest.raises(DataError, match=r"15 of 15 groups .*--allow-group-leak"):
        featkit.fit(leaky, cache=cache, **OPTIONS)
    run = featkit.fit(leaky, allow_group_leak=True, cache=cache, **OPTIONS)
    assert any("group leak: 15 of 15 groups" in line for line in run.report.warnings)
    assert run.report.provenance["groups"]["leak"].startswith("15 of 15 groups")
    assert run.report.provenance["request"]["allow_group_leak"] is True


def test_groups_are_not_lost_with_their_source(table: Path, tmp_path: Path) -> None:
    """Features without their groups would be split and evaluated as independent images."""
    copied = tmp_path / "scans"
    shutil.copytree(table.parent, copied)
    cache = tmp_path / "cache"
    featkit.extract(copied / "labels.csv", cache=cache, **OPTIONS)
    (file,) = cache.glob("*.h5")
    assert featkit.fit(cache=file).report.test_groups == 3
    shutil.rmtree(copied)
    for place in (file, cache):
        with pytest.raises(DataError, match="not found, and it defines the groups"):
            featkit.fit(cache=place)


def test_grids_resample_groups_and_find_their_cells_again(
    table: Path, cache: Path, tmp_path: Path
) -> None:
    """Cells with groups have other names than those without, and the reports say so."""
    shared = {**OPTIONS, "cache": cache, "out": tmp_path, "head": ["linear", "knn"]}
    grouped = featkit.ablate(data=[table], seed=[0, 1], **shared)
    cells = len(list(tmp_path.rglob("*.json.gz")))
    again = featkit.ablate(data=[table], seed=[0, 1], **shared)
    assert len(list(tmp_path.rglob("*.json.gz"))) == cells == 4
    assert grouped.findings.effects == again.findings.effects
    assert all(cell.predictions.groups is not None for cell in again.cells)
    for name in ("summary.md", "report.html"):
        (path,) = tmp_path.rglob(name)
        assert "resample groups in place of images" in path.read_text(encoding="utf-8")
    plain = featkit.ablate(data=[table], seed=[0, 1], group="none", **shared)
    assert len(list(tmp_path.rglob("*.json.gz"))) == 8
    assert all(cell.predictions.groups is None for cell in plain.cells)


def test_few_shot_episodes_and_curves_respect_groups(
    table: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The result says how many groups there are, and the log what is done with them."""
    shared = {"way": 2, "shot": 1, "query": 2, "episodes": 20, "curve": [2], "cache": cache}
    with caplog.at_level("INFO", "featkit"):
        grouped = featkit.fewshot(table, **shared, **OPTIONS)
    assert "no group of images has support and query images in one episode" in caplog.text
    plain = featkit.fewshot(table, group="none", **shared, **OPTIONS)
    assert grouped.scores[0].mean < plain.scores[0].mean
    assert json.loads(grouped.json)["groups"] == 15
    assert "groups" not in json.loads(plain.json)


def test_groups_reach_other_processes(table: Path, cache: Path, tmp_path: Path) -> None:
    """Through the file of embeddings that the tasks of a cluster read."""
    data: Embeddings = featkit.extract(table, cache=cache, **OPTIONS)
    save_embeddings(tmp_path / "embeddings.npz", data)
    assert load_embeddings(tmp_path / "embeddings.npz").groups.tolist() == data.groups.tolist()


def test_perturbed_test_images_keep_their_groups(table: Path, cache: Path) -> None:
    """Perturbed images come from a file of their own."""
    options = {**OPTIONS, "perturb": "fog:level=strong"}
    data = featkit.extract(table, cache=cache, **options)
    assert len(data.groups) == len(data)
    assert crossing_groups(data.groups.tolist(), data.splits) == []
