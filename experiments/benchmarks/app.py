"""Measure the web app: time to a prediction, time to a trained run, memory over many uploads.

    python experiments/benchmarks/app.py --run RUN --images DIR [--cache DIR] [--out app.json]

Without a run, one is fitted on scikit-learn's digits with an untrained network. Needs the extra
app, the package playwright, and chromium. The times are those that a person waits, on the clock;
the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import psutil
from PIL import Image
from playwright.sync_api import sync_playwright
from sklearn.datasets import load_digits

import featkit
from featkit.app.training import default_weights, network_resize

PORT = 8690
URL = f"http://127.0.0.1:{PORT}"
UPLOADS, SESSIONS = 50, 5


@contextmanager
def server(*arguments):
    """Run the app until the block ends; yield its process."""
    command = [sys.executable, "-m", "featkit", "app", *map(str, arguments)]
    process = subprocess.Popen([*command, "--port", str(PORT), "--no-browser"])
    try:
        while True:
            try:
                urllib.request.urlopen(f"{URL}/_stcore/health", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def new_page():
    """Open a browser with one page."""
    with sync_playwright() as tools:
        found = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = tools.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(300_000)
        yield page
        browser.close()


def digit_files(folder):
    """Write digits as image files and return their paths."""
    files = []
    for number, pixels in enumerate(load_digits().images[:UPLOADS]):
        files.append(folder / f"{number}.png")
        Image.fromarray((pixels * 15.9).astype("uint8")).save(files[-1])
    return files


def upload(page, file, number):
    """Upload the file of this number; return the seconds until its prediction is shown.

    A page shows six images; the line above them says how many are classified.
    """
    start = time.perf_counter()
    page.locator('input[type="file"]').set_input_files(file)
    counted = f"{number} images." if number > 1 else "1 image."
    page.get_by_text(counted, exact=True).wait_for()
    page.locator(".fk-answer").nth(min(number, 6) - 1).wait_for()
    return time.perf_counter() - start


def prediction_times(images):
    """Return the seconds of a cold upload and of the next ones."""
    with new_page() as page:
        page.goto(URL)
        page.locator('input[type="file"]').wait_for(state="attached")
        seconds = []
        for number, file in enumerate(images[:6], 1):
            seconds.append(upload(page, file, number))
            # The next one is uploaded when everything about this one is shown.
            page.get_by_role("img", name="Heat map").nth(number - 1).wait_for()
            page.wait_for_timeout(1000)
        return seconds


def training_times():
    """Return the seconds from the click to the accuracy, and to the report of the run.

    The features of the digits are cached.
    """
    with new_page() as page:
        page.goto(f"{URL}/train")
        button = page.get_by_role("button", name="Train", exact=True)
        button.wait_for()
        start = time.perf_counter()
        button.click()
        page.get_by_text("it named the right class").first.wait_for()
        result = time.perf_counter() - start
        page.get_by_text("Run as ZIP").wait_for()  # beside the report
        return result, time.perf_counter() - start


def memory_over_uploads(process, images):
    """Upload images from several sessions at once; return megabytes after each, and errors."""
    memory, errors, lock = [], [], threading.Lock()

    def session(number):
        with new_page() as page:
            page.goto(URL)
            page.locator('input[type="file"]').wait_for(state="attached")
            for position, file in enumerate(images[number::SESSIONS], 1):
                upload(page, file, position)
                with lock:
                    memory.append(process.memory_info().rss / 1e6)
            errors.extend(page.get_by_test_id("stAlert").all_inner_texts())

    threads = [threading.Thread(target=session, args=(number,)) for number in range(SESSIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(memory) == UPLOADS, f"only {len(memory)} uploads were answered"
    return memory, errors


def main():
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        print("there is no chromium: nothing is measured")
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        out, cache = Path(folder, "out"), arguments.cache
        if arguments.run and arguments.images:
            images = sorted(arguments.images.rglob("*.jpg"))[:UPLOADS]
            runs = [arguments.run]
        else:
            runs, cache, images = [], Path(folder, "cache"), digit_files(Path(folder))
            featkit.fit("digits", weights="random", resize="32", cache=cache, out=out)
        network = "resnet18"
        featkit.extract(
            "digits",
            backbone=network,
            weights=default_weights(network),
            resize=network_resize("digits", network),
            cache=cache,
        )
        with server(*runs, "--cache", cache, "--out", out) as process:
            time.sleep(15)  # the server loads the model in advance
            times = prediction_times(images)
            found["first_prediction_s"] = times[0]
            found["next_predictions_s"] = times[1:]
            found["training_s"], found["training_report_s"] = training_times()
            memory, errors = memory_over_uploads(process, images)
    found["uploads"] = len(memory)
    found["errors"] = errors
    found["memory_mb_after_10"] = memory[9]
    found["memory_mb_at_most"] = max(memory[10:])
    found["memory_growth"] = max(memory[10:]) / memory[9] - 1
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
