"""Reading of skops files without skops."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import skops.io

from featkit.errors import HeadError
from featkit.heads import make_head
from featkit.heads.archive import UnknownNodeError, read_archive
from featkit.heads.balance import BalancedHead
from featkit.heads.persist import TRUSTED, load_head, save_head

SPECS = ["linear", "svm", "svm:kernel=linear", "knn:k=2", "mlp:width=8", "prototypical"]


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    y = np.repeat([1, 4, 5], 20)
    return (rng.standard_normal((60, 6)) + y[:, None]).astype(np.float32), y


def saved(head, path):
    save_head(head, path)
    return path.read_bytes()


def assert_equal(one, other):
    """Compare objects as they are, with their types and their data types."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    elif hasattr(one, "__dict__"):
        assert_equal(vars(one), vars(other))
    else:
        assert one == other


@pytest.mark.parametrize("spec", SPECS)
def test_heads_are_read_as_skops_reads_them(spec, rows, tmp_path):
    data = saved(make_head(spec).fit(*rows), tmp_path / "head.skops")
    content = read_archive(data, TRUSTED)
    assert_equal(content, skops.io.loads(data, trusted=list(TRUSTED)))
    assert type(content["head"]) is type(make_head(spec))


def test_a_balanced_head_is_read_as_skops_reads_it(rows, tmp_path):
    head = BalancedHead(head="linear", correction="tau_norm").fit(*rows)
    data = saved(head, tmp_path / "head.skops")
    assert_equal(read_archive(data, TRUSTED), skops.io.loads(data, trusted=list(TRUSTED)))


def test_loading_a_head_imports_neither_skops_nor_the_other_estimators(rows, tmp_path):
    save_head(make_head("linear").fit(*rows), tmp_path / "head.skops")
    code = (
        "import sys; from pathlib import Path\n"
        "from featkit.heads.persist import load_head\n"
        "load_head(Path('head.skops'))\n"
        "assert not {'skops', 'sklearn.ensemble', 'sklearn.neural_network'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_class_that_is_not_listed_is_never_imported(rows, tmp_path):
    data = saved(make_head("knn").fit(*rows), tmp_path / "head.skops")
    with pytest.raises(UnknownNodeError, match=r"ObjectNode of featkit\.heads\.knn\.KNNHead"):
        read_archive(data, ["featkit.heads.linear.LinearHead"])


@pytest.mark.parametrize(
    "value",
    [np.float64(0.5), {1, 2}, b"bytes", np.array([None, "x"]), {1: 2}, np.dtype("f4"), slice(1)],
    ids=["scalar", "set", "bytes", "objects", "numbers", "dtype", "slice"],
)
def test_other_objects_are_left_to_skops(value, rows, tmp_path):
    head = make_head("prototypical").fit(*rows)
    head.extra = value
    data = skops.io.dumps({"scikit-learn": "1.9", "head": head})
    with pytest.raises(UnknownNodeError):
        read_archive(data, TRUSTED)


def test_a_file_of_another_protocol_is_left_to_skops(rows, tmp_path):
    path = tmp_path / "head.skops"
    rewrite_schema(saved(make_head("knn").fit(*rows), path), path, {"protocol": 99})
    with pytest.raises(UnknownNodeError, match="another version"):
        read_archive(path.read_bytes(), TRUSTED)


def test_a_damaged_node_is_one_clear_line(rows, tmp_path):
    path = tmp_path / "head.skops"
    rewrite_schema(saved(make_head("knn").fit(*rows), path), path, {"content": {"head": {}}})
    with pytest.raises(HeadError, match="is not a head saved by featkit") as caught:
        load_head(path)
    assert "\n" not in str(caught.value)


def rewrite_schema(data, path, changes):
    """Write a skops file again with other values at the top of its schema."""
    (path.parent / "old").write_bytes(data)
    with zipfile.ZipFile(path.parent / "old") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "schema.json":
                content = json.dumps({**json.loads(content), **changes})
            new.writestr(name, content)
