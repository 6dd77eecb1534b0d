"""torchvision's ResNets in Keras give the features of torch; run in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from featkit.backbones import load_backbone
from featkit.backbones.engines import open_engine
from featkit.backbones.engines.noise import smooth_noise
from featkit.backbones.resnet_modules import make_resnet, narrow
from featkit.backbones.saved import NetworkDescription, save_network
from featkit.backbones.state_dict import seeded
from featkit.errors import SpecError, WeightsError

pytestmark = pytest.mark.keras


def difference(one, other):
    """Return the largest difference relative to the largest value, and the smallest cosine."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.abs(one - other).max() / np.abs(one).max(), ((one * other).sum(1) / norms).min()


def write_random(path: Path, network: str, *, seed: int = 0, **options: bool) -> Path:
    """Write a torchvision ResNet with random weights and random BatchNorm statistics."""
    settings = {"residual": True, "norm": True, "small": False, **options}
    with seeded(seed):
        module = make_resnet(network, classes=7, **settings)
        for name, value in module.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_(0, 0.2)
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            if name.endswith("num_batches_tracked"):
                value.fill_(123)
            if name.endswith(("bn1.weight", "bn2.weight", "bn3.weight")):
                value.uniform_(0.2, 1)
    torch.save(module.state_dict(), path)
    return path


def features(spec: str, pixels: np.ndarray, **options: object) -> np.ndarray:
    backbone = load_backbone(spec, **options)
    backbone = replace(
        backbone, preprocess=replace(backbone.preprocess, crop=tuple(pixels.shape[1:3]))
    )
    return open_engine(backbone, device="cpu")(pixels)


@pytest.mark.realdata
@pytest.mark.parametrize("network", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_real_weights_give_the_features_of_torch(network, real_data, real_weights):
    files = sorted((real_data / "caltech101" / "test").glob("*/*.jpg"))[::45][:64]
    preprocess = load_backbone(network).preprocess
    images = [preprocess(np.asarray(Image.open(file).convert("RGB"))) for file in files]
    pixels = np.stack(images)
    assert len(pixels) == 64
    relative, cosine = difference(features(network, pixels), features(f"keras:{network}", pixels))
    assert relative <= 1e-4
    assert cosine >= 0.999999


@pytest.mark.parametrize(
    "network",
    [
        "resnet34",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet101", "resnet152")),
    ],
)
def test_random_weights_and_statistics_give_the_features_of_torch(network, tmp_path):
    weights = str(write_random(tmp_path / "weights.pth", network))
    # Odd sizes: torch and Keras pad differently where the stride does not divide the image.
    pixels = smooth_noise(2, (65, 50))
    relative, cosine = difference(
        features(network, pixels, weights=weights),
        features(f"keras:{network}", pixels, weights=weights),
    )
    assert relative <= 1e-4
    assert cosine >= 0.999999


@pytest.mark.parametrize(
    "options", [{"residual": False}, {"norm": False}, {"small": True}], ids=str
)
def test_variants_give_the_features_of_torch(options, tmp_path):
    weights = str(write_random(tmp_path / "weights.pth", "resnet18", **options))
    text = {"residual": "residual=false", "norm": "norm=none", "small": "stem=small"}
    option = text[next(iter(options))]
    pixels = smooth_noise(2, (32, 32))
    relative, _ = difference(
        features(f"resnet18:{option}", pixels, weights=weights),
        features(f"keras:resnet18,{option}", pixels, weights=weights),
    )
    assert relative <= 1e-4


@pytest.mark.parametrize(
    ("layer", "pool"),
    [
        ("layer2", "avg"),
        ("layer3.0", "none"),
        ("layer1.0.relu", "max"),
        ("layer4.1.bn1", "catavgmax"),
        ("maxpool", "none"),
        ("layer2.0.downsample", "avg"),
        ("avgpool", "max"),
        ("fc", "avg"),
    ],
)
def test_layers_and_pools_have_torchvisions_names_and_order(layer, pool, tmp_path):
    weights = str(write_random(tmp_path / "weights.pth", "resnet18"))
    pixels = smooth_noise(2, (40, 48))
    options = {"weights": weights, "layer": layer, "pool": pool}
    expected = features("resnet18", pixels, **options)
    found = features("keras:resnet18", pixels, **options)
    assert found.shape == expected.shape
    assert difference(expected, found)[0] <= 1e-4


def test_a_bottleneck_has_torchvisions_layer_names(tmp_path):
    weights = str(write_random(tmp_path / "weights.pth", "resnet50"))
    pixels = smooth_noise(2, (40, 48))
    for layer in ("layer1.0.relu_1", "layer1.0.conv3", "layer2.1.relu_2", "layer3.5"):
        options = {"weights": weights, "layer": layer}
        relative, _ = difference(
            features("resnet50", pixels, **options), features("keras:resnet50", pixels, **options)
        )
        assert relative <= 1e-4, layer


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_weights_that_return_from_keras_are_equal_bit_for_bit(network, tmp_path):
    from featkit.backbones.keras_modules import to_state

    path = write_random(tmp_path / "weights.pth", network)
    before = torch.load(path, weights_only=True)
    backbone = load_backbone(f"keras:{network}", weights=str(path), layer="fc")
    after = to_state(backbone.build_keras())
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert torch.equal(value, after[name]), name


def test_a_pruned_network_runs_in_keras(tmp_path):
    base = load_backbone("resnet18", weights="random")
    module = base.build()
    widths = {"layer1.0.conv1": 40, "layer4.1.conv1": 100}
    narrow(module, widths)
    description = NetworkDescription("resnet18", "pruned", "pruned", base.preprocess, widths)
    save_network(module, description, tmp_path / "network.safetensors")
    pixels = smooth_noise(2, (64, 64))
    spec = str(tmp_path / "network.safetensors")
    assert difference(features(spec, pixels), features(f"keras:{spec}", pixels))[0] <= 1e-4


def test_running_statistics_are_those_of_torch(tmp_path):
    from featkit.backbones.keras_modules import to_state

    weights = str(write_random(tmp_path / "weights.pth", "resnet18"))
    module = load_backbone("resnet18", weights=weights).build().train()
    model = load_backbone("keras:resnet18", weights=weights).build_keras()
    images = np.random.default_rng(0).normal(size=(3, 3, 40, 40)).astype(np.float32)
    module(torch.from_numpy(images))
    model(images.transpose(0, 2, 3, 1), training=True)
    expected, found = module.state_dict(), to_state(model)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    assert int(found["bn1.num_batches_tracked"]) == 124


# Keras saves its variables through an interface that NumPy 2 warns about.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["resnet50", "resnet50v2"])
def test_kerass_own_networks_use_kerass_weights_and_preprocessing(name, tmp_path):
    import keras

    module, builder = {
        "resnet50": ("resnet", "ResNet50"),
        "resnet50v2": ("resnet_v2", "ResNet50V2"),
    }[name]
    keras.utils.set_random_seed(0)
    network = getattr(keras.applications, builder)(weights=None, include_top=False)
    file = tmp_path / "weights.weights.h5"
    network.save_weights(str(file))
    pixels = smooth_noise(2, (64, 64))
    prepared = getattr(keras.applications, module).preprocess_input(pixels.astype(np.float32))
    expected = network(prepared, training=False).numpy().mean((1, 2))
    found = features(f"keras:applications/{name}", pixels, weights=str(file))
    assert difference(expected, found)[0] <= 1e-4


def test_kerass_own_networks_refuse_other_files_and_precisions(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "other.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    backbone = load_backbone("keras:applications/resnet50", weights=str(tmp_path / "other.h5"))
    with pytest.raises(WeightsError, match="contains no weights of keras:applications/resnet50"):
        open_engine(backbone, device="cpu")
    with pytest.raises(SpecError, match="float32 only"):
        open_engine(backbone, precision="bf16", device="cpu")
    with pytest.raises(SpecError, match="runs in Keras only"):
        backbone.build()


def test_weights_with_unknown_or_missing_keys_are_refused(tmp_path):
    state = torch.load(write_random(tmp_path / "weights.pth", "resnet18"), weights_only=True)
    state["layer1.9.conv1.weight"] = state.pop("layer1.0.conv1.weight")
    torch.save(state, tmp_path / "wrong.pth")
    backbone = load_backbone("keras:resnet18", weights=str(tmp_path / "wrong.pth"))
    with pytest.raises(WeightsError, match=r"wrong.pth.*resnet18"):
        open_engine(backbone, device="cpu")


def test_a_missing_gpu_is_one_error():
    backbone = load_backbone("keras:resnet18", weights="random")
    with pytest.raises(SpecError, match="TensorFlow finds no device cuda"):
        open_engine(backbone, device="cuda")


def test_the_torch_back_end_gives_the_same_features_and_nothing_is_logged(tmp_path):
    weights = str(write_random(tmp_path / "weights.pth", "resnet18"))
    code = (
        "import sys, numpy as np\n"
        "from featkit.backbones import load_backbone\n"
        "from featkit.backbones.engines import open_engine\n"
        "from featkit.backbones.engines.noise import smooth_noise\n"
        f"backbone = load_backbone('keras:resnet18', weights={weights!r}, resize='64x64')\n"
        "features = open_engine(backbone, device='cpu')(smooth_noise(2, (64, 64)))\n"
        "np.save(sys.argv[1], features)\n"
        "print('tensorflow' in sys.modules)\n"
    )
    found = {}
    for backend in ("torch", "tensorflow"):
        file = tmp_path / f"{backend}.npy"
        environment = {**os.environ, "KERAS_BACKEND": backend}
        environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
        done = subprocess.run(
            [sys.executable, "-c", code, str(file)], env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{backend == 'tensorflow'}\n"
        found[backend] = np.load(file)
    assert difference(found["torch"], found["tensorflow"])[0] <= 1e-4


KERAS_HUB = """
import sys
import numpy as np
import keras_hub
images, preset, out = sys.argv[1:]
oracle = keras_hub.models.Backbone.from_preset(preset)
np.save(out, oracle.predict(np.load(images), verbose=0))
"""


@pytest.mark.skipif(find_spec("keras_hub") is None, reason="keras-hub is not installed")
def test_keras_hubs_own_conversion_gives_the_same_features(tmp_path):
    """An independent oracle; it reads a folder with the name of an architecture of timm.

    In a process of its own: keras-hub aborts where torch was imported before it.
    """
    weights = write_random(tmp_path / "weights.pth", "resnet18")
    folder = tmp_path / "preset"
    folder.mkdir()
    state = torch.load(weights, weights_only=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"architecture": "resnet18", "pretrained_cfg": {}})
    )
    images = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    files = [str(tmp_path / "images.npy"), str(folder), str(tmp_path / "maps.npy")]
    done = subprocess.run([sys.executable, "-c", KERAS_HUB, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    maps = np.load(tmp_path / "maps.npy")
    backbone = load_backbone("keras:resnet18", weights=str(weights))
    found = np.asarray(backbone.build_keras()(images, training=False))
    assert difference(maps.mean((1, 2)), found)[0] <= 1e-5
