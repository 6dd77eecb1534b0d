"""The commands of README and of the pages that need photos run as they are written."""

from __future__ import annotations

import re
import shutil
from itertools import pairwise

import pytest

from tests.docs.pages import DOCS, Block, blocks, commands, line_of, run_command, run_python
from tests.docs.sample import decide, quick, run_featkit, write_images, write_weights

ROOT = DOCS.parent
README = ROOT / "README.md"

ELSEWHERE = {
    "pip install": "experiments/benchmarks/installation.py installs each extra",
    "make ": "targets of Makefile; CI runs them",
    "featkit app": "starts a server: tests/app/test_server.py",
}
"""Commands that are not run here, by their beginning, and what runs them."""

WITH_TENSORFLOW = re.compile("keras:|compare-frameworks")

SUBSTITUTES = {
    "--shard 17/1000": "--shard 1/2",
    "--minutes 5": "--minutes 0.3",
    "--epochs 6": "--epochs 1",
    "featkit distill": "featkit distill --limit train=30,test=30",  # a teacher sees 224 pixels
}
"""Parts of commands that are replaced, so that the test has all shards and is done in time."""

FEW_FAILED = 2
"""Cells of a grid that may fail: a class of one image is too small for `smote`."""

FLOWERS = "featkit fit --data photos --backbone resnet50 --head knn --name flowers-v"
SCENES = "featkit fit --data scenes/labels.csv --head {0} --name scenes-{0}"
BEFORE = {
    "README.md": {
        "featkit cache merge": ["featkit extract --data photos --backbone resnet50 --shard 2/2"],
        # Another head: the same one would be the same run, under another name.
        "featkit compare flowers-v1": [
            FLOWERS + "1",
            FLOWERS.replace("knn", "prototypical") + "2",
        ],
    },
    "pictures.md": {"featkit report": [FLOWERS + "1"]},
    "runs.md": {"featkit runs ls": [FLOWERS + "1"]},
    "clean.md": {"featkit suggest": [FLOWERS + "1"]},
    "weights.md": {"featkit bundle": [FLOWERS.replace("flowers-v", "shop-v1")]},
    "labels.md": {"featkit compare": [SCENES.format("linear"), SCENES.format("svm")]},
}
"""Commands of featkit that make what a page takes for granted, by page and next command."""


@pytest.fixture(scope="module")
def example_data(tmp_path_factory):
    """Return a folder with photos, tables and weights, which tests copy."""
    folder = tmp_path_factory.mktemp("example-data")
    write_images(folder)
    write_weights(folder)
    decide(folder)
    return folder


@pytest.fixture
def workplace(example_data, tmp_path, monkeypatch):
    """Return a working directory with the example data, which the environment names too."""
    folder = tmp_path / "work"
    shutil.copytree(example_data, folder, ignore=shutil.ignore_patterns("weights"))
    (folder / "experiments").mkdir()
    shutil.copy(ROOT / "experiments" / "caltech101_heads.toml", folder / "experiments")
    monkeypatch.setenv("FEATKIT_WEIGHTS", str(example_data / "weights"))
    monkeypatch.setenv("FEATKIT_TEST_DATA", str(folder / "sets"))
    monkeypatch.setenv("FEATKIT_OFFLINE", "1")
    monkeypatch.chdir(folder)
    return folder


def run_line(line, where, page):
    """Run a command as it is written, but for small images, after what must be there before it."""
    for beginning, needed in BEFORE.get(page.name, {}).items():
        for command in needed if line.startswith(beginning) else []:
            run_featkit(command)
    for part, substitute in SUBSTITUTES.items():
        line = line.replace(part, substitute)
    printed = run_command(quick(line), where)
    failed = re.findall(r"^ failed ", printed, re.MULTILINE)
    assert len(failed) <= FEW_FAILED, f"{where}: {line}\n{printed}"


def is_run_here(line):
    return not line.startswith(tuple(ELSEWHERE)) and not WITH_TENSORFLOW.search(line)


def numbered(page, chosen):
    """Yield the chosen blocks of a page and where they stand."""
    for block in blocks(page.read_text(encoding="utf-8")):
        if chosen(block):
            yield block, f"{page.name}, line {line_of(page, block)}"


README_PARTS = {
    "features and heads": ("# featkit", "### Compare"),
    "comparisons and pictures": ("### Compare", "### Few labels"),
    "studies and networks": ("### Few labels", "## Results"),
}
"""First heading of each part, and the heading after it."""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("part", README_PARTS)
def test_everything_in_the_readme_runs_from_top_to_bottom(part, workplace, cluster_address):
    text = README.read_text(encoding="utf-8")
    first, last = (f"\n{text}".index(f"\n{heading}") for heading in README_PARTS[part])
    variables = {}
    for block, where in numbered(README, lambda block: block.language in {"sh", "python"}):
        if not first <= block.start < last:
            continue
        if block.language == "python":
            run_python(block.code, where, variables)
            continue
        for line in filter(is_run_here, commands(block.code)):
            run_line(line.replace("tcp://head-node:8786", cluster_address), where, README)


def test_the_parts_of_the_readme_have_all_its_commands():
    text = "\n" + README.read_text(encoding="utf-8")
    ends = list(README_PARTS.values())
    assert text.startswith("\n" + ends[0][0])
    assert all(one[1] == other[0] for one, other in pairwise(ends))
    rest = text[text.index(f"\n{ends[-1][1]}") :]
    assert not [block for block in blocks(rest) if block.runs]


@pytest.fixture
def cluster_address(workplace):
    """Return the address of a Dask cluster of one process, which works where the test does."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if any(map(Block.needs_data.fget, blocks(page.read_text(encoding="utf-8"))))
]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_run_on_example_data(page, workplace):
    for block, where in numbered(page, lambda block: block.needs_data):
        for line in filter(is_run_here, commands(block.code)):
            run_line(line, where, page)


@pytest.mark.slow
@pytest.mark.keras
@pytest.mark.parametrize(
    "page", [README, DOCS / "howto" / "tensorflow.md"], ids=lambda each: each.stem
)
def test_commands_with_tensorflow_run(page, workplace):
    found = []
    for block, where in numbered(page, lambda block: block.language == "sh"):
        found += [(line, where) for line in commands(block.code) if WITH_TENSORFLOW.search(line)]
    assert len(found) >= 3
    for line, where in found:
        run_line(line, where, page)


def test_commands_that_run_elsewhere_are_few():
    lines = [
        line
        for block, _ in numbered(README, lambda block: block.language == "sh")
        for line in commands(block.code)
    ]
    elsewhere = [line for line in lines if not is_run_here(line)]
    assert len(elsewhere) <= 8
    assert len(lines) > 40


def makefile_targets():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/installation.md"])
def test_targets_of_make_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<=\bmake )[a-z-]+", "\n".join(block.code for block in blocks(text))))
    named |= set(re.findall(r"`make ([a-z-]+)`", text))
    assert named
    assert named <= makefile_targets()
