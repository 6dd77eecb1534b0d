"""A small data set with two runs, and the settings of an app that shows them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import featkit
from featkit.app.settings import VARIABLE, AppSettings

CLASSES = ("ant", "<b>bee", "=cat")
"""Names with markup and with what a spreadsheet takes for a formula."""


def png(pixels):
    """Return an image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A folder with ``photos``, a cache and runs of two heads; the class of a photo is its colour."""
    folder = tmp_path_factory.mktemp("app")
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 6)):
        for place, name in enumerate(CLASSES):
            (folder / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 160, (40, 48, 3), dtype=np.uint8)
                pixels[..., place] += 90
                Image.fromarray(pixels).save(folder / "photos" / split / name / f"{number}.png")
    for head in ("linear", "knn:k=3"):
        featkit.fit(
            folder / "photos",
            backbone="resnet18",
            weights="random",
            resize="64",
            crop="64",
            head=head,
            cache=folder / "cache",
            out=folder / "runs",
        )
    return folder


@pytest.fixture
def runs(project):
    """The run directories: linear, knn."""
    found = sorted((project / "runs" / "photos").glob("*/"))
    return sorted(found, key=lambda path: featkit.load_run(path).head_spec, reverse=True)


@pytest.fixture
def settings(project, tmp_path, monkeypatch):
    """Settings of an app that was started with the runs and the photos of the project."""
    made = AppSettings(
        runs=(project / "runs",),
        data=(str(project / "photos"),),
        cache=project / "cache",
        out=tmp_path / "out",
        device="cpu",
    )
    monkeypatch.setenv(VARIABLE, made.to_json())
    return made
