"""Export of saved runs, on real images."""

from __future__ import annotations

import pytest

from featkit.compression.onnx_reader import load_exported
from featkit.embeddings.pipeline import Compute
from featkit.runs.directory import load_run, save_run
from featkit.runs.export import export_run
from featkit.runs.features import load_features
from featkit.runs.fit import fit_run
from featkit.runs.predict import predict, predict_exported

pytestmark = pytest.mark.slow


@pytest.mark.long
@pytest.mark.realdata
def test_every_head_is_exported_without_a_change_of_class(real_data, real_weights, tmp_path):
    """On test images of pets, with both kinds of ``featkit predict``."""
    data = real_data / "pets" / "labels.csv"
    given = {"data": str(data), "backbone": "resnet18", "precision": "fp32"}
    given["limit"] = "train=222,test=37"
    source = load_features(given, tmp_path / "cache", Compute())
    image_files = [str(data.parent / name) for name in source.embeddings.part("test").ids[:3]]
    for head in ("linear", "svm", "knn", "mlp", "prototypical"):
        run = load_run(save_run(fit_run(source, head), tmp_path / "out", {}))
        found = export_run(run, tmp_path / "model.onnx", compute=Compute())
        assert (found.n, found.differing) == (37, 0), head
        assert found.largest < 1e-4, head
        here = predict(run, image_files, Compute())
        there = predict_exported(load_exported(tmp_path / "model.onnx"), image_files, Compute())
        assert [each.answer for each in here] == [each.answer for each in there]
