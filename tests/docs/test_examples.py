"""The programs in docs/examples answer as featkit does."""

from __future__ import annotations

import functools
import http.client
import json
import os
import runpy
import shutil
import threading
from contextlib import contextmanager
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featkit
from featkit.backbones.base import Preprocess
from featkit.images.decode import decode_file
from tests.docs.pages import DOCS

EXAMPLES = DOCS / "examples"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a folder with an exported classifier, three images and what featkit predicts for them."""
    folder = tmp_path_factory.mktemp("exported")
    options = {
        "backbone": "resnet18",
        "weights": "random",
        "resize": "32",
        "precision": "fp32",
        "cache": folder / "cache",
    }
    featkit.fit("digits", head="prototypical", limit="train=200,test=50", out=folder, **options)
    (run,) = [path.parent for path in folder.glob("digits/*/card.json")]
    featkit.export(run, out=folder / "model.onnx", check=20)
    images = featkit.load_images("digits")
    paths = []
    for number in (0, 5, 8):
        path = folder / f"{number}.png"
        Image.fromarray(images.load(number)).resize((61, 83 + number)).save(path)
        paths.append(path)
    expected = list(featkit.predict(run, paths))
    return folder, paths, expected


@contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def post(port, path, content, headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, content, dict(headers))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_the_http_service_converts_images_as_featkit_does(tmp_path):
    convert = runpy.run_path(str(EXAMPLES / "serve.py"))["to_rgb"]
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 2**16, (20, 30), dtype=np.uint16)
    colours = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    palette = Image.fromarray(colours[..., :3]).quantize(8)
    images = {
        "16-bit.png": (Image.fromarray(grey), {}),
        "transparent.png": (Image.fromarray(colours), {}),
        "grey-alpha.png": (Image.fromarray(colours[..., :2], "LA"), {}),
        "palette.png": (palette, {"transparency": 3}),
        "grey.png": (Image.fromarray(colours[..., 0]), {}),
        "1-bit.png": (Image.fromarray(colours[..., 0]).convert("1"), {}),
        "cmyk.jpg": (Image.fromarray(colours[..., :3]).convert("CMYK"), {}),
    }
    for name, (image, options) in images.items():
        image.save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as stored:
            found = np.asarray(convert(stored))
        np.testing.assert_array_equal(found, decode_file(tmp_path / name), name)
    with pytest.raises(ValueError, match="which value is white"):
        convert(Image.fromarray(np.ones((2, 2), np.float32)))


def test_the_http_service_answers_as_featkit_predict(exported):
    folder, paths, expected = exported
    program = runpy.run_path(str(EXAMPLES / "serve.py"))
    server = program["make_server"](program["Model"](str(folder / "model.onnx")), "127.0.0.1", 0)
    server.daemon_threads = False
    with serving(server) as port:
        for path, prediction in zip(paths, expected, strict=True):
            status, answer = post(port, "/predict", path.read_bytes())
            assert status == 200
            assert answer["predicted"] == prediction.predicted
            assert answer["confidence"] == pytest.approx(prediction.confidence, abs=1e-3)
            assert answer["rejected"] is False
        status, answer = post(port, "/predict", b"no image")
        assert status == 400
        assert "not an image" in answer["error"]
        assert post(port, "/other", b"")[0] == 400
        assert post(port, "/predict", b"", {"Content-Length": "999999999"})[0] == 400


def find_chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser_page(exported):
    """Return the example page in Chromium, served with the exported model, without ONNX Runtime."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = find_chromium()
    if chromium is None:
        if os.environ.get("FEATKIT_REQUIRE_BROWSER"):
            pytest.fail("FEATKIT_REQUIRE_BROWSER is set, and there is no Chromium")
        pytest.skip("Chromium is not installed")
    folder = exported[0]
    shutil.copy(EXAMPLES / "classify.html", folder)
    Path(folder, "ort.min.js").write_text("// tested without ONNX Runtime Web\n", encoding="utf-8")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *args: None
    with (
        serving(HTTPServer(("127.0.0.1", 0), handler)) as port,
        playwright.sync_playwright() as engine,
    ):
        browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/classify.html")
        yield page
        browser.close()


@pytest.mark.parametrize(
    ("size", "resize", "crop"),
    [
        ((301, 217), 64, (56, 56)),
        ((40, 30), (64, 48), (56, 57)),
        ((50, 41), 20, (28, 28)),
        ((64, 64), 64, (64, 64)),
        ((47, 90), 33, (28, 27)),
    ],
)
def test_the_browser_prepares_images_as_featkit_does(size, resize, crop, browser_page):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    preprocess = Preprocess(resize=resize, crop=crop)
    expected = preprocess(np.asarray(image)).astype(np.float64)
    found = browser_page.evaluate(
        "([rgb, width, height, preprocessing]) =>"
        " Array.from(prepare(rgb, width, height, preprocessing).tensor)",
        [
            np.asarray(image).ravel().tolist(),
            *size,
            {"resize": resize, "crop": crop, "interpolation": "bilinear"},
        ],
    )
    pixels = 255 * np.reshape(found, (3, *crop)).transpose(1, 2, 0)
    assert np.abs(pixels - expected).max() <= 1 + 1e-3
