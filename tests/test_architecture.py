"""The plan of the house holds, in the test run as in `make lint`."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import featkit
from featkit.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "featkit").rglob("*.py"))


def run_python(code: str, **options) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_go_one_way():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_modules_and_functions_are_small():
    lengths = []
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") < 300, f"{path} is too long"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60, f"{path}: {node.name} is too long"
                lengths.append(lines)
    assert statistics.median(lengths) < 12


@pytest.mark.parametrize("verb", ["", *COMMANDS])
def test_help_needs_nothing_heavy(verb):
    code = f"""
import sys
from featkit.cli import main
try:
    main({[verb, "--help"] if verb else ["--help"]!r})
except SystemExit as stop:
    assert stop.code == 0
heavy = {{"torch", "torchvision", "sklearn", "scipy", "h5py", "numpy", "matplotlib", "PIL"}} & sys.modules.keys()
assert not heavy, heavy
"""
    assert "Examples:" in run_python(code)


def test_the_public_names_are_there():
    for name in featkit.__all__:
        assert getattr(featkit, name).__doc__
    with pytest.raises(AttributeError, match="nonsense"):
        featkit.nonsense  # noqa: B018


def test_no_module_unpickles():
    """What a user might have been sent is never unpickled."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "joblib", "dill", "cloudpickle"} & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path
