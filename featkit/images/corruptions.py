"""Image corruptions: functions of uint8 ``(h, w, 3)``, a random generator and severity parameters.

Families of ImageNet-C (Hendrycks and Dietterich, ICLR 2019) follow its definitions. Lengths are in
pixels of an image whose shorter side is 224, as there, and scale with the shorter side. New borders
are black.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from featkit.images.base import Pixels

Random = np.random.Generator
Floats = NDArray[np.float32]

_SIDE = 224
_GRID = 8
_TINY = 1e-6


def gaussian_noise(pixels: Pixels, rng: Random, *, sd: float) -> Pixels:
    """Add Gaussian noise of standard deviation ``sd``; white is 1."""
    return _to_uint8(
        _to_unit(pixels) + np.float32(sd) * rng.standard_normal(pixels.shape, np.float32)
    )


def shot_noise(pixels: Pixels, rng: Random, *, photons: float) -> Pixels:
    """Apply Poisson noise with a mean of ``photons`` for white."""
    return _to_uint8(rng.poisson(_to_unit(pixels) * photons) / photons)


def impulse_noise(pixels: Pixels, rng: Random, *, share: float) -> Pixels:
    """Set a fraction ``share`` of all values to 0 or 255, independently in each channel."""
    chance = rng.random(pixels.shape, np.float32)
    return np.where(chance < share, np.where(chance < share / 2, 0, 255), pixels).astype(np.uint8)


def defocus_blur(pixels: Pixels, rng: Random, *, radius: float) -> Pixels:
    """Convolve with a disk of ``radius`` whose edge is smooth over one pixel."""
    radius *= _relative_size(pixels)
    axis = np.arange(-np.ceil(radius), np.ceil(radius) + 1)
    return _convolve(pixels, np.clip(radius + 0.5 - np.hypot(axis, axis[:, None]), 0, 1))


def motion_blur(pixels: Pixels, rng: Random, *, radius: float, sigma: float) -> Pixels:
    """Convolve with half a Gaussian, in a direction within 45 degrees of the horizontal.

    The kernel is cut at ``2 * radius``.
    """
    length, sigma = 2 * radius * _relative_size(pixels), sigma * _relative_size(pixels)
    angle, reach = rng.uniform(-np.pi / 4, np.pi / 4), int(np.ceil(length))
    along = np.linspace(0, length, 4 * reach + 1)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    down, across = (reach + np.rint(along * part(angle)).astype(int) for part in (np.sin, np.cos))
    np.add.at(kernel, (down, across), np.exp(-((along / sigma) ** 2) / 2))
    return _convolve(pixels, kernel)


def gaussian_blur(pixels: Pixels, rng: Random, *, sigma: float) -> Pixels:
    """Convolve with a Gaussian of standard deviation ``sigma``, cut at four standard deviations."""
    sigma *= _relative_size(pixels)
    axis = np.arange(-np.ceil(4 * sigma), np.ceil(4 * sigma) + 1)
    profile = np.exp(-((axis / sigma) ** 2) / 2)
    return _convolve(pixels, np.outer(profile, profile))


def brightness(pixels: Pixels, rng: Random, *, added: float) -> Pixels:
    """Add to the value channel of HSV; white is 1. Hue and saturation do not change."""
    unit = _to_unit(pixels)
    value = unit.max(2, keepdims=True)
    brighter = np.minimum(value + added, 1)
    return _to_uint8(np.where(value > 0, unit * brighter / np.maximum(value, _TINY), brighter))


def contrast(pixels: Pixels, rng: Random, *, factor: float) -> Pixels:
    """Multiply the distance of each channel from its mean over the image by ``factor``."""
    unit = _to_unit(pixels)
    mean = unit.mean((0, 1))
    return _to_uint8((unit - mean) * factor + mean)


def saturation(pixels: Pixels, rng: Random, *, factor: float, added: float) -> Pixels:
    """Multiply the saturation channel of HSV by ``factor`` and add ``added``.

    The hue of grey is red.
    """
    unit = _to_unit(pixels)
    value = unit.max(2, keepdims=True)
    chroma = value - unit.min(2, keepdims=True)
    red = np.array((0, 1, 1), np.float32)
    below = np.where(chroma > 0, (value - unit) / np.maximum(chroma, _TINY), red)
    new_saturation = np.clip(chroma / np.maximum(value, _TINY) * factor + added, 0, 1)
    return _to_uint8(value * (1 - new_saturation * below))


def hue(pixels: Pixels, rng: Random, *, turns: float) -> Pixels:
    """Rotate the hue circle in a random direction by a fraction of a turn."""
    return _rotate_hue(pixels, turns * _random_sign(rng))


def rotation(pixels: Pixels, rng: Random, *, degrees: float) -> Pixels:
    """Rotate about the centre in a random direction; the image size does not change."""
    angle = np.deg2rad(degrees) * _random_sign(rng)
    cos, sin = np.cos(angle), np.sin(angle)
    return _warp(pixels, np.array(((cos, -sin), (sin, cos))))


def translation(pixels: Pixels, rng: Random, *, share: float) -> Pixels:
    """Translate in random directions by a fraction ``share`` of the width and of the height."""
    height, width = pixels.shape[:2]
    return _warp(
        pixels, np.eye(2), (share * width * _random_sign(rng), share * height * _random_sign(rng))
    )


def scale(pixels: Pixels, rng: Random, *, factor: float) -> Pixels:
    """Enlarge or shrink about the centre by ``factor``; the image size does not change."""
    return _warp(pixels, np.eye(2) * factor ** _random_sign(rng))


def shear(pixels: Pixels, rng: Random, *, slope: float) -> Pixels:
    """Shear rows or columns in a random direction by ``slope`` pixels per pixel."""
    matrix = np.eye(2)
    matrix[(0, 1) if rng.random() < 0.5 else (1, 0)] = slope * _random_sign(rng)
    return _warp(pixels, matrix)


def flip(pixels: Pixels, rng: Random, *, sides: str) -> Pixels:
    """Flip along ``left-right``, ``top-bottom`` or ``both``."""
    axes: dict[str, tuple[int, ...]] = {"left-right": (1,), "top-bottom": (0,), "both": (0, 1)}
    return np.ascontiguousarray(np.flip(pixels, axes[sides]))


def jpeg(pixels: Pixels, rng: Random, *, quality: int) -> Pixels:
    """Compress as JPEG and decode again."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def pixelate(pixels: Pixels, rng: Random, *, share: float) -> Pixels:
    """Downscale both sides to ``share`` by averaging and upscale without interpolation."""
    image = Image.fromarray(pixels)
    small = (max(1, int(image.width * share)), max(1, int(image.height * share)))
    return np.asarray(
        image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)
    )


def posterise(pixels: Pixels, rng: Random, *, bits: int) -> Pixels:
    """Keep the ``bits`` most significant bits of every value."""
    return np.asarray(ImageOps.posterize(Image.fromarray(pixels), bits))


def fog(pixels: Pixels, rng: Random, *, density: float, decay: float) -> Pixels:
    """Add plasma fractal fog of up to ``density`` and rescale to the old maximum.

    A small ``decay`` makes the fog rougher.
    """
    unit, (height, width) = _to_unit(pixels), pixels.shape[:2]
    plasma = Image.fromarray(_plasma(decay, rng)).resize((width, height), Image.Resampling.BILINEAR)
    brightest = max(float(unit.max()), _TINY)
    return _to_uint8(
        (unit + density * np.asarray(plasma)[..., None]) * brightest / (brightest + density)
    )


def occlusion(pixels: Pixels, rng: Random, *, share: float) -> Pixels:
    """Cover a fraction ``share`` of the 64 cells of an 8 x 8 grid with black."""
    height, width = pixels.shape[:2]
    covered = np.arange(_GRID**2) < round(share * _GRID**2)
    board = rng.permutation(covered).reshape(_GRID, _GRID)
    mask = board[np.ix_(np.arange(height) * _GRID // height, np.arange(width) * _GRID // width)]
    return np.where(mask[..., None], 0, pixels).astype(np.uint8)


def mixed(
    pixels: Pixels,
    rng: Random,
    *,
    p: float,
    degrees: float,
    colour: float,
    hue: float,
    sd: float,
    jpeg75: bool = False,
) -> Pixels:
    """Apply a random subset of rotation, flips, colour jitter and noise.

    In this order: rotation, horizontal flip, vertical flip, colour jitter, Gaussian noise.

    Args:
        pixels: uint8 ``(h, w, 3)``. The result is larger if it was rotated.
        rng: source of the random choices.
        p: probability of each transformation.
        degrees: maximum rotation in either direction; the image is enlarged with black corners.
        colour: brightness, contrast and saturation are multiplied by factors in ``1 - colour .. 1 +
            colour``.
        hue: maximum rotation of the hue circle in turns, in either direction.
        sd: standard deviation of Gaussian noise; white is 255.
        jpeg75: whether the result is always compressed as JPEG of quality 75.
    """
    rotate, mirror, flip_vertically, jitter, add_noise = rng.random(5) < p
    image = Image.fromarray(pixels)
    if rotate:
        image = image.rotate(rng.uniform(-degrees, degrees), Image.Resampling.BILINEAR, expand=True)
    if mirror:
        image = ImageOps.mirror(image)
    if flip_vertically:
        image = ImageOps.flip(image)
    if jitter:
        image = _jitter_colours(image, rng, colour, hue)
    changed: Pixels = np.asarray(image)
    if add_noise:
        changed = gaussian_noise(changed, rng, sd=sd / 255)
    return jpeg(changed, rng, quality=75) if jpeg75 else changed


def _jitter_colours(image: Image.Image, rng: Random, colour: float, turns: float) -> Image.Image:
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(rng.uniform(1 - colour, 1 + colour))
    return Image.fromarray(_rotate_hue(np.asarray(image), rng.uniform(-turns, turns)))


def _rotate_hue(pixels: Pixels, turns: float) -> Pixels:
    circle, *others = Image.fromarray(pixels).convert("HSV").split()
    turned = circle.point([round(place + 256 * turns) % 256 for place in range(256)])
    return np.asarray(Image.merge("HSV", (turned, *others)).convert("RGB"))


def _warp(
    pixels: Pixels, matrix: NDArray[np.float64], move: tuple[float, float] = (0, 0)
) -> Pixels:
    """Return an affine transformation of the image.

    The output at a position shows the input at ``matrix @ (position - centre - move) + centre``.

    Args:
        pixels: uint8 ``(h, w, 3)``.
        matrix: ``(2, 2)``, from output to input coordinates (x, y).
        move: translation of the output (x, y), in pixels.
    """
    image = Image.fromarray(pixels)
    centre = np.array(image.size) / 2
    offset = centre - matrix @ (centre + move)
    rows = np.column_stack((matrix, offset))
    warped = image.transform(
        image.size, Image.Transform.AFFINE, rows.ravel().tolist(), Image.Resampling.BILINEAR
    )
    return np.asarray(warped)


def _convolve(pixels: Pixels, kernel: NDArray[np.float64]) -> Pixels:
    """Return the image convolved with a square kernel, scaled to sum 1; borders are mirrored."""
    from scipy import fft  # takes half a second, and most commands corrupt no images

    (height, width), reach = pixels.shape[:2], len(kernel) // 2
    padded = np.pad(_to_unit(pixels), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    shape = [fft.next_fast_len(side, real=True) for side in padded.shape[:2]]
    response = fft.rfft2((kernel / kernel.sum()).astype(np.float32), shape)[..., None]
    whole = fft.irfft2(fft.rfft2(padded, shape, axes=(0, 1)) * response, shape, axes=(0, 1))
    return _to_uint8(whole[2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width])


def _plasma(decay: float, rng: Random) -> Floats:
    """Return a periodic plasma fractal ``(256, 256)`` in 0..1 by the diamond-square algorithm.

    The random displacement of midpoints is divided by ``decay ** 2`` at each of 8 refinements.
    """
    field, most = np.zeros((1, 1)), 1.0
    for _ in range(8):
        side = len(field)
        centre, right, low = rng.uniform(-most, most, (3, side, side))
        beside, below = np.roll(field, -1, 1), np.roll(field, -1, 0)
        centre += (field + beside + below + np.roll(below, -1, 1)) / 4
        right += (field + beside + centre + np.roll(centre, 1, 0)) / 4
        low += (field + below + centre + np.roll(centre, 1, 1)) / 4
        rows = np.stack((np.stack((field, right), -1), np.stack((low, centre), -1)), 1)
        field, most = rows.reshape(2 * side, 2 * side), most / decay**2
    plasma: Floats = ((field - field.min()) / np.ptp(field)).astype(np.float32)
    return plasma


def _relative_size(pixels: Pixels) -> float:
    height, width, _ = pixels.shape
    return float(min(height, width) / _SIDE)


def _random_sign(rng: Random) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _to_unit(pixels: Pixels) -> Floats:
    return pixels.astype(np.float32) / np.float32(255)


def _to_uint8(unit: NDArray[np.floating]) -> Pixels:
    rounded: Pixels = np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)
    return rounded
