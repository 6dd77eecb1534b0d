"""The pages in docs/ are reachable, their links and commands exist, and their blocks run."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import click
import pytest
import yaml

import featkit
from featkit.ablation.grid import AXES, FIXED
from featkit.cli import main
from featkit.errors import SpecError
from featkit.training.config import TrainingConfig
from tests.docs.pages import DOCS, Block, blocks, commands, run_page, shortened

ROOT = DOCS.parent
PAGES = sorted(DOCS.rglob("*.md"))
GENERATED = {"reference/cli.md"}
"""Pages that docs/hooks.py makes when the site is built."""
LONG = {"tutorials/compress.md", "tutorials/imbalanced.md"}
"""Pages whose blocks take about a minute."""


def name_of(page):
    return page.relative_to(DOCS).as_posix()


def text_of(page):
    return page.read_text(encoding="utf-8")


def nav_entries(entry):
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [name for value in values for name in nav_entries(value)]


def settings():
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def heading_anchors(text):
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", without_code, flags=re.MULTILINE)
    return {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", each).strip().lower()) for each in headings
    }


def test_every_page_is_in_the_navigation_and_every_entry_exists():
    entries = nav_entries(settings()["nav"])
    assert sorted(entries) == sorted({name_of(page) for page in PAGES} | GENERATED)


def test_the_site_loads_nothing_from_other_servers():
    assert settings()["theme"]["font"] is False
    assert settings()["strict"] is True
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "extra_javascript" not in text
    assert "://" not in text
    for page in PAGES:
        assert not re.search(r"<(script|link|img|iframe)\b", text_of(page)), page


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_lead_somewhere(page):
    outside_code = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_code):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if linked.is_relative_to(DOCS) and name_of(linked) in GENERATED:
            assert not anchor or anchor.removeprefix("featkit-") in main.list_commands(None), target
            continue
        assert linked.exists(), target
        if anchor:
            assert anchor in heading_anchors(text_of(linked)), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_a_page_exist(page):
    """Their options are parsed; they are not run."""
    text = text_of(page)
    lines = [
        line for block in blocks(text) if block.language == "sh" for line in commands(block.code)
    ]
    lines += [line for line in re.findall(r"`(featkit [^`]+)`", text) if "..." not in line]
    for line in lines:
        for part in re.split(r"&&|\||>", line):
            words = shlex.split(part, comments=True)
            if words[:1] == ["featkit"]:
                parse(words[1:], line)


def parse(words, line):
    command, context = main, click.Context(main)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command, words = command.get_command(context, words[0]), words[1:]
        assert command is not None, line
    with command.make_context("featkit", [], resilient_parsing=True) as inner:
        options = command.get_params(inner)
    known = {name for each in options for name in (*each.opts, *each.secondary_opts)}
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word.partition("=")[0] in known, f"{word} in {line}"


def test_every_key_of_a_grid_and_of_a_study_is_explained():
    text = text_of(DOCS / "howto" / "grids.md")
    rows = {row for line in text.splitlines() if line.startswith("| `") for row in keys_of(line)}
    with pytest.raises(SpecError) as error:
        TrainingConfig.from_options({"no such option": 1}, Path("cache"))
    known = str(error.value).rpartition("known: ")[2].split(", ")
    assert "layer_decay" in known
    expected = {*AXES, *FIXED, *known}
    assert expected - rows == set()
    assert rows - expected == {"name", "[axes]", "[fixed]", "[[skip]]"}


def keys_of(line):
    """Return the keys in the first column of a row of a table."""
    return re.findall(r"`([^`]+)`", line.split("|")[1])


def test_the_defaults_of_the_axes_are_those_of_the_code():
    text = text_of(DOCS / "howto" / "grids.md")
    for axis, default in AXES.items():
        shown = json.dumps(default)  # as in TOML
        assert f"| `{axis}` | `{shown}` |" in text, axis


def test_the_reference_has_every_public_name():
    found = re.findall(
        r"^::: featkit[\w.]*\.(\w+)$", text_of(DOCS / "reference" / "api.md"), re.MULTILINE
    )
    documented = [name for name in found if not name.startswith("check_")]
    assert sorted(documented) == featkit.__all__


def test_every_command_is_in_the_table_of_questions():
    text = text_of(DOCS / "commands.md")
    without = {"completion", "app", "cluster"}
    for name in set(main.list_commands(None)) - without:
        assert f"`featkit {name}" in text, name


def extras():
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    section = text.partition("[options.extras_require]")[2].partition("\n[")[0]
    return set(re.findall(r"^([\w-]+) =", section, re.MULTILINE))


def test_every_extra_is_in_the_table_of_extras():
    text = text_of(DOCS / "installation.md")
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)) == extras()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_that_are_not_run_say_why(page):
    for block in blocks(text_of(page)):
        if block.needs_data:
            assert block.language == "sh"
        elif block.language in {"sh", "python"} and block.title and not block.reason:
            assert re.fullmatch(r"[\w.]+\.py", block.title), block.title
        if block.title.startswith("not run"):
            assert len(block.reason) > 8


def runnable(page):
    return any(block.runs for block in blocks(text_of(page)))


def generalised(line):
    """Return a line without what differs between machines: numbers, digests and spaces."""
    line = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b", "#", line)
    line = re.sub(r"[-+]?\d[\d.,]*", "#", line)
    return " ".join(line.split())


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    """Return a folder of features that all pages share: digits are embedded once."""
    return tmp_path_factory.mktemp("docs-cache")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.long if name_of(page) in LONG else ())
        for page in PAGES
        if runnable(page)
    ],
    ids=lambda page: name_of(page),
)
def test_blocks_of_a_page_run_and_print_what_it_shows(page, tmp_path, monkeypatch, shared_cache):
    """At least half of the lines agree but for numbers: times and rounding differ between machines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a page adds a plug-in
    Path("cache").symlink_to(shared_cache)
    for block, printed, documented in run_page(page, tmp_path):
        if documented is None:
            continue
        assert documented.code.strip(), f"{page}: the output of {block.code} is missing"
        found = {generalised(line) for line in printed.splitlines()}
        expected = [
            line for line in documented.code.splitlines() if line.strip() not in {"", "..."}
        ]
        agreeing = [line for line in expected if generalised(line) in found]
        assert 2 * len(agreeing) >= len(expected), f"{page}\n{block.code}\n{printed}"


PAGE = """```sh
featkit models
```

<!-- last 1 -->
```text
old
```

```sh title="not run: no network"
featkit train photos
```

```toml title="grid.toml"
name = "a"
```
"""


def test_blocks_are_found_with_their_titles_and_outputs():
    first, output, skipped, file = blocks(PAGE)
    assert (first.runs, output.runs, skipped.runs, file.runs) == (True, False, False, False)
    assert (output.keep, skipped.reason, file.title) == (("last", 1), "no network", "grid.toml")
    assert commands("a \\\n  b\n# no\n\nc") == ["a    b", "c"]


def test_output_is_shortened_to_its_first_or_last_lines():
    assert shortened("a \nb\nc\n", None) == "a\nb\nc\n"
    assert shortened("a\nb\nc\n", ("first", 1)) == "a\n...\n"
    assert shortened("a\nb\nc\n", ("last", 1)) == "...\nc\n"


def test_numbers_and_digests_of_an_output_are_not_compared():
    assert generalised("top-1 98.5 %,  run 5bde3e0d465c") == generalised(
        "top-1 97.0 %, run 2e0fead05b1e"
    )
    assert generalised("best: linear") != generalised("best: knn")
    assert isinstance(blocks(PAGE)[0], Block)
