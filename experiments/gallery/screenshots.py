"""Take pictures of each page of the web app: wide and narrow, light and dark.

    python experiments/gallery/screenshots.py RUN... --data DATA --image FILE --out DIR
        [--cache cache] [--studies experiments]

Needs the extra app, the package playwright, and Chromium. The pictures are named after the page,
the width of the window in pixels, and the colour scheme.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PORT = 8691
URL = f"http://127.0.0.1:{PORT}"
SIZES = ((1280, 1000), (400, 1000))
SCHEMES = ("light", "dark")
WAIT = 180_000
"""Milliseconds that a step may take."""


@contextmanager
def server(arguments: list[str]) -> Iterator[None]:
    """Run the app until the block ends."""
    command = [sys.executable, "-m", "featkit", "app", *arguments]
    process = subprocess.Popen([*command, "--port", str(PORT), "--no-browser"])
    try:
        while True:
            try:
                urllib.request.urlopen(f"{URL}/_stcore/health", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def show_try(page: Page, image: Path) -> None:
    """Classify one image."""
    page.goto(URL)
    page.locator('input[type="file"]').set_input_files(image)
    page.get_by_role("img", name="Heat map").first.wait_for()


def show_train(page: Page, image: Path) -> None:
    """Look at the data before a training."""
    page.goto(f"{URL}/train")
    page.get_by_role("button", name="Train", exact=True).wait_for()


def show_clean(page: Page, image: Path) -> None:
    """Search for suspect labels."""
    page.goto(f"{URL}/clean")
    page.get_by_role("button", name="Find problems").click()
    page.get_by_text("Findings").first.wait_for()


def show_map(page: Page, image: Path) -> None:
    """Draw the map of a run."""
    page.goto(f"{URL}/map")
    page.locator(".js-plotly-plot, canvas, [data-testid=stVegaLiteChart]").first.wait_for()


def show_studies(page: Page, image: Path) -> None:
    """Show the results of grids."""
    page.goto(f"{URL}/studies")
    page.get_by_role("heading").first.wait_for()


PAGES: dict[str, Callable[[Page, Path], None]] = {
    "try": show_try,
    "train": show_train,
    "clean": show_clean,
    "map": show_map,
    "studies": show_studies,
}


def main() -> None:
    """Take the pictures; a page that cannot be shown is named and skipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--studies", default="experiments")
    parser.add_argument("--pages", nargs="*", default=list(PAGES), choices=list(PAGES))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    options = ["--data", given.data, "--cache", given.cache, "--studies", given.studies]
    browser_file = shutil.which("chromium") or shutil.which("chromium-browser")
    with server([*given.runs, *options]), sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=browser_file, args=["--no-sandbox"])
        for width, height in SIZES:
            for scheme in SCHEMES:
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme
                )
                context.set_default_timeout(WAIT)
                for name in given.pages:
                    page = context.new_page()
                    PAGES[name](page, given.image)
                    page.wait_for_timeout(4000)  # pictures and charts are drawn
                    page.screenshot(path=given.out / f"{name}-{width}-{scheme}.png")
                    page.close()
                    print(f"{name} {width} {scheme}", flush=True)
                context.close()
        browser.close()


if __name__ == "__main__":
    main()
