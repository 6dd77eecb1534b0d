"""JPEG files that are much larger than needed are decoded at a fraction of their size."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import featkit.images.decode as decode_module
from featkit.errors import DecodeError
from featkit.images.augment import add_augmented_views
from featkit.images.containers import jpeg_size
from featkit.images.decode import HEADROOM, decode, file_key, jpeg_edge, reduction
from featkit.images.files import images_from_files
from featkit.images.perturb import perturb_images

EDGE = 8


def scene(width, height, mode="RGB"):
    """Return a smooth image, of which a part can be recognised at any size."""
    down, across = np.mgrid[0:height, 0:width] / max(width, height)
    pixels = np.stack([across, down, (across + down) / 2], axis=2)
    return Image.fromarray((250 * pixels).astype(np.uint8)).convert(mode)


def jpeg(image, **options):
    stream = BytesIO()
    image.save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_thumbnail(image):
    """Return a JPEG file with a black thumbnail image in its metadata."""
    thumbnail = jpeg(Image.new("RGB", (160, 120)))
    exif = Image.Exif()
    exif[0x0132] = "2020:01:01 00:00:00"
    tiff = exif.tobytes()[6:] + thumbnail
    body = b"Exif\0\0" + tiff
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    data = jpeg(image)
    return data[:2] + segment + data[2:]


def several(image):
    """Return an MPO file, as phones write for portraits: a photo and a smaller image."""
    stream = BytesIO()
    image.save(stream, "MPO", quality=90, save_all=True, append_images=[Image.new("RGB", (40, 30))])
    return stream.getvalue()


KINDS = {
    "baseline": lambda size: jpeg(scene(*size)),
    "progressive": lambda size: jpeg(scene(*size), progressive=True),
    "grey": lambda size: jpeg(scene(*size, "L")),
    "cmyk": lambda size: jpeg(scene(*size, "CMYK")),
    "444": lambda size: jpeg(scene(*size), subsampling=0),
    "thumbnail": lambda size: with_thumbnail(scene(*size)),
    "mpo": lambda size: several(scene(*size)),
    "rotated": lambda size: jpeg(scene(*size), exif=rotated(6)),
    "mirrored": lambda size: jpeg(scene(*size), exif=rotated(4)),
}


@given(st.integers(1, 20_000), st.integers(1, 2_000))
def test_the_reduction_is_the_largest_that_leaves_twice_the_size_needed(short, edge):
    factor = reduction(short, edge)
    assert factor in (1, 2, 4, 8)
    if factor > 1:
        assert short / factor >= HEADROOM * edge
    if factor < 8:
        assert short / (2 * factor) < HEADROOM * edge
    assert (factor > 1) == (short >= 4 * edge)


def test_other_formats_and_full_decoding_have_no_reduction():
    assert reduction(0, 1) == 1
    assert reduction(10_000, None) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(31, 90), (33, 32), (65, 64), (150, 129), (131, 257), (144, 136)])
def test_every_kind_of_jpeg_is_reduced_alike(kind, size):
    data = KINDS[kind](size)
    assert jpeg_size(data) == size
    factor = reduction(min(size), EDGE)
    full, scaled = decode(data, kind), decode(data, kind, edge=EDGE)
    assert scaled.shape[:2] == tuple(-(-length // factor) for length in full.shape[:2])
    if factor == 1:
        np.testing.assert_array_equal(scaled, full)
    else:
        assert min(scaled.shape[:2]) >= HEADROOM * EDGE
    if size == (144, 136):  # of others, the last row and column stand for fewer pixels
        reduced = np.asarray(Image.fromarray(full).reduce(factor))
        assert np.abs(reduced.astype(int) - scaled).max() <= 3


@given(st.integers(1, 140), st.integers(1, 140), st.integers(1, 40))
def test_decoded_images_have_twice_the_size_needed_or_all_pixels(width, height, edge):
    data = jpeg(Image.new("RGB", (width, height), "red"))
    pixels = decode(data, "red", edge=edge)
    assert pixels.shape == (height, width, 3) or min(pixels.shape[:2]) >= HEADROOM * edge


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000"])
def test_other_formats_are_decoded_in_full(kind):
    stream = BytesIO()
    scene(90, 70).save(stream, kind)
    data = stream.getvalue()
    assert jpeg_edge(data) == 0
    np.testing.assert_array_equal(decode(data, kind, edge=EDGE), decode(data, kind))


def refuses(data, edge):
    try:
        decode(data, "cut", edge=edge)
    except DecodeError:
        return True
    return False


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.97])
def test_a_file_that_was_cut_off_is_refused_at_every_size(kind, kept):
    noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert("L" if kind == "grey" else "RGB")
    data = jpeg(image, progressive=kind == "progressive")
    cut = data[: int(kept * len(data))]
    for end in (b"", b"\xff\xd9", bytes(5000) + b"\xff\xd9"):
        assert refuses(cut + end, EDGE) == refuses(cut + end, None)
        # The end of the last scan of a progressive file is not missed by libjpeg either.
        assert refuses(cut + end, EDGE) or (kind, kept) == ("progressive", 0.97)


@pytest.mark.parametrize("edge", [EDGE, None])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_large_image_that_ends_grey_is_decoded_again_in_its_turn(monkeypatch, progressive, edge):
    """Only one large image is in memory at a time; the lock is not taken twice."""
    held = []
    check = decode_module._refuse_missing_pixels

    def noted(data, image, *, lacks_rows):
        held.append((image.size, decode_module._one_large_image.locked()))
        check(data, image, lacks_rows=lacks_rows)

    monkeypatch.setattr(decode_module, "_LARGE_PIXELS", 150 * 129 - 1)
    monkeypatch.setattr(decode_module, "_refuse_missing_pixels", noted)
    data = jpeg(Image.new("RGB", (150, 129), (128, 128, 128)), progressive=progressive)
    assert decode(data, "grey", edge=edge).shape == ((129, 150, 3) if edge is None else (17, 19, 3))
    assert held == [((150, 129), True)]
    assert not decode_module._one_large_image.locked()


def test_a_size_that_pillow_does_not_find_is_no_reason_to_reduce(monkeypatch):
    monkeypatch.setattr("featkit.images.decode.jpeg_edge", lambda data: 900)
    assert decode(jpeg(scene(40, 30)), "small", edge=EDGE).shape == (30, 40, 3)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xc0\0", b"\xff\xd8\xff\xd9"])
def test_a_file_without_a_frame_has_no_size(data):
    assert jpeg_size(data) is None or jpeg_edge(data) == 0


@pytest.fixture
def files(tmp_path):
    """A large and a small photo, and a large image of another format."""
    (tmp_path / "large.jpg").write_bytes(jpeg(scene(150, 129)))
    (tmp_path / "small.jpg").write_bytes(jpeg(scene(30, 25)))
    scene(150, 129).save(tmp_path / "large.png")
    return [str(tmp_path / name) for name in ("large.jpg", "small.jpg", "large.png")]


def test_only_large_jpeg_files_of_a_set_change_and_keys_never(files):
    images = images_from_files(files)
    scaled = images.decoded_for(EDGE)
    assert [images.jpeg_edge(row) for row in range(3)] == [129, 25, 0]
    assert [scaled.load(row).shape for row in range(3)] == [(17, 19, 3), (25, 30, 3), (129, 150, 3)]
    for row, path in enumerate(files):
        pixels, key = scaled.load_with_key(row)
        assert key == images.key(row) == file_key(path)
        np.testing.assert_array_equal(pixels, scaled.load(row))


def test_the_size_is_kept_from_the_reading_of_the_key(files, monkeypatch):
    images = images_from_files(files)
    assert images.key(0)
    monkeypatch.setattr("featkit.images.files.read_bytes", None)
    assert images.jpeg_edge(0) == 129


def test_a_part_of_a_set_is_scaled_like_the_set(files):
    part = images_from_files(files).take(np.array([2, 0]))
    assert [part.jpeg_edge(row) for row in range(2)] == [0, 129]
    assert [part.decoded_for(EDGE).load(row).shape[0] for row in range(2)] == [129, 17]
    again = part.decoded_for(EDGE).take(np.array([1])).decoded_for(4 * EDGE)
    assert again.load(0).shape == (65, 75, 3)


def test_augmented_views_are_made_from_all_pixels(files):
    views = add_augmented_views(images_from_files(files), "basic", 2)
    scaled = views.decoded_for(EDGE)
    assert [views.jpeg_edge(row) for row in range(6)] == [129, 0, 0, 25, 0, 0]
    assert scaled.load(0).shape == (17, 19, 3)
    for row in (1, 2, 3, 4):
        np.testing.assert_array_equal(scaled.load(row), views.load(row))
        assert scaled.load_with_key(row)[1] == views.key(row)


def test_corrupted_images_are_made_from_all_pixels(files):
    images = images_from_files(files)  # train images
    for split, shape in (("train", (129, 150, 3)), ("test", (17, 19, 3))):
        noisy = perturb_images(images, "gaussian_noise:level=strong", splits=(split,))
        scaled = noisy.decoded_for(EDGE)
        assert scaled.load(0).shape == shape
        assert noisy.jpeg_edge(0) == (0 if split == "train" else 129)
        assert scaled.load_with_key(0)[1] == noisy.key(0)


def test_images_in_memory_stay_as_they_are(colours):
    images = colours()
    assert images.decoded_for(1) is images
    assert images.jpeg_edge(0) == 0


@pytest.mark.realdata
def test_features_of_upscaled_photos_are_those_of_full_decoding(real_data, real_weights):
    """Pets at 12 megapixels through ResNet-18: cosine similarity at least .9995."""
    from featkit.backbones import load_backbone
    from featkit.backbones.engines import open_engine

    backbone = load_backbone("resnet18")
    engine = open_engine(backbone, precision="fp32", device="cpu")
    for path in sorted((real_data / "pets" / "images").glob("*.jpg"))[::120][:2]:
        with Image.open(path) as small:
            photo = small.convert("RGB").resize((4032, 3024), Image.Resampling.BICUBIC)
        data = jpeg(photo)
        full = backbone.preprocess(decode(data, path.name))
        pixels = decode(data, path.name, edge=backbone.preprocess.edge)
        assert pixels.shape == (756, 1008, 3)
        a, b = engine(np.stack([full, backbone.preprocess(pixels)]))
        assert a @ b / np.sqrt((a @ a) * (b @ b)) >= 0.9995
