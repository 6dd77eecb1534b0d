"""Which packages each command imports: start-up is most of what a small command takes.

A module is listed here if importing it takes more than about 0.1 s, or if it brings in others
that do.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GOLDEN = Path(__file__).parent.parent / "golden" / "0.3.0"

NETWORK = {"torch"}
"""What only a network needs."""

COMPILER = {"torchvision", "torch._dynamo", "torch._inductor"}
"""What torch needs to compile, and torchvision imports with its models."""

HEAVY = {"numpy", "scipy", "sklearn", "pandas", "h5py", "PIL", "matplotlib", "skops", "jinja2"}
SLOW_PARTS = {"scipy.stats", "scipy.optimize", "sklearn", "pandas", "matplotlib", "skops"}
RUNTIMES = {"onnx", "onnxruntime", "openvino", "keras", "tensorflow", "dask", "streamlit", "timm"}

CODE = """
import sys
from featkit.cli import main
try:
    main(standalone_mode=False)
finally:
    print("modules", *sys.modules, file=sys.stderr)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a cache, a run and images."""
    shutil.copytree(GOLDEN / "cache", tmp_path / "cache")
    run = min((GOLDEN / "runs" / "digits").iterdir())
    shutil.copytree(run, tmp_path / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for number in range(2):
        Image.fromarray(pixels[number:]).save(tmp_path / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(*arguments: str) -> list[str]:
    """Run a command in a process of its own; return those of the large modules it imported."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = done.stderr.splitlines()[-1].split()[1:]
    return sorted(set(modules) & (NETWORK | COMPILER | HEAVY | SLOW_PARTS | RUNTIMES))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["predict", "--help"], ["--version"]], ids=" ".join
)
def test_help_imports_none_of_the_large_packages(arguments: list[str]) -> None:
    assert imported(*arguments) == []


@pytest.mark.parametrize(
    "arguments",
    [["cache", "ls"], ["models"], ["runs", "ls", "--out", "."]],
    ids=" ".join,
)
def test_listing_needs_no_network_and_no_statistics(arguments: list[str], folder: Path) -> None:
    assert set(imported(*arguments)) <= {"numpy", "h5py", "PIL"}


def test_fitting_on_cached_features_needs_no_network(folder: Path) -> None:
    modules = imported(
        *("fit", "--data", "digits", "--backbone", "resnet18", "--weights", "random"),
        *("--resize", "32", "--precision", "fp32", "--limit", "train=60,val=20,test=30"),
        *("--head", "knn", "--out", "runs"),
    )
    assert json.loads(next(folder.glob("runs/digits/*/card.json")).read_text())
    # skops imports scikit-learn's adapter of Dask when it saves the head.
    assert set(modules) <= HEAVY | SLOW_PARTS | {"dask"}


@pytest.mark.slow
def test_predicting_needs_the_network_and_the_head_only(folder: Path) -> None:
    modules = imported("predict", "run", "0.png", "--device", "cpu")
    assert "torch" in modules
    # scikit-learn imports SciPy and pandas.
    scikit_learn = {"sklearn", "scipy", "scipy.stats", "scipy.optimize", "pandas"}
    assert set(modules) <= NETWORK | scikit_learn | {"numpy", "h5py", "PIL"}


@pytest.mark.slow
def test_extraction_needs_the_network_only(folder: Path) -> None:
    rows = []
    for number, split in enumerate(["train", "train", "test", "test"]):
        shutil.copy(f"{number % 2}.png", f"{split}{number}.png")
        rows.append(f"{split}{number}.png,{'ab'[number % 2]},{split}\n")
    (folder / "images.csv").write_text("path,label,split\n" + "".join(rows))
    modules = imported(
        *("extract", "--data", "images.csv", "--backbone", "resnet18", "--weights", "random"),
        *("--device", "cpu", "--cache", "new", "--precision", "fp32"),
    )
    assert list((folder / "new").glob("*.h5"))
    assert modules == ["PIL", "h5py", "numpy", "torch"]
