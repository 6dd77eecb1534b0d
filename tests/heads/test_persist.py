import json
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import skops.io
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from featkit.errors import HeadError
from featkit.heads import HEADS, make_head
from featkit.heads.balance import BalancedHead
from featkit.heads.multilabel import MultiLabelHead
from featkit.heads.persist import TRUSTED, load_head, save_head

SPECS = ["linear", "svm", "svm:kernel=linear,gamma=0.5", "knn", "mlp:width=32", "prototypical"]


@pytest.fixture(scope="module")
def rows():
    x, y = load_digits(return_X_y=True)
    return x[:150].astype(np.float32), y[:150] * 2 + 1, x[150:200].astype(np.float32)


def refuse(*_, **__):
    raise AssertionError("pickle was used")


@pytest.fixture
def no_pickle(monkeypatch):
    for name in ("load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"):
        monkeypatch.setattr(pickle, name, refuse)


def test_trusted_types_are_the_built_in_heads():
    own = {BalancedHead, MultiLabelHead, *(HEADS.get(name) for name in HEADS.names())}
    assert set(TRUSTED) == {f"{head.__module__}.{head.__name__}" for head in own}


@pytest.mark.parametrize("spec", SPECS)
def test_loaded_head_gives_the_same_scores_without_pickle(spec, rows, tmp_path, no_pickle):
    x, y, points = rows
    head = make_head(spec).fit(x, y)
    save_head(head, tmp_path / "head.skops")
    loaded = load_head(tmp_path / "head.skops")
    assert loaded.get_params() == head.get_params()
    assert loaded.warnings_ == ()
    np.testing.assert_array_equal(loaded.predict_proba(points), head.predict_proba(points))
    np.testing.assert_array_equal(loaded.predict(points), head.predict(points))


def test_loaded_head_gives_the_same_scores_in_another_process(rows, tmp_path):
    x, y, points = rows
    np.save(tmp_path / "points.npy", points)
    for spec in SPECS:
        head = make_head(spec).fit(x, y)
        save_head(head, tmp_path / f"{spec}.skops")
        np.save(tmp_path / f"{spec}.npy", head.predict_proba(points))
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from featkit.heads.persist import load_head\n"
        "points = np.load('points.npy')\n"
        "for spec in sys.argv[1:]:\n"
        "    scores = load_head(Path(f'{spec}.skops')).predict_proba(points)\n"
        "    np.testing.assert_array_equal(scores, np.load(f'{spec}.npy'))\n"
    )
    subprocess.run([sys.executable, "-c", code, *SPECS], check=True, cwd=tmp_path)


def test_string_labels_survive_saving(rows, tmp_path):
    x, y, points = rows
    head = make_head("prototypical").fit(
        x, np.array([f"digit {label}" for label in y], dtype=object)
    )
    save_head(head, tmp_path / "head.skops")
    np.testing.assert_array_equal(
        load_head(tmp_path / "head.skops").predict(points), head.predict(points)
    )


class Stranger:
    """An untrusted type."""

    def __init__(self):
        self.x = 1


def test_untrusted_types_are_neither_saved_nor_loaded(rows, tmp_path):
    path = tmp_path / "head.skops"
    head = make_head("prototypical").fit(*rows[:2])
    head.stranger_ = Stranger()
    with pytest.raises(
        HeadError, match=r"cannot be saved to .* does not trust: \S*test_persist\.Stranger$"
    ):
        save_head(head, path)
    assert not path.exists()
    skops.io.dump({"scikit-learn": "1.9", "head": head}, path)
    with pytest.raises(
        HeadError, match=r"was not loaded: .* does not trust: \S*test_persist\.Stranger"
    ):
        load_head(path)
    name = f"{Stranger.__module__}.Stranger"
    save_head(head, path, trusted=[name])
    assert load_head(path, trusted=[name]).stranger_.x == 1


def test_a_tree_is_not_trusted_although_scikit_learn_made_it(rows, tmp_path):
    path = tmp_path / "head.skops"
    skops.io.dump(
        {"scikit-learn": "1.9", "head": DecisionTreeClassifier(max_depth=2).fit(*rows[:2])}, path
    )
    with pytest.raises(HeadError, match=r"sklearn\.tree\._tree\.Tree"):
        load_head(path)


def test_loading_an_object_that_is_not_a_head_fails(rows, tmp_path):
    path = tmp_path / "head.skops"
    skops.io.dump({"scikit-learn": "1.9", "head": LogisticRegression()}, path)
    with pytest.raises(
        HeadError, match=r"contains a sklearn\.\S+\.LogisticRegression, which is not a head"
    ):
        load_head(path)


def test_damaged_and_foreign_files_raise_a_one_line_error(rows, tmp_path):
    path = tmp_path / "head.skops"
    save_head(make_head("prototypical").fit(*rows[:2]), path)
    whole = path.read_bytes()
    foreign = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello",
        "pickle": pickle.dumps({"a": 1}),
        "damaged": whole.replace(b"\x93NUMPY", b"\x93NUMPX"),
    }
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with zipfile.ZipFile(tmp_path / "json", "w") as archive:
        archive.writestr("schema.json", json.dumps({"protocol": 1}))
    skops.io.dump([1, 2], tmp_path / "list")
    for name in [*foreign, "zip", "json", "list", "missing"]:
        with pytest.raises(
            HeadError, match=r"is not a head saved by featkit .*: fit it again$"
        ) as caught:
            load_head(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_heads_are_fitted_saved_and_loaded_without_torch(tmp_path):
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from featkit.heads import make_head\n"
        "from featkit.heads.persist import load_head, save_head\n"
        "for name in ('linear', 'svm', 'knn:k=2', 'mlp', 'prototypical'):\n"
        "    save_head(make_head(name).fit(np.eye(4), [0, 1, 0, 1]), Path('head.skops'))\n"
        "    load_head(Path('head.skops'))\n"
        "assert not {'torch', 'PIL', 'h5py'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_other_scikit_learn_version_is_added_to_the_warnings(rows, tmp_path):
    path = tmp_path / "head.skops"
    skops.io.dump({"scikit-learn": "1.0", "head": make_head("knn").fit(*rows[:2])}, path)
    (text,) = load_head(path).warnings_
    assert text.startswith("fitted with scikit-learn 1.0, used with ")


def test_head_without_a_current_parameter_raises_a_one_line_error(rows, tmp_path):
    head = make_head("knn").fit(*rows[:2])
    del head.scale
    save_head(head, tmp_path / "head.skops")
    with pytest.raises(
        HeadError, match=r"by another version of featkit \(.*'scale'.*\): fit it again$"
    ):
        load_head(tmp_path / "head.skops")


def test_classes_of_installed_plugins_are_trusted(rows, tmp_path, monkeypatch):
    (tmp_path / "mean_plugin.py").write_text(
        "from featkit.heads.prototypical import PrototypicalHead\n"
        "class MeanHead(PrototypicalHead):\n    pass\n"
    )
    info = tmp_path / "mean_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mean-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[featkit.heads]\nmean = mean_plugin:MeanHead\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    x, y, points = rows
    head = make_head("mean").fit(x, y)
    save_head(head, tmp_path / "head.skops")
    np.testing.assert_array_equal(
        load_head(tmp_path / "head.skops").predict(points), head.predict(points)
    )
    sys.modules.pop("mean_plugin")
