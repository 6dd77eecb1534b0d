"""A calibrated int8 network is stored for its data set and is part of the recipe."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from featkit import ImageEmbedder
from featkit.backbones.devices import instruction_set
from featkit.embeddings import store
from featkit.embeddings.extract import run_extractions
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys, plan_extraction
from featkit.embeddings.request import Request
from featkit.embeddings.verify import collect_garbage
from featkit.errors import CacheError, DataError, SpecError, WeightsError

pytestmark = pytest.mark.slow

COMPUTE = Compute(workers=2)


def request(photos) -> Request:
    return Request(
        data=str(photos), weights="random", layer="layer1.0", resize="32", precision="int8"
    )


def run(photos, cache):
    (done,) = run_extractions([request(photos)], request(photos).load_images(), cache, COMPUTE)
    return done


def calibrations(cache):
    return {path.stem for path in (cache / "calibration").iterdir()}


def test_the_calibration_is_in_the_recipe_and_reused(photos, tmp_path):
    first, second = run(photos, tmp_path), run(photos, tmp_path)
    card = json.loads(next((tmp_path / "calibration").glob("*.json")).read_text())
    assert store.describe(first.path).recipe.calibration == card["sha256"]
    assert (first.hit, second.hit, len(calibrations(tmp_path))) == (False, True, 1)


def test_openvino_runs_the_same_network_into_another_file(photos, tmp_path):
    images = request(photos).load_images()
    requests = [
        replace(request(photos), precision=precision) for precision in ("int8-openvino", "int8")
    ]
    ours, theirs = (run_extractions([each], images, tmp_path, COMPUTE)[0] for each in requests)
    assert (ours.hit, theirs.hit, len(calibrations(tmp_path))) == (False, False, 1)
    recipe, other = (store.describe(each.path).recipe for each in (ours, theirs))
    assert recipe.differences(other) == {"precision": ("int8-openvino", "int8")}
    x, y = (store.read(each.path).x for each in (ours, theirs))
    assert np.linalg.norm(x - y) < 0.1 * np.linalg.norm(y)


def test_added_images_use_the_calibrated_network_of_the_others(photos, tmp_path):
    before = run(photos, tmp_path)
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(photos / "red" / "new.png")
    after = run(photos, tmp_path)
    assert (after.embedded, after.reused) == (1, before.embedded)
    assert len(calibrations(tmp_path)) == 1


def test_images_of_the_calibration_that_another_seed_tests_on_are_counted(photos, tmp_path, caplog):
    """The features of all seeds are those of one network."""
    before = run(photos, tmp_path)
    assert "calibrated" not in caplog.text
    other = replace(request(photos), seed=1)
    first, images = request(photos).load_images(), other.load_images()
    with caplog.at_level("WARNING", "featkit"):
        (after,) = run_extractions([other], images, tmp_path, COMPUTE)
    assert after.path == before.path
    both = set(first.rows("train").tolist()) & set(images.rows("test").tolist())
    assert f"{len(both)} of the {len(first.rows('train'))} images on which the int8" in caplog.text


def test_without_its_network_the_whole_file_is_a_miss(photos, tmp_path):
    before = run(photos, tmp_path)
    shutil.rmtree(tmp_path / "calibration")
    images = request(photos).load_images()
    job = plan_extraction(request(photos), images, content_keys(images, COMPUTE), tmp_path)
    assert job.recipe.calibration == "none"
    assert store.describe(before.path).recipe.differences(job.recipe).keys() == {"calibration"}


def test_calibration_does_not_use_test_images(photos, tmp_path, monkeypatch):
    images = request(photos).load_images()
    opened = []

    def stop(*_):
        raise SpecError("that is enough")

    monkeypatch.setattr("featkit.backbones.quantization.quantize", stop)
    counted = replace(images, load=lambda row: opened.append(row) or images.load(row))
    with pytest.raises(SpecError, match="enough"):
        run_extractions([request(photos)], counted, tmp_path, COMPUTE)
    assert sorted(opened) == images.rows("train").tolist()
    assert not list((tmp_path / "calibration").iterdir())


def test_calibration_without_train_images_is_refused(photos, tmp_path):
    images = request(photos).load_images()
    with pytest.raises(DataError, match="no train images"):
        run_extractions([request(photos)], images.take(images.rows("test")), tmp_path, COMPUTE)
    with pytest.raises(SpecError, match="train images"):
        ImageEmbedder(precision="int8", weights="random", cache=tmp_path).transform(
            [photos / "red" / "0.png"]
        )


def test_an_int8_network_without_cache_files_is_collected(photos, tmp_path):
    done = run(photos, tmp_path)
    assert collect_garbage(tmp_path) == ([], [])
    done.path.unlink()
    removed, _ = collect_garbage(tmp_path)
    assert {path.suffix for path in removed} == {".json", ".onnx"}
    assert not calibrations(tmp_path)


def test_the_processor_is_recorded(photos, tmp_path):
    done = run(photos, tmp_path)
    assert store.describe(done.path).provenance["instruction_set"] == instruction_set()
    card = json.loads(next((tmp_path / "calibration").glob("*.json")).read_text())
    assert card["record"]["instruction_set"] == instruction_set()
    assert card["record"]["weight_bits"] == 7


@pytest.mark.parametrize("saturates", [True, False])
def test_a_network_of_version_0_1_is_replaced_where_products_saturate(
    saturates, photos, tmp_path, monkeypatch
):
    run(photos, tmp_path)
    path = next((tmp_path / "calibration").glob("*.json"))
    card = json.loads(path.read_text())
    del card["record"]
    path.write_text(json.dumps(card))
    monkeypatch.setattr("featkit.backbones.int8.products_saturate", lambda: saturates)
    run(photos, tmp_path)
    cards = [json.loads(each.read_text()) for each in (tmp_path / "calibration").glob("*.json")]
    assert any("record" in each for each in cards) is saturates


def test_a_damaged_network_can_be_removed_and_is_calibrated_again(photos, tmp_path):
    run(photos, tmp_path)
    network = next((tmp_path / "calibration").glob("*.onnx"))
    content = bytearray(network.read_bytes())
    content[len(content) // 2] ^= 1
    network.write_bytes(content)
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(photos / "red" / "new.png")
    with pytest.raises(WeightsError, match="it was changed; remove it and make it again"):
        run(photos, tmp_path)
    network.unlink()
    assert run(photos, tmp_path).embedded


def test_a_poor_network_is_refused_and_not_kept(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("featkit.backbones.int8.REFUSE_BELOW", 1.1)
    monkeypatch.setattr("featkit.backbones.int8.WARN_BELOW", 1.2)
    with pytest.raises(SpecError, match=r"differ from float32 .* FEATKIT_INT8_CHECK=warn"):
        run(photos, tmp_path)
    assert not calibrations(tmp_path)
    assert not list(tmp_path.glob("*.h5"))


def test_a_damaged_card_is_an_error_that_names_it(photos, tmp_path):
    run(photos, tmp_path)
    card = next((tmp_path / "calibration").glob("*.json"))
    card.write_text("{")
    with pytest.raises(CacheError, match=f"{card.name} is damaged"):
        run(photos, tmp_path)
