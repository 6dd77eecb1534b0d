"""Names of files and classes that a terminal or a spreadsheet would obey."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from featkit.cli import main
from featkit.cli.output import table, visible_lines
from featkit.errors import FeatkitError, visible
from featkit.storage import csv_text, safe_cell

CLASSES = (
    "=1+1",
    "+cmd|calc",
    "-2+3",
    "@sum",
    "\x1b[31mred\x1b[0m",
    "gpj.\u202egnp",
    "two\nINJECTED lines",
    "tab\tand\rreturn",
)


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Return a folder of images whose classes and names are hostile; work in an empty folder."""
    rng = np.random.default_rng(0)
    for place, name in enumerate(CLASSES):
        folder = tmp_path / "=photos\x1b]0;title\x07" / name
        folder.mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 60, (12, 12, 3), dtype=np.uint8) + np.uint8(20 * place)
            Image.fromarray(pixels).save(folder / f"={number}\x1b[2J\u202e\nINJECTED.png")
    (folder / "\x1b[1mbroken\nINJECTED.png").write_bytes(b"no image")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder.parent


def run(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    for text in (done.stdout, done.stderr):
        check_text(text)
    return done


def check_text(text):
    """Check that a text has no character which a terminal obeys, and no forged line."""
    assert all(char.isprintable() or char == "\n" for char in text), repr(text)
    assert not re.search(r"^\W*INJECTED", text, re.MULTILINE), text


def check_csv(text):
    """Check that no cell is a formula: one that starts like it is a number."""
    check_text(text)
    for row in csv.reader(text.splitlines()):
        for cell in row:
            if cell.lstrip().startswith(("=", "+", "-", "@")):
                float(cell)


def options(hostile):
    return ("--data", hostile, "--weights", "random", "--resize", "32", "--on-error", "skip")


def check_written(*suffixes):
    """Check the files of results, of which some have these suffixes."""
    written = list(Path("experiments").rglob("*.*"))
    assert {path.suffix for path in written} >= set(suffixes)
    for path in written:
        if path.suffix == ".csv":
            check_csv(path.read_text())
        elif path.suffix in (".md", ".html", ".json"):
            check_text(path.read_text())


def test_fit_and_predict_print_and_write_nothing_that_is_obeyed(hostile):
    run("fit", *options(hostile)[:-2], code=1)  # an image is broken
    run("fit", *options(hostile), "--head", "prototypical")
    run("cache", "ls")
    (directory,) = Path("experiments/runs").glob("*/*/")
    image = next((hostile / CLASSES[-1]).glob("=*.png"))
    run("predict", directory, image, "--json")
    check_csv(run("predict", directory, image, "--csv").stdout)
    assert "\\x1b[2J" in run("predict", directory, image).stdout
    missing = run("predict", directory, hostile / CLASSES[-1], "--on-error", "skip")
    assert "1 files skipped" in missing.stderr
    run("predict", directory, "\x1b[31m\nINJECTED", code=1)
    check_written(".csv", ".json")


@pytest.mark.slow
def test_studies_print_and_write_nothing_that_is_obeyed(hostile):
    common = options(hostile)
    (cached,) = run("extract", *common).stdout.splitlines()
    run("extract", *common, "--explain")
    run("fit", *common, "--head", "prototypical", "--head", "knn:k=1")
    runs = [path.parent for path in Path("experiments/runs").glob("*/*/card.json")]
    run("compare", *runs)
    run("cache", "show", cached)
    (hostile / CLASSES[0] / "=0\x1b[2J\u202e\nINJECTED.png").unlink()
    run("cache", "verify", code=1)
    run("audit", *common)
    run("ablate", *common, "--head", "prototypical", "--head", "knn:k=1", "--jobs", 1)
    check_written(".csv", ".md", ".html", ".json")


@pytest.mark.parametrize(
    "arguments",
    [
        ("\x1b[31m",),
        ("--\x1b[31m",),
        ("fit", "--\u202ebackbone"),
        ("fit", "--pool", "\x1b[31m\nINJECTED"),
        ("fit", "--seed", "\x1b[31m\nINJECTED"),
        ("heads", "\x1b[31m\nINJECTED"),
        ("export", "run", "--out", "\x1b[31m/\nINJECTED/"),
    ],
)
def test_wrong_usage_does_not_print_control_characters(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("\x1b[31m").mkdir()
    Path("\x1b[31m/\nINJECTED").mkdir()
    run(*arguments, code=2)


@given(st.text())
def test_visible_text_is_one_printable_line(text):
    shown = visible(text)
    assert shown.isprintable()
    assert visible(shown) == shown
    assert str(FeatkitError(text)) == shown
    if text.isprintable():
        assert shown == text


@given(st.lists(st.text(), min_size=1), st.text())
def test_a_table_has_one_line_per_row(cells, header):
    drawn = table(["cell"], [[cell] for cell in cells])
    assert len(drawn.splitlines()) <= 1 + len(cells)
    assert len(visible_lines(cells).split("\n")) == len(cells)


@given(st.text())
def test_a_safe_cell_is_no_formula_and_stays_what_it_is(text):
    cell = safe_cell(text)
    check_csv(csv_text([{"a": text}]))
    assert safe_cell(cell) == cell
    if text.isprintable() and not text.lstrip().startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20")):
        assert cell == text


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_stay_numbers(value):
    assert safe_cell(value) is value
    for text in (str(value), f"{value:+}", f"{value:.3e}"):
        assert float(safe_cell(text)) == float(text)
