from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from featkit.backbones import list_layers, load_backbone
from featkit.backbones.engines import open_engine
from featkit.errors import SpecError, WeightsError

timm = pytest.importorskip("timm")

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)


def embed(name: str, image: np.ndarray = IMAGE, **options) -> np.ndarray:
    backbone = load_backbone(name, **{"weights": "random", **options})
    return open_engine(backbone)(backbone.preprocess(image)[None])


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_convnext"])
def test_embeddings_equal_a_plain_timm_loop(name, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = timm.create_model(name).eval()
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    with torch.no_grad():
        batch = transform(Image.fromarray(IMAGE))[None]
        expected = network.forward_head(network.forward_features(batch), pre_logits=True).numpy()
    ours = embed(f"timm:{name}", weights=str(tmp_path / "mine.pth"))
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_random_weights_depend_on_their_seed():
    first = embed("timm:resnet10t", resize="64")
    np.testing.assert_array_equal(first, embed("timm:resnet10t", resize="64"))
    assert not np.allclose(first, embed("timm:resnet10t", resize="64", weights="random:1"))
    assert load_backbone("timm:resnet10t", weights="random").weights == "random:0 (untrained)"


def test_poolings_and_layers_of_a_convolutional_network():
    mean, most, both = (
        embed("timm:resnet10t", resize="64", pool=pool) for pool in ("avg", "max", "catavgmax")
    )
    assert mean.shape == most.shape == (1, 512)
    np.testing.assert_allclose(np.sort(both), np.sort(np.hstack([mean, most])), rtol=1e-5)
    assert dict(list_layers("timm:resnet10t"))["layer2"] == (128, 22, 22)
    assert embed("timm:resnet10t", resize="64", layer="layer2").shape == (1, 128)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("timm:resnet10", {}, "resnet10t"),
        ("timm:resnet10t.nonsense", {}, "resnet10t.c3_in1k"),
        ("timm:test_vit", {"pool": "catavgmax"}, "does not support pooling catavgmax"),
        ("timm:test_vit", {"layer": "blocks.0"}, "cannot trace the layers"),
        (
            "timm:test_vit",
            {"resize": "64"},
            r"expects images of \(160, 160\) pixels, not \(64, 64\)",
        ),
        ("timm:resnet10t", {"layer": "layer9"}, "did you mean layer4"),
        ("timm:resnet10t", {"weights": "IMAGENET1K_V1"}, "known: imagenet, random"),
        ("timm:swin_tiny_patch4_window7_224", {"layer": "layers.0"}, "memory layout NHWC"),
    ],
)
def test_unsupported_options_are_rejected(name, options, reason):
    with pytest.raises(SpecError, match=reason):
        embed(name, **options)


def test_unsupported_preprocessing_is_rejected():
    bordered = next(
        name for name in timm.list_models() if timm.get_pretrained_cfg(name).crop_mode == "border"
    )
    with pytest.raises(SpecError, match="crop mode border, which featkit does not support"):
        load_backbone(f"timm:{bordered}", weights="random")


def test_pretrained_weights_of_timm_are_identified_by_their_digest(monkeypatch):
    create = timm.create_model

    def pretrained(name, pretrained=False, **options):
        network = create(name, **options)
        return network.requires_grad_(False).apply(fill) if pretrained else network

    def fill(module):
        for parameter in module.parameters(recurse=False):
            parameter.fill_(0.01)

    monkeypatch.setattr(timm, "create_model", pretrained)
    backbone = load_backbone("timm:resnet10t", weights="imagenet")
    assert backbone.weights == "timm's own c3_in1k"
    assert len(backbone.digest) == 64
    assert backbone.trained
    assert all((parameter == 0.01).all() for parameter in backbone.build().parameters())


def test_pretrained_weights_that_cannot_be_downloaded_are_reported(monkeypatch):
    def offline(*args, **options):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        WeightsError,
        match=r"no route to host\): .*give a file with --weights FILE.*--weights random",
    ):
        load_backbone("timm:resnet10t")


def test_weights_of_another_network_are_rejected(tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    with pytest.raises(
        WeightsError,
        match=r"vit.pth is not a state dict of timm:resnet10t \(conv1.0.weight is missing; it has cls_token",
    ):
        embed("timm:resnet10t", weights=str(tmp_path / "vit.pth"))
