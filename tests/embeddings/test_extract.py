"""Extraction embeds each image once, in order, and never uses stale features."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from featkit import ImageSet
from featkit.embeddings import store
from featkit.embeddings.calibration import CalibrationTask, read_pixels
from featkit.embeddings.extract import (
    OpenPlan,
    execute_plans,
    extract_embeddings,
    pending_images,
    run_extractions,
)
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys, plan_extraction
from featkit.embeddings.request import Request
from featkit.errors import CacheError, DataError, DecodeError, SpecError, WeightsError
from featkit.images import load_images

FAST = {"backbone": "resnet18", "weights": "random", "resize": "32"}
REQUEST = Request(data="", **FAST)
BATCHES_OF_5 = Compute(batch_size=5, workers=2)


def extract(data, backbone="resnet18", *, cache, compute=None, **options):
    compute = compute or Compute()
    if isinstance(data, ImageSet):
        request = Request(data="", backbone=backbone, **options)
        return extract_embeddings(request, cache, compute, images=data)
    request = Request(data=str(data), backbone=backbone, **options)
    return extract_embeddings(request, cache, compute)


def run_extraction(request, images, cache, compute):
    return run_extractions([request], images, cache, compute)[0]


def unreadable(images, rows):
    def load(row):
        if row in rows:
            raise DecodeError(f"{images.ids[row]} cannot be read")
        return images.load(row)

    return replace(images, load=load)


def test_rows_are_those_of_the_image_set(tmp_path, colours):
    images = colours(12)
    found = extract(images, cache=tmp_path, compute=BATCHES_OF_5, **FAST)
    assert found.x.shape == (12, 512)
    assert found.x.dtype == np.float32
    assert found.ids == images.ids
    np.testing.assert_array_equal(found.y, images.labels)
    np.testing.assert_array_equal(found.splits, images.splits)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 4), (64, 2)])
def test_batch_size_and_workers_do_not_change_the_features(tmp_path, colours, batch_size, workers):
    one = extract(colours(), cache=tmp_path / "one", compute=BATCHES_OF_5, **FAST)
    two = extract(
        colours(),
        cache=tmp_path / "two",
        compute=Compute(batch_size=batch_size, workers=workers),
        **FAST,
    )
    assert one.recipe == two.recipe
    np.testing.assert_allclose(two.x, one.x, rtol=1e-4, atol=1e-5)


def test_a_second_extraction_reads_no_image_and_builds_no_network(tmp_path, colours):
    images = colours()
    first = run_extraction(REQUEST, images, tmp_path, BATCHES_OF_5)
    second = run_extraction(REQUEST, unreadable(images, range(99)), tmp_path, BATCHES_OF_5)
    assert (first.hit, first.embedded, second.hit, second.path) == (False, 12, True, first.path)


@pytest.mark.parametrize(
    "change", [{"weights": "random:1"}, {"layer": "layer1"}, {"pool": "max"}, {"resize": "40"}]
)
def test_another_recipe_is_another_file(tmp_path, colours, change):
    one = run_extraction(REQUEST, colours(), tmp_path, BATCHES_OF_5)
    two = run_extraction(replace(REQUEST, **change), colours(), tmp_path, BATCHES_OF_5)
    assert (two.hit, two.embedded) == (False, 12)
    assert one.path != two.path


def test_cached_images_are_copied_not_embedded(tmp_path, colours):
    before = extract(colours(8), cache=tmp_path, compute=BATCHES_OF_5, **FAST)
    done = run_extraction(REQUEST, colours(12), tmp_path, BATCHES_OF_5)
    after = store.read(done.path)
    assert (done.embedded, done.reused) == (4, 8)
    np.testing.assert_array_equal(after.x[:8], before.x)
    alone = extract(colours(12), cache=tmp_path / "alone", compute=BATCHES_OF_5, **FAST)
    np.testing.assert_allclose(after.x, alone.x, rtol=1e-4, atol=1e-5)


def test_relabelled_images_are_not_embedded_again(tmp_path, colours):
    run_extraction(REQUEST, colours(), tmp_path, BATCHES_OF_5)
    done = run_extraction(
        REQUEST, replace(colours(), labels=1 - colours().labels), tmp_path, BATCHES_OF_5
    )
    assert (done.hit, done.embedded, done.reused) == (False, 0, 12)
    np.testing.assert_array_equal(store.read(done.path).y, 1 - colours().labels)


def test_one_file_serves_every_seed_of_a_split(tmp_path, colours):
    one = colours(split="70/15/15:seed=0")
    two = replace(one, splits=one.splits[::-1], split="70/15/15:seed=1")
    assert (
        run_extraction(REQUEST, one, tmp_path, BATCHES_OF_5).path
        == run_extraction(REQUEST, two, tmp_path, BATCHES_OF_5).path
    )
    np.testing.assert_array_equal(extract(two, cache=tmp_path, **FAST).splits, two.splits)


def test_an_unreadable_image_stops_the_extraction_and_leaves_nothing(tmp_path, colours):
    with pytest.raises(DecodeError, match=r"2\.png cannot be read"):
        run_extraction(REQUEST, unreadable(colours(), {2}), tmp_path, BATCHES_OF_5)
    assert list(tmp_path.iterdir()) == []


def test_images_embedded_before_an_unreadable_one_are_not_embedded_again(tmp_path, colours):
    with pytest.raises(DecodeError, match=r"7\.png cannot be read"):
        run_extraction(
            REQUEST, unreadable(colours(), {7}), tmp_path, replace(BATCHES_OF_5, workers=1)
        )
    assert list(tmp_path.glob("*.h5")) == []
    done = run_extraction(REQUEST, unreadable(colours(), range(5)), tmp_path, Compute(batch_size=3))
    assert (done.resumed, done.embedded) == (5, 7)
    assert list(tmp_path.iterdir()) == [done.path]


def test_skipped_images_are_named_and_the_rows_stay_aligned(tmp_path, colours):
    images = unreadable(colours(), {0, 7})
    compute = replace(BATCHES_OF_5, on_error="skip")
    assert run_extraction(REQUEST, images, tmp_path, compute).skipped == ("0.png", "7.png")
    whole = extract(colours(), cache=tmp_path / "whole", compute=BATCHES_OF_5, **FAST)
    rest = np.delete(np.arange(12), [0, 7])
    found = extract(images, cache=tmp_path, compute=compute, **FAST)
    assert found.ids == whole.take(rest).ids
    np.testing.assert_allclose(found.x, whole.x[rest], rtol=1e-4, atol=1e-5)


def test_a_file_with_skipped_images_is_an_error_unless_skipping_is_allowed(tmp_path, colours):
    images = unreadable(colours(), {7})
    run_extraction(REQUEST, images, tmp_path, replace(BATCHES_OF_5, on_error="skip"))
    with pytest.raises(DecodeError, match=r"7\.png"):
        run_extraction(REQUEST, images, tmp_path, BATCHES_OF_5)


def test_a_set_without_one_readable_image_is_refused(tmp_path, colours):
    with pytest.raises(DataError, match="none of the images"):
        run_extraction(
            REQUEST,
            unreadable(colours(), range(12)),
            tmp_path,
            replace(BATCHES_OF_5, on_error="skip"),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_failing_network_leaves_nothing(tmp_path, colours):
    with pytest.raises(SpecError):
        run_extraction(replace(REQUEST, layer="nonsense"), colours(), tmp_path, BATCHES_OF_5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"on_error": "ignore"}, {"batch_size": 0}, {"workers": 0}])
def test_invalid_compute_options_are_refused(wrong):
    with pytest.raises(SpecError):
        Compute(**wrong)


@pytest.mark.realdata
def test_features_equal_a_plain_torchvision_loop(tmp_path, real_data, real_weights):
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.models import ResNet18_Weights, resnet18

    folder = tmp_path / "some"
    for name in ("beaver", "yin_yang"):
        for split in ("train", "test"):
            (folder / split).mkdir(parents=True, exist_ok=True)
            source = real_data / "caltech101" / split / name
            target = folder / split / name
            target.mkdir()
            for image_file in sorted(source.iterdir())[:6]:
                (target / image_file.name).symlink_to(image_file)
    network = resnet18()
    network.load_state_dict(torch.load(real_weights / "resnet18.pth", weights_only=True))
    network.fc = torch.nn.Identity()
    network.eval()
    images = ImageFolder(folder / "train", transform=ResNet18_Weights.IMAGENET1K_V1.transforms())
    with torch.no_grad():
        plain = torch.cat([network(batch) for batch, _ in DataLoader(images, batch_size=4)]).numpy()
    ours = extract(folder, cache=tmp_path / "cache", precision="fp32").part("train").x
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4 * np.abs(plain).max())


def test_several_networks_read_each_image_once(tmp_path, colours):
    read = []
    images = colours()
    counted = replace(images, load=lambda row: (read.append(row), images.load(row))[1])
    requests = [
        REQUEST,
        replace(REQUEST, weights="random:1"),
        replace(REQUEST, resize="40"),
        REQUEST,
    ]
    done = run_extractions(requests, counted, tmp_path, BATCHES_OF_5)
    assert sorted(read) == list(range(12))
    assert len({each.path for each in done}) == 3
    for request, each in zip(requests, done, strict=True):
        alone = run_extraction(request, images, tmp_path / "alone", BATCHES_OF_5)
        np.testing.assert_array_equal(store.read(each.path).x, store.read(alone.path).x)


def test_changes_since_the_last_file_are_counted(tmp_path, photos):
    from PIL import Image

    request = Request(data=str(photos), **FAST)
    run_extraction(request, request.load_images(), tmp_path, BATCHES_OF_5)
    (photos / "red" / "0.png").rename(photos / "red" / "renamed.png")
    (photos / "red" / "1.png").unlink()
    Image.new("RGB", (9, 9), "red").save(photos / "red" / "2.png")
    Image.new("RGB", (9, 9), "pink").save(photos / "red" / "new.png")
    done = run_extraction(request, request.load_images(), tmp_path, BATCHES_OF_5)
    assert done.changes == {"new": 1, "changed": 1, "removed": 1}
    assert (done.embedded, done.reused) == (2, 22)


def test_the_work_list_reads_an_image_once_for_all_journals_and_skips_cached_images(colours):
    images, keys = colours(3), ("a", "b", "")
    copies, copied_keys = colours(3), ("a", "c", "d")

    def opened(images, keys, journal, cached=()):
        plan = SimpleNamespace(images=images, keys=keys, decoding_of=lambda key: None)
        return OpenPlan(plan, journal, dict.fromkeys(cached), resumed=0)

    one, two = {"b": None}, {}
    plans = [
        opened(images, keys, one),
        opened(images, keys, two),
        opened(copies, copied_keys, two, ["d"]),
    ]
    pending = pending_images(plans)
    assert [(image.row, image.key) for image in pending] == [(0, "a"), (1, "b"), (1, "c")]
    assert [len(image.journals) for image in pending] == [2, 1, 1]
    assert [image.images is copies for image in pending] == [False, False, True]


def test_an_image_that_is_replaced_between_hashing_and_decoding_is_not_cached(tmp_path, photos):
    """Its features would be cached under the key of the old image for ever."""
    images = load_images(str(photos))
    keys = content_keys(images, Compute())
    plan = plan_extraction(REQUEST.for_device("cpu"), images, keys, tmp_path / "cache")
    Image.new("RGB", (20, 24), "white").save(photos / images.ids[7])
    for on_error in ("fail", "skip"):
        with pytest.raises(DataError, match=f"{images.ids[7]} was changed while it was in use"):
            execute_plans([plan], Compute(batch_size=1, workers=1, on_error=on_error))
        assert not list((tmp_path / "cache").glob("*.h5"))
    # The next extraction takes over the features of the other images, and only those.
    done = run_extraction(REQUEST, load_images(str(photos)), tmp_path / "cache", Compute())
    assert done.resumed > 0
    one, other = (
        extract(photos, cache=tmp_path / name, **FAST).x for name in ("cache", "another cache")
    )
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_an_image_that_is_replaced_is_not_used_for_calibration(tmp_path, photos):
    images = load_images(str(photos))
    keys = content_keys(images, Compute())
    task = CalibrationTask(REQUEST.load_backbone(), images, keys)
    for row in images.rows("train"):
        Image.new("RGB", (20, 24), "white").save(photos / images.ids[row])
    with pytest.raises(DataError, match="was changed while it was in use"):
        read_pixels(task, task.train_keys(), Compute(on_error="skip"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused_and_the_layer_is_named(tmp_path, colours, value):
    state = torchvision.models.resnet18(weights=None).state_dict()
    state["layer3.1.bn1.bias"][4] = value
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(DataError) as caught:
        extract(
            colours(4),
            cache=tmp_path / "cache",
            weights=str(tmp_path / "weights.pth"),
            resize="32",
        )
    assert "the features of 0.png with resnet18 are not finite" in str(caught.value)
    assert "layer layer3.1.bn1" in str(caught.value)
    assert not list((tmp_path / "cache").glob("*"))


def test_damaged_features_are_computed_again_and_not_given_new_checksums(tmp_path, colours):
    images = colours(12)
    done = run_extraction(REQUEST, images, tmp_path, BATCHES_OF_5)
    with h5py.File(done.path, "r+") as file:
        file["embeddings"][2, 100] += 1
    fewer = images.take(np.arange(10))
    again = run_extraction(REQUEST, fewer, tmp_path, BATCHES_OF_5)
    assert (again.embedded, again.reused) == (1, 9)
    whole = extract(fewer, cache=tmp_path / "other", compute=BATCHES_OF_5, **FAST)
    np.testing.assert_allclose(store.read(again.path).x, whole.x, rtol=1e-4, atol=1e-5)
    with pytest.raises(CacheError, match=r"2\.png the first, are damaged"):
        extract(images, cache=tmp_path, compute=BATCHES_OF_5, **FAST)


def test_a_damaged_file_of_the_same_data_does_not_stop_an_extraction(tmp_path, photos):
    """Only images, labels and keys of the newest file are damaged, not its attributes."""
    request = Request(data=str(photos), **FAST)
    done = run_extraction(request, load_images(str(photos)), tmp_path / "cache", Compute())
    with h5py.File(done.path, "r+") as file:
        file["keys"][0] = file["keys"][1]
    (photos / "red" / "0.png").unlink()
    again = run_extraction(request, load_images(str(photos)), tmp_path / "cache", Compute())
    assert (again.embedded, again.reused, again.changes) == (23, 0, None)


def test_weights_that_are_replaced_between_hashing_and_loading_are_not_used(tmp_path, colours):
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(torchvision.models.resnet18(weights=None).state_dict())
    torch.save(states[0], tmp_path / "weights.pth")
    request = Request(data="", weights=str(tmp_path / "weights.pth"), resize="32")
    images, cache = colours(4), tmp_path / "cache"
    keys = content_keys(images, Compute())
    plan = plan_extraction(request.for_device("cpu"), images, keys, cache)
    torch.save(states[1], tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="weights of resnet18 were changed"):
        execute_plans([plan], Compute())
    assert not list(cache.glob("*"))


@pytest.mark.parametrize("name", ["../../x", "a/b", "", "a\nb"])
def test_a_file_of_images_with_any_name_can_be_read(name, tmp_path, colours):
    """A name that leads out of the folder of results is made a safe one when it is recorded."""
    images = replace(colours(2), name=name)
    done = run_extraction(REQUEST, images, tmp_path, Compute())
    assert len(store.read(done.path)) == 2
    assert ".." not in store.describe(done.path).provenance["data"]


def test_engines_share_a_recipe_and_the_file_says_which_one_ran(tmp_path, colours):
    """Images can be added with either: features agree to rounding."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    options = {**FAST, "layer": "layer1.0", "precision": "fp32"}
    few, all_images = colours(8), colours(12)
    for name, compute in (("torch", Compute(engine="torch")), ("mixed", Compute())):
        extract(few, cache=tmp_path / name, compute=compute, **options)
    by_torch = extract(
        all_images, cache=tmp_path / "torch", compute=Compute(engine="torch"), **options
    )
    mixed = extract(
        all_images, cache=tmp_path / "mixed", compute=Compute(engine="onnxruntime"), **options
    )
    assert by_torch.recipe == mixed.recipe
    np.testing.assert_array_equal(mixed.x[:8], by_torch.x[:8])  # copied from the first file
    assert not np.array_equal(mixed.x[8:], by_torch.x[8:])
    np.testing.assert_allclose(mixed.x, by_torch.x, atol=1e-5 * np.abs(by_torch.x).max())
    for name, engine in (("torch", "torch"), ("mixed", "onnxruntime")):
        path = store.find(tmp_path / name, mixed.recipe)
        provenance = store.describe(path).provenance
        assert provenance["engine"] == engine
        assert ("onnxruntime" in provenance["versions"]) == (engine == "onnxruntime")


def test_an_unknown_engine_is_refused():
    with pytest.raises(SpecError, match="unknown engine 'fast'"):
        Compute(engine="fast")
