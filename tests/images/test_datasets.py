"""torchvision data sets, in small copies of their file formats; never from the network."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from scipy.io import savemat

from featkit.errors import DataError, SpecError
from featkit.images import load_images
from featkit.images.datasets import _SETS, NAMES
from featkit.images.decode import decode_file, file_key
from featkit.storage import data_folder

RNG = np.random.default_rng(0)


def write_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)).save(
        path
    )
    return path


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")


def sizes(images) -> list[int]:
    return [len(images.rows(split)) for split in ("train", "val", "test")]


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Write CIFAR-10 with 4 images in each of its six files; return the root and the pixels."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = RNG.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)

    def dump(name: str, value: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(value))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    files = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    sums = [
        [
            name,
            dump(
                name,
                {
                    "data": pixels[4 * n : 4 * n + 4].transpose(0, 3, 1, 2).reshape(4, -1),
                    "labels": [9, 0, 1, 2],
                },
            ),
        ]
        for n, name in enumerate(files)
    ]
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", sums[:5])
    monkeypatch.setattr(kind, "test_list", sums[5:])
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    monkeypatch.setattr(
        kind, "meta", {**kind.meta, "md5": dump("batches.meta", {"label_names": names})}
    )
    return tmp_path, pixels


def test_cifar10_is_read_from_its_files(cifar):
    root, pixels = cifar
    images = load_images(f"cifar10:root={root}")
    assert (images.name, images.split, sizes(images)) == ("cifar10", "own", [20, 0, 4])
    assert images.classes[:2] == ("airplane", "automobile")
    assert images.labels.tolist() == [9, 0, 1, 2] * 6
    assert images.ids[0] == "train/000000"
    assert images.ids[-1] == "test/000003"
    assert all(np.array_equal(images.load(row), pixels[row]) for row in range(24))
    assert len({images.key(row) for row in range(24)}) == 24


def test_data_sets_are_searched_in_featkit_data(cifar, monkeypatch):
    monkeypatch.setenv("FEATKIT_DATA", str(cifar[0]))
    assert len(load_images("cifar10", limit="train=5")) == 9


def test_data_folder_is_in_the_cache_folder(monkeypatch):
    assert data_folder() == Path.home() / ".cache" / "featkit" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert data_folder() == Path("/elsewhere/featkit/data")


def test_damaged_file_is_reported(cifar):
    (cifar[0] / "cifar-10-batches-py" / "test_batch").write_bytes(b"half")
    with pytest.raises(
        DataError,
        match=rf"cifar10 cannot be read from {cifar[0]} \(Dataset not found or corrupted.\)",
    ):
        load_images(f"cifar10:root={cifar[0]}")


def test_fashion_mnist_is_read_from_idx_files(tmp_path):
    """Grey becomes RGB; class names and counts equal those of the files."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = {
        "train": RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        "t10k": RNG.integers(0, 256, (4, 28, 28), dtype=np.uint8),
    }
    for part, values in pixels.items():
        labels = np.arange(len(values), dtype=np.uint8) % 3
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, *values.shape) + values.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 2049, len(labels)) + labels.tobytes()
        )
        for file in raw.glob(f"{part}*ubyte"):
            file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
    images = load_images(f"fashion-mnist:root={tmp_path}")
    assert (sizes(images), images.classes[0]) == ([6, 0, 4], "T-shirt/top")
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert np.array_equal(images.load(7), np.repeat(pixels["t10k"][1][..., None], 3, axis=2))


def test_svhn_is_read_from_mat_files(tmp_path, monkeypatch):
    """Channels are first in torchvision's array and last here; class "10" is the digit 0."""
    sums = dict(torchvision.datasets.SVHN.split_list)
    pixels = RNG.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    for split in ("train", "test"):
        file = tmp_path / f"{split}_32x32.mat"
        savemat(file, {"X": pixels, "y": np.array([[10], [1], [2], [1]], dtype=np.uint8)})
        sums[split] = [*sums[split][:2], hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", sums)
    images = load_images(f"svhn:root={tmp_path}")
    assert (sizes(images), images.classes, images.labels.tolist()) == (
        [4, 0, 4],
        ("0", "1", "2"),
        [0, 1, 2, 1] * 2,
    )
    assert np.array_equal(images.load(5), pixels[..., 1])


def test_oxford_pets_are_read_from_their_lists(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    for part, names in {
        "trainval": ["Abyssinian_2", "pug_1", "Abyssinian_1"],
        "test": ["pug_9", "Abyssinian_9"],
    }.items():
        lines = [f"{name} {1 + name.startswith('pug')} 1 1" for name in names]
        text(base / "annotations" / f"{part}.txt", *lines)
        for number, name in enumerate(names):
            write_image(base / "images" / f"{name}.jpg", number)
    images = load_images(f"oxford-iiit-pet:root={tmp_path}")
    assert images.classes == ("Abyssinian", "Pug")
    assert images.ids == tuple(
        f"oxford-iiit-pet/images/{name}.jpg"
        for name in ("Abyssinian_1", "Abyssinian_2", "Abyssinian_9", "pug_1", "pug_9")
    )
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    assert images.splits.tolist() == ["train", "train", "test", "train", "test"]
    assert images.key(3) == file_key(base / "images" / "pug_1.jpg")
    assert np.array_equal(images.load(3), decode_file(base / "images" / "pug_1.jpg"))


def test_caltech101_and_eurosat_are_split_by_seed(tmp_path):
    for kind in ("BACKGROUND_Google", "ant", "bass"):
        for number in range(1, 6):
            write_image(
                tmp_path / "caltech101" / "101_ObjectCategories" / kind / f"image_{number:04d}.jpg"
            )
            write_image(tmp_path / "eurosat" / "2750" / kind / f"{kind}_{number}.jpg")
    (tmp_path / "caltech101" / "Annotations").mkdir()
    caltech, eurosat = (
        load_images(f"{name}:root={tmp_path}") for name in ("caltech101", "eurosat")
    )
    assert (caltech.classes, caltech.split) == (("ant", "bass"), "70/15/15:seed=0")
    assert caltech.ids[0] == "caltech101/101_ObjectCategories/ant/image_0001.jpg"
    assert (len(caltech), len(eurosat), len(eurosat.classes)) == (10, 15, 3)
    assert caltech.load(0).shape == eurosat.load(14).shape == (5, 7, 3)


def test_dtd_has_three_splits(tmp_path):
    for part in ("train", "val", "test"):
        text(
            tmp_path / "dtd" / "dtd" / "labels" / f"{part}1.txt",
            f"banded/{part}.jpg",
            f"zigzag/{part}.jpg",
        )
        for kind in ("banded", "zigzag"):
            write_image(tmp_path / "dtd" / "dtd" / "images" / kind / f"{part}.jpg")
    images = load_images(f"dtd:root={tmp_path}")
    assert (sizes(images), images.classes) == ([2, 2, 2], ("banded", "zigzag"))


def test_gtsrb_is_read_without_class_names(tmp_path):
    base = tmp_path / "gtsrb"
    for label in range(2):
        write_image(base / "GTSRB" / "Training" / f"{label:05d}" / "0.ppm")
        write_image(base / "GTSRB" / "Final_Test" / "Images" / f"{label}.ppm")
    text(base / "GT-final_test.csv", "Filename;ClassId", "0.ppm;0", "1.ppm;1")
    images = load_images(f"gtsrb:root={tmp_path}")
    assert (images.classes, sizes(images), images.labels.tolist()) == (
        ("0", "1"),
        [2, 0, 2],
        [0, 1, 0, 1],
    )


def test_the_val_split_of_imagenette_is_the_test_split(tmp_path):
    for part in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            write_image(tmp_path / "imagenette2" / part / wnid / f"{part}.JPEG")
    images = load_images(f"imagenette:root={tmp_path}")
    assert (images.classes, sizes(images)) == (("tench", "English springer"), [2, 0, 2])


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_data_set_of_torchvision(name, tmp_path):
    assert hasattr(torchvision.datasets, _SETS[name][0])
    with pytest.raises(
        DataError,
        match=rf"^{name} cannot be read from {tmp_path} .*{name}:root=DIR.*{name}:download=true",
    ):
        load_images(f"{name}:root={tmp_path}")


def test_a_missing_root_is_not_created(tmp_path):
    with pytest.raises(DataError, match="folder not found"):
        load_images(f"caltech101:root={tmp_path / 'nowhere'}")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_the_name_of_a_set_is_hinted_at(tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"or write ./mnist for the local folder"):
        load_images("mnist:root=nowhere")


def test_nothing_is_downloaded_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATKIT_OFFLINE", "1")
    with pytest.raises(DataError, match="FEATKIT_OFFLINE forbids to download it: use cifar10:root"):
        load_images(f"cifar10:root={tmp_path},download=true")


def test_a_failed_download_is_an_error_of_one_line(tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise OSError("name resolution\nfailed")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(
        DataError,
        match=r"cifar10 cannot be downloaded to .* \(name resolution failed\): check the network",
    ):
        load_images(f"cifar10:root={tmp_path},download=true")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar10:download=yes", "write true or false"),
        ("cifar10:path=x", "unknown option .* 'path': known: root, download"),
    ],
)
def test_invalid_options_are_refused(spec, message):
    with pytest.raises(SpecError, match=message):
        load_images(spec)
