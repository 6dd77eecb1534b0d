"""Fixtures that tests of several packages share, and the environment that all tests run in."""

from __future__ import annotations

import os

# One thread in each process, set before numpy and torch read it: pytest-xdist runs one process per core, and results
# do not depend on the number of cores.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import atexit
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from featkit.embeddings.base import Embeddings
from featkit.embeddings.recipe import Recipe
from featkit.images.base import ImageSet

# The same examples in every run, and no time limit for one of them: machines differ, and several tests run at once.
settings.register_profile("featkit", deadline=None, derandomize=True)
settings.load_profile("featkit")

# Fixtures of a module run before ``_isolated_environment``: their runs must not be listed in the user's home either.
os.environ["FEATKIT_HOME"] = tempfile.mkdtemp(prefix="featkit-home-")
atexit.register(shutil.rmtree, os.environ["FEATKIT_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of Keras where TensorFlow is not installed, without importing it elsewhere."""
    if find_spec("tensorflow") and find_spec("keras"):
        return
    missing = pytest.mark.skip(
        reason="TensorFlow is not installed: pip install 'featkit[tensorflow]'"
    )
    for item in items:
        if item.get_closest_marker("keras"):
            item.add_marker(missing)


@pytest.fixture(autouse=True)
def _isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the weights and data of the user who runs the tests, unless a test asks for the real ones."""
    for name in ("FEATKIT_WEIGHTS", "FEATKIT_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-torch-home"))
    monkeypatch.setenv("FEATKIT_HOME", str(tmp_path / "featkit-home"))


def _real(variable: str) -> Path:
    if not _REAL[variable]:
        pytest.skip(f"{variable} is not set")
    return Path(_REAL[variable]).resolve()


_REAL = {name: os.environ.get(name, "") for name in ("FEATKIT_TEST_DATA", "FEATKIT_WEIGHTS")}


@pytest.fixture
def real_data() -> Path:
    """Return the folder of real images."""
    return _real("FEATKIT_TEST_DATA")


@pytest.fixture
def real_weights(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of real weights, and let featkit find it."""
    folder = _real("FEATKIT_WEIGHTS")
    monkeypatch.setenv("FEATKIT_WEIGHTS", str(folder))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 3 classes with 8 tiny images each; the class is the colour."""
    rng = np.random.default_rng(0)
    for place, name in enumerate(("blue", "green", "red")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 60, (20, 24, 3), dtype=np.uint8)
            pixels[..., 2 - place] += 150
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def colours() -> Callable[..., ImageSet]:
    """Return a function that makes an image set in memory: n random images of two classes."""

    def make(n: int = 12, seed: int = 0, split: str = "own") -> ImageSet:
        pixels = np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
        return ImageSet(
            name="colours",
            ids=tuple(f"{row}.png" for row in range(n)),
            labels=np.arange(n) % 2,
            classes=("even", "odd"),
            splits=np.where(np.arange(n) < 2 * n // 3, "train", "test"),
            split=split,
            load=pixels.__getitem__,
            key=lambda row: f"{pixels[row].sum():064x}",
        )

    return make


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str, str], None]]:
    """Return a function that installs a package of one module, given its name, code and entry points."""
    installed = []

    def install(name: str, code: str, entry_points: str) -> None:
        about = tmp_path / f"{name}-1.0.dist-info"
        about.mkdir()
        (tmp_path / f"{name}.py").write_text(code)
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n"
        )
        (about / "entry_points.txt").write_text(entry_points)
        monkeypatch.syspath_prepend(tmp_path)
        installed.append(name)

    yield install
    for name in installed:
        sys.modules.pop(name, None)


@pytest.fixture
def vectors() -> Callable[..., Embeddings]:
    """Return a function that makes random features of four classes, a third of them test rows."""

    def make(n: int = 60, splits: np.ndarray | None = None, apart: float = 0.0) -> Embeddings:
        y = np.arange(n) % 4
        x = np.random.default_rng(0).normal(size=(n, 4)) + apart * np.eye(4)[y]
        splits = np.where(np.arange(n) % 3 == 0, "test", "train") if splits is None else splits
        recipe = Recipe(*["x"] * 8, {}, "fp32")
        return Embeddings(
            x.astype(np.float32), y, tuple(map(str, range(n))), tuple("abcd"), splits, recipe
        )

    return make
