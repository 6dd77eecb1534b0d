"""From training to a selection as CSV, in a real headless Chromium."""

from __future__ import annotations

import csv
import os
import re
import shutil
import sys
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import featkit
from tests.app.serving import serving

pytest.importorskip("streamlit")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="the Python package playwright is not installed"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="needs the distribution's chromium"),
]

OPTIONS = {"backbone": "resnet18", "weights": "random", "resize": "32"}
WAIT = 90_000
"""Milliseconds that a step may take on a busy machine."""


def chromium():
    """Return the browser of the distribution, or skip the test."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        if os.environ.get("FEATKIT_REQUIRE_BROWSER"):
            pytest.fail("FEATKIT_REQUIRE_BROWSER is set, and there is no chromium")
        pytest.skip("there is no chromium: apt-get install chromium")
    return found


@pytest.fixture
def page(tmp_path):
    """A page of the browser that records what it requests from other machines."""
    browser_file = chromium()
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=browser_file, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.outside, page.problems = [], []
        page.on("request", lambda request: _record(page, request.url))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        yield page
        browser.close()


def _record(page, url):
    if not re.match(r"(https?|wss?)://127\.0\.0\.1:|data:|blob:|about:", url):
        page.outside.append(url)


@pytest.fixture
def digit(tmp_path):
    """A scanned digit as a PNG file: a 3."""
    pixels = (load_digits().images[3] * 15.9).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "three.png")
    return tmp_path / "three.png"


def read_rows(download):
    """Return the rows of a CSV file that was downloaded."""
    with download.path().open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_train_try_compare_select_and_download(page, digit, tmp_path):
    # The features are cached, so that the training takes seconds; a second run to compare with.
    folder = tmp_path / "work"
    folder.mkdir()
    stored = {"cache": folder / "cache", "out": folder / "runs"}
    featkit.fit("digits", head="knn", **OPTIONS, **stored)
    with serving(folder, "--cache", stored["cache"], "--out", stored["out"]) as server:
        _train(page, server)
        _try(page, server, digit, expected_answers(stored["out"], digit))
        _upload_rubbish(page, tmp_path)
        _select_on_the_map(page, server)
        assert page.outside == []
        assert page.problems == []
        assert server.attempts() == []
        assert server.process.poll() is None


def _train(page, server):
    page.goto(f"{server.url}/train")
    page.get_by_text("1,797").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_text("It goes on when this page is closed").wait_for()
    page.reload()  # the training goes on
    page.get_by_role("button", name="Run as ZIP").wait_for()
    report = page.frame_locator("iframe").first.frame_locator("iframe")
    report.get_by_text(re.compile("accuracy", re.IGNORECASE)).first.wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Run as ZIP").click()
    assert download.value.suggested_filename.endswith(".zip")


def expected_answers(out, file):
    """Return the prediction of each run for a file."""
    runs = out.glob("digits/*/")
    return {featkit.load_run(run).head_spec: featkit.predict(run, file)[0] for run in runs}


def _try(page, server, digit, expected):
    page.goto(server.url)
    page.locator('input[type="file"]').set_input_files(digit)
    page.locator(".fk-answer").wait_for()
    first = page.locator(".fk-answer").inner_text()
    assert first == expected[page.locator(".fk-model h4").first.inner_text().split()[0]].answer
    assert page.locator(".fk-bars li").count() == 5
    page.get_by_role("img", name="Heat map").wait_for()
    # A second model, by the keyboard.
    models = page.get_by_role("combobox", name=re.compile("Models"))
    models.click()
    page.get_by_role("option").filter(has_text=" on resnet18, digits").first.click()
    page.keyboard.press("Escape")
    page.locator(".fk-answer").nth(1).wait_for()
    page.get_by_text("the models disagree on").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Predictions as CSV").click()
    rows = read_rows(download.value)
    assert [row["path"] for row in rows] == ["three.png", "three.png"]
    for row in rows:
        prediction = expected[row["model"].split()[0]]
        assert row["predicted"] == prediction.predicted
        assert float(row["confidence"]) == pytest.approx(prediction.confidence, abs=1e-3)
    assert len({row["model"] for row in rows}) == 2


def _upload_rubbish(page, tmp_path):
    (tmp_path / "rubbish.png").write_bytes(b"<b>no image</b>")
    page.locator('input[type="file"]').set_input_files(tmp_path / "rubbish.png")
    page.get_by_text("rubbish.png cannot be decoded as an image").wait_for()
    page.locator(".fk-answer").nth(1).wait_for()  # messages are shown before the predictions


def _select_on_the_map(page, server):
    page.goto(f"{server.url}/map")
    chart = page.locator('[data-testid="stEChartsChart"] canvas').first
    chart.wait_for()
    chart.scroll_into_view_if_needed()
    time.sleep(1)
    box = chart.bounding_box()
    # The second button of the toolbox is the lasso, see ``chart_options``.
    page.mouse.click(box["x"] + 55, box["y"] + 20)
    corners = [(0.05, 0.12), (0.95, 0.12), (0.95, 0.8), (0.05, 0.8), (0.05, 0.13)]
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=10)
    page.mouse.up()
    page.get_by_text("images selected").wait_for()
    page.locator(".fk-tiles img").nth(10).wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Selection as CSV").click()
    rows = read_rows(download.value)
    assert len(rows) > 10
    assert set(rows[0]) == {"path", "label", "split", "predicted", "x", "y"}
