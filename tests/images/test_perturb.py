"""Corruptions: validity, reproducibility, definitions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image, ImageEnhance
from scipy import ndimage

from featkit.errors import SpecError
from featkit.images import corruptions
from featkit.images.perturb import (
    LEVELS,
    PERTURBATIONS,
    Perturbation,
    image_rng,
    parse_perturbation,
    perturb,
    perturb_images,
)

SIDES = st.integers(8, 64)
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
SMOOTH = ndimage.gaussian_filter(PIXELS, (3, 3, 0))
EVERY = [Perturbation(family, level) for family in PERTURBATIONS for level in LEVELS]


def changed(family, level="strong", pixels=PIXELS, name="a.png"):
    return perturb(pixels, Perturbation(family, level), image_rng(0, name))


@given(SIDES, SIDES, st.sampled_from(EVERY), st.integers())
def test_images_of_any_size_stay_uint8_images(height, width, perturbation, seed):
    """Output is uint8 of the same shape (except after rotation by ``mixed``); the input is not changed."""
    pixels = np.random.default_rng(height * width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    before = pixels.copy()
    out = perturb(pixels, perturbation, image_rng(seed, "a.png"))
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    assert (out.shape == pixels.shape) or (
        perturbation.family == "mixed" and min(out.shape[:2]) >= min(height, width)
    )
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(out, perturb(pixels, perturbation, image_rng(seed, "a.png")))


@pytest.mark.parametrize("perturbation", EVERY, ids=str)
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_constant_images_are_accepted(perturbation, grey):
    """Black, grey and white images cause no division by zero."""
    out = perturb(np.full((9, 12, 3), grey, np.uint8), perturbation, image_rng(0, "a.png"))
    assert out.dtype == np.uint8


@pytest.mark.parametrize("family", PERTURBATIONS)
def test_every_level_changes_the_image_except_none(family):
    """The three levels differ from the image and from each other; level none does not."""
    pixels = np.tile(PIXELS, (3, 2, 1))
    versions = [changed(family, level, pixels, "b.png") for level in LEVELS]
    assert len({pixels.tobytes(), *(version.tobytes() for version in versions)}) == 4
    for level in ("none", "0"):
        assert (
            perturb(pixels, parse_perturbation(f"{family}:level={level}"), image_rng(0, "b.png"))
            is pixels
        )


def test_noise_has_the_specified_moments():
    """Gaussian noise has its standard deviation, shot noise that of Poisson counts; impulses are half black, half white."""
    grey = np.full((200, 200, 3), 102, np.uint8)
    assert np.std(changed("gaussian_noise", "mild", grey) / 255) == pytest.approx(0.08, rel=0.02)
    assert np.std(changed("shot_noise", "mild", grey) / 255) == pytest.approx(
        np.sqrt(0.4 / 60), rel=0.02
    )
    impulses = changed("impulse_noise", "strong", grey)
    for extreme in (0, 255):
        assert np.mean(impulses == extreme) == pytest.approx(0.27 / 2, rel=0.05)


def test_gaussian_blur_equals_that_of_scipy_and_scales_with_the_image():
    """Sigma is in pixels of an image with a shorter side of 224."""
    pixels = np.tile(SMOOTH, (3, 3, 1))[:112, :130]
    expected = ndimage.gaussian_filter(pixels.astype(float), (3, 3, 0), mode="mirror")
    np.testing.assert_allclose(changed("gaussian_blur", "strong", pixels), expected, atol=0.51)


def test_defocus_turns_a_point_into_a_disk_and_motion_into_a_line():
    """The point spread function is a disk of the given radius, or a horizontal line of the given length."""
    point = np.zeros((224, 224, 3), np.uint8)
    point[112, 112] = 255
    spread = np.argwhere(changed("defocus_blur", "mild", point)[..., 0])
    np.testing.assert_array_equal((spread.min(0), spread.max(0)), ((109, 109), (115, 115)))
    smear = np.argwhere(changed("motion_blur", "mild", point)[..., 0]) - 112
    length, across = np.hypot(*smear.T).max(), smear[:, 1]
    assert 6 < length <= 20
    assert across.min() >= 0
    assert (np.abs(smear[:, 0]) <= across).all()


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("brightness", lambda hsv: hsv + (0, 0, 0.5)),
        ("saturation", lambda hsv: hsv * (1, 20, 1) + (0, 0.2, 0)),
    ],
)
def test_colour_changes_equal_those_in_hsv(family, change):
    """The formulas without conversion equal those in HSV, also for grey and black."""
    pixels = PIXELS.copy()
    pixels[:4] = pixels[:4, :, :1]
    pixels[0] = 0
    expected = 255 * hsv_to_rgb(np.clip(change(rgb_to_hsv(pixels / 255)), 0, 1))
    np.testing.assert_allclose(changed(family, "strong", pixels), expected, atol=0.51)


def test_geometric_transforms_keep_the_centre():
    """The centre is fixed; another point moves by the angle, slope or factor."""
    pixels = np.zeros((101, 101, 3), np.uint8)
    pixels[50, 50] = 255
    for family in ("rotation", "scale", "shear"):
        assert changed(family, "mild", pixels)[50, 50, 0] > 100
    moved = np.argwhere(changed("translation", "medium", pixels)[..., 0] > 40) - 50
    np.testing.assert_allclose(np.abs(moved.mean(0)), 15, atol=0.6)
    beside = np.zeros((101, 101, 3), np.uint8)
    beside[50, 80:83] = beside[49, 80:83] = beside[51, 80:83] = 255
    row, column, _ = np.argwhere(changed("rotation", "medium", beside) > 200).mean(0) - 50
    assert abs(np.degrees(np.arctan2(row, column))) == pytest.approx(30, abs=1)
    assert np.hypot(row, column) == pytest.approx(31, abs=0.7)


@pytest.mark.parametrize(
    "family", ["hue", "rotation", "translation", "scale", "shear", "motion_blur"]
)
def test_directions_differ_between_images_but_not_between_levels(family):
    """The direction depends on the image's random generator and not on the level."""
    versions = {
        changed(family, "medium", SMOOTH, f"{number}.png").tobytes() for number in range(12)
    }
    assert len(versions) > 1
    states = set()
    for level in LEVELS:
        rng = image_rng(0, "a.png")
        perturb(SMOOTH, Perturbation(family, level), rng)
        states.add(str(rng.bit_generator.state))
    assert len(states) == 1


def test_occlusion_covers_its_fraction_and_stronger_levels_cover_more():
    """6, 19 and 32 of 64 fields are black; each level covers those of the level below."""
    white = np.full((64, 64, 3), 255, np.uint8)
    covered = [changed("occlusion", level, white)[..., 0] == 0 for level in LEVELS]
    assert [int(mask.sum()) for mask in covered] == [6 * 64, 19 * 64, 32 * 64]
    assert (covered[0] <= covered[1]).all()
    assert (covered[1] <= covered[2]).all()


def test_a_mixture_applies_its_changes_in_order():
    """Compared with a sequence of Pillow calls: rotation on a larger canvas, flips, colours, noise."""
    rng = np.random.default_rng(5)
    rng.random(5)
    image = Image.fromarray(SMOOTH).rotate(
        rng.uniform(-45, 45), Image.Resampling.BILINEAR, expand=True
    )
    image = image.transpose(Image.Transpose.ROTATE_180)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(rng.uniform(0.7, 1.3))
    hsv = np.array(image.convert("HSV"), int)
    hsv[..., 0] += round(256 * rng.uniform(-0.2, 0.2))
    planes = (Image.fromarray((plane % 256).astype(np.uint8)) for plane in hsv.transpose(2, 0, 1))
    coloured = np.asarray(Image.merge("HSV", tuple(planes)).convert("RGB"))
    expected = np.clip(coloured + 25 * rng.standard_normal(coloured.shape, np.float32), 0, 255)
    certain = PERTURBATIONS["mixed"].parameters("strong") | {"p": 1.0}
    out = corruptions.mixed(SMOOTH, np.random.default_rng(5), **certain)
    np.testing.assert_allclose(out, expected, atol=0.51)
    assert min(out.shape[:2]) > 48


def test_a_mixture_leaves_some_images_unchanged_unless_jpeg75_is_set():
    """At level mild, (1 - 0.3)^5 = 17 % of images are unchanged; with jpeg75, none."""
    names = [f"{number}.png" for number in range(300)]

    def alone(spec):
        mixture = parse_perturbation(spec)
        return sum(
            np.array_equal(perturb(SMOOTH, mixture, image_rng(0, name)), SMOOTH) for name in names
        )

    assert 30 < alone("mixed:level=mild") < 75
    assert alone("mixed:level=mild,jpeg75=true") == 0


def test_a_perturbed_set_changes_the_named_splits_only(colours):
    """Ids, labels and train images are unchanged; test images and their keys change."""
    images = colours(12)
    noisy = perturb_images(images, "gaussian_noise:level=strong")
    assert (noisy.ids, noisy.classes, len(noisy)) == (images.ids, images.classes, 12)
    for place, split in enumerate(images.splits):
        same = split == "train"
        assert np.array_equal(noisy.load(place), images.load(place)) == same
        assert (noisy.key(place) == images.key(place)) == same
    other = perturb_images(images, "gaussian_noise:level=strong", splits=("train",))
    assert not np.array_equal(other.load(0), images.load(0))


def test_a_perturbation_depends_on_seed_and_id_only(colours):
    """The order, the worker and the other images do not matter."""
    images = colours(12)
    noisy = perturb_images(images, "mixed:level=strong", 3)
    expected = [noisy.load(row) for row in range(12)]
    back = noisy.take(np.arange(12)[::-1])
    alone = perturb_images(images.take(np.array([9])), "mixed:level=strong", 3)
    np.testing.assert_array_equal(alone.load(0), expected[9])
    assert alone.key(0) == noisy.key(9)
    with ThreadPoolExecutor(4) as pool:
        for row, pixels in enumerate(pool.map(back.load, range(12))):
            np.testing.assert_array_equal(pixels, expected[11 - row])


def test_keys_differ_between_specs_seeds_and_ids(colours):
    """Equal keys mean equal pixels; one image under two ids is perturbed differently."""
    images = colours(12)
    twice = replace(images, key=lambda place: "same")
    sets = [
        perturb_images(twice, "fog:level=mild"),
        perturb_images(twice, "fog:level=mild", 1),
        perturb_images(twice, "fog:level=strong"),
        perturb_images(twice, "mixed:level=mild"),
        perturb_images(twice, "mixed:level=mild,jpeg75=true"),
    ]
    assert len({each.key(place) for each in sets for place in (10, 11)}) == 2 * len(sets)
    assert perturb_images(images, "fog:level=none") is images


@pytest.mark.parametrize(
    "text", ["none", "fog:level=none", "fog:level=0", "mixed:level=none,jpeg75=true"]
)
def test_all_spellings_of_no_perturbation_are_equal(text):
    """All spellings of no perturbation are equal."""
    assert parse_perturbation(text) == Perturbation()
    assert str(parse_perturbation(text)) == "none"
    assert not parse_perturbation(text)


@pytest.mark.parametrize(
    "perturbation", [*EVERY, Perturbation("mixed", "mild", ("jpeg75",))], ids=str
)
def test_a_perturbation_is_parsed_from_its_canonical_text(perturbation):
    """The canonical text of a perturbation, stored in recipes, is a valid spec."""
    assert parse_perturbation(str(perturbation)) == perturbation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "gausian_noise:level=mild",
            "unknown perturbation 'gausian_noise': did you mean gaussian_noise?",
        ),
        ("fog", "'fog' has no level: write fog:level=mild|medium|strong"),
        ("fog:strong", "'fog:strong' has no level: write fog:level=mild|medium|strong"),
        ("fog:level=heavy", "unknown level of fog 'heavy': known: none, mild, medium, strong"),
        ("fog:severity=3", "unknown option of perturbation fog 'severity': known: level"),
        ("fog:level=mild,jpeg75=true", "unknown option of perturbation fog 'jpeg75'"),
        ("mixed:level=mild,jpeg75=80", "jpeg75=80 of perturbation mixed: write true or false"),
        ("none:level=mild", "none takes no options"),
    ],
)
def test_an_invalid_spec_raises_with_a_valid_example(text, message):
    """The error names the invalid and the valid values."""
    with pytest.raises(SpecError) as caught:
        parse_perturbation(text)
    assert message in str(caught.value)


def test_an_unknown_split_is_refused(colours):
    """Otherwise nothing would be perturbed, without an error."""
    with pytest.raises(SpecError, match="unknown split 'tset': did you mean test"):
        perturb_images(colours(), "fog:level=mild", splits=("tset",))


def test_every_family_has_three_different_levels():
    for family in PERTURBATIONS.values():
        assert len({str(family.parameters(level)) for level in LEVELS}) == 3
    motion = PERTURBATIONS["motion_blur"]
    assert motion.parameters("mild") == {"radius": 10, "sigma": 3}
    assert motion.parameters("strong") == {"radius": 20, "sigma": 15}
    assert motion.source == "ImageNet-C, severities 1, 3, 5"
