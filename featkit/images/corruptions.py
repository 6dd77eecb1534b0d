"""Ways in which a photograph goes wrong: each takes uint8 ``(h, w, 3)``, a generator and its strength.

Where ImageNet-C (Hendrycks and Dietterich, ICLR 2019) has a family, its definition is followed. Its lengths were
chosen for 224 pixels: here a length is one of an image whose shorter side is 224, and scales with that side. Borders
that come into view are black.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from scipy import fft

from featkit.images.base import Pixels

Random = np.random.Generator
Floats = NDArray[np.float32]

_SIDE = 224
_GRID = 8
_TINY = 1e-6


def gaussian_noise(pixels: Pixels, rng: Random, *, sd: float) -> Pixels:
    """Add normal noise of standard deviation ``sd``, where white is 1."""
    return _rounded(_unit(pixels) + np.float32(sd) * rng.standard_normal(pixels.shape, np.float32))


def shot_noise(pixels: Pixels, rng: Random, *, photons: float) -> Pixels:
    """Count photons (Poisson), of which white gives ``photons`` on average."""
    return _rounded(rng.poisson(_unit(pixels) * photons) / photons)


def impulse_noise(pixels: Pixels, rng: Random, *, share: float) -> Pixels:
    """Make a share of all values, each channel for itself, black or white."""
    chance = rng.random(pixels.shape, np.float32)
    return np.where(chance < share, np.where(chance < share / 2, 0, 255), pixels).astype(np.uint8)


def defocus_blur(pixels: Pixels, rng: Random, *, radius: float) -> Pixels:
    """Spread every point over a disk of ``radius``; its edge is smooth over one pixel."""
    radius *= _scale(pixels)
    axis = np.arange(-np.ceil(radius), np.ceil(radius) + 1)
    return _convolved(pixels, np.clip(radius + 0.5 - np.hypot(axis, axis[:, None]), 0, 1))


def motion_blur(pixels: Pixels, rng: Random, *, radius: float, sigma: float) -> Pixels:
    """Smear along one direction within 45 degrees of the horizontal: half a Gaussian, cut after twice ``radius``."""
    length, sigma = 2 * radius * _scale(pixels), sigma * _scale(pixels)
    angle, reach = rng.uniform(-np.pi / 4, np.pi / 4), int(np.ceil(length))
    along = np.linspace(0, length, 4 * reach + 1)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    down, across = (reach + np.rint(along * part(angle)).astype(int) for part in (np.sin, np.cos))
    np.add.at(kernel, (down, across), np.exp(-((along / sigma) ** 2) / 2))
    return _convolved(pixels, kernel)


def gaussian_blur(pixels: Pixels, rng: Random, *, sigma: float) -> Pixels:
    """Convolve with a Gaussian of standard deviation ``sigma``, cut after four of them."""
    sigma *= _scale(pixels)
    axis = np.arange(-np.ceil(4 * sigma), np.ceil(4 * sigma) + 1)
    profile = np.exp(-((axis / sigma) ** 2) / 2)
    return _convolved(pixels, np.outer(profile, profile))


def brightness(pixels: Pixels, rng: Random, *, added: float) -> Pixels:
    """Add to the value (of hue, saturation, value); white is 1. Hue and saturation stay."""
    unit = _unit(pixels)
    value = unit.max(2, keepdims=True)
    brighter = np.minimum(value + added, 1)
    return _rounded(np.where(value > 0, unit * brighter / np.maximum(value, _TINY), brighter))


def contrast(pixels: Pixels, rng: Random, *, factor: float) -> Pixels:
    """Pull every channel towards its mean over the image, to ``factor`` of the distance."""
    unit = _unit(pixels)
    mean = unit.mean((0, 1))
    return _rounded((unit - mean) * factor + mean)


def saturation(pixels: Pixels, rng: Random, *, factor: float, added: float) -> Pixels:
    """Multiply the saturation (of hue, saturation, value), then add; grey counts as red without saturation."""
    unit = _unit(pixels)
    value = unit.max(2, keepdims=True)
    chroma = value - unit.min(2, keepdims=True)
    red = np.array((0, 1, 1), np.float32)
    below = np.where(chroma > 0, (value - unit) / np.maximum(chroma, _TINY), red)
    wanted = np.clip(chroma / np.maximum(value, _TINY) * factor + added, 0, 1)
    return _rounded(value * (1 - wanted * below))


def hue(pixels: Pixels, rng: Random, *, turns: float) -> Pixels:
    """Turn the colour circle either way by a part of a whole turn."""
    return _turned_hue(pixels, turns * _sign(rng))


def rotation(pixels: Pixels, rng: Random, *, degrees: float) -> Pixels:
    """Rotate either way about the centre; the canvas stays."""
    angle = np.deg2rad(degrees) * _sign(rng)
    cos, sin = np.cos(angle), np.sin(angle)
    return _warped(pixels, np.array(((cos, -sin), (sin, cos))))


def translation(pixels: Pixels, rng: Random, *, share: float) -> Pixels:
    """Move left or right and up or down, by a share of the width and of the height."""
    height, width = pixels.shape[:2]
    return _warped(pixels, np.eye(2), (share * width * _sign(rng), share * height * _sign(rng)))


def scale(pixels: Pixels, rng: Random, *, factor: float) -> Pixels:
    """Enlarge or shrink about the centre by ``factor``; the canvas stays."""
    return _warped(pixels, np.eye(2) * factor ** _sign(rng))


def shear(pixels: Pixels, rng: Random, *, slope: float) -> Pixels:
    """Slant rows or columns either way: one pixel away from the centre, ``slope`` pixels along."""
    matrix = np.eye(2)
    matrix[(0, 1) if rng.random() < 0.5 else (1, 0)] = slope * _sign(rng)
    return _warped(pixels, matrix)


def flip(pixels: Pixels, rng: Random, *, sides: str) -> Pixels:
    """Swap ``left-right``, ``top-bottom`` or ``both``."""
    axes: dict[str, tuple[int, ...]] = {"left-right": (1,), "top-bottom": (0,), "both": (0, 1)}
    return np.ascontiguousarray(np.flip(pixels, axes[sides]))


def jpeg(pixels: Pixels, rng: Random, *, quality: int) -> Pixels:
    """Write as JPEG and read again."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def pixelate(pixels: Pixels, rng: Random, *, share: float) -> Pixels:
    """Shrink both sides to a share of them by the mean, and show the larger pixels."""
    image = Image.fromarray(pixels)
    small = (max(1, int(image.width * share)), max(1, int(image.height * share)))
    return np.asarray(image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX))


def posterise(pixels: Pixels, rng: Random, *, bits: int) -> Pixels:
    """Keep the highest bits of every value."""
    return np.asarray(ImageOps.posterize(Image.fromarray(pixels), bits))


def fog(pixels: Pixels, rng: Random, *, density: float, decay: float) -> Pixels:
    """Add a white plasma of up to ``density`` and scale back to the brightest value; a small ``decay`` is rougher."""
    unit, (height, width) = _unit(pixels), pixels.shape[:2]
    plasma = Image.fromarray(_plasma(decay, rng)).resize((width, height), Image.Resampling.BILINEAR)
    brightest = max(float(unit.max()), _TINY)
    return _rounded((unit + density * np.asarray(plasma)[..., None]) * brightest / (brightest + density))


def occlusion(pixels: Pixels, rng: Random, *, share: float) -> Pixels:
    """Cover a share of the 64 fields of an 8 x 8 board with black."""
    height, width = pixels.shape[:2]
    covered = np.arange(_GRID**2) < round(share * _GRID**2)
    board = rng.permutation(covered).reshape(_GRID, _GRID)
    mask = board[np.ix_(np.arange(height) * _GRID // height, np.arange(width) * _GRID // width)]
    return np.where(mask[..., None], 0, pixels).astype(np.uint8)


def mixed(
    pixels: Pixels, rng: Random, *, p: float, degrees: float, colour: float, hue: float, sd: float, jpeg75: bool = False
) -> Pixels:
    """Apply some of: rotation, left-right flip, top-bottom flip, colour jitter, noise, in this order.

    Args:
        pixels: uint8 ``(h, w, 3)``. The result is larger where it was rotated.
        rng: decides which, and how much.
        p: probability of each.
        degrees: most rotation either way; the canvas grows, its corners are black.
        colour: brightness, contrast and saturation are multiplied by factors in ``1 - colour .. 1 + colour``.
        hue: most turns of the colour circle, either way.
        sd: standard deviation of normal noise, where white is 255.
        jpeg75: whether the result goes through JPEG of quality 75, always.
    """
    turned, mirrored, upended, coloured, noisy = rng.random(5) < p
    image = Image.fromarray(pixels)
    if turned:
        image = image.rotate(rng.uniform(-degrees, degrees), Image.Resampling.BILINEAR, expand=True)
    if mirrored:
        image = ImageOps.mirror(image)
    if upended:
        image = ImageOps.flip(image)
    if coloured:
        image = _jittered(image, rng, colour, hue)
    changed: Pixels = np.asarray(image)
    if noisy:
        changed = gaussian_noise(changed, rng, sd=sd / 255)
    return jpeg(changed, rng, quality=75) if jpeg75 else changed


def _jittered(image: Image.Image, rng: Random, colour: float, turns: float) -> Image.Image:
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(rng.uniform(1 - colour, 1 + colour))
    return Image.fromarray(_turned_hue(np.asarray(image), rng.uniform(-turns, turns)))


def _turned_hue(pixels: Pixels, turns: float) -> Pixels:
    circle, *others = Image.fromarray(pixels).convert("HSV").split()
    turned = circle.point([round(place + 256 * turns) % 256 for place in range(256)])
    return np.asarray(Image.merge("HSV", (turned, *others)).convert("RGB"))


def _warped(pixels: Pixels, matrix: NDArray[np.float64], move: tuple[float, float] = (0, 0)) -> Pixels:
    """Return what stands at ``matrix`` times the place, counted from the centre and from ``move`` (across, down)."""
    image = Image.fromarray(pixels)
    centre = np.array(image.size) / 2
    offset = centre - matrix @ (centre + move)
    rows = np.column_stack((matrix, offset))
    warped = image.transform(image.size, Image.Transform.AFFINE, rows.ravel().tolist(), Image.Resampling.BILINEAR)
    return np.asarray(warped)


def _convolved(pixels: Pixels, kernel: NDArray[np.float64]) -> Pixels:
    """Return the image convolved with a square kernel of odd side, scaled to sum 1; borders are mirrored."""
    (height, width), reach = pixels.shape[:2], len(kernel) // 2
    padded = np.pad(_unit(pixels), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    shape = [fft.next_fast_len(side, real=True) for side in padded.shape[:2]]
    response = fft.rfft2((kernel / kernel.sum()).astype(np.float32), shape)[..., None]
    whole = fft.irfft2(fft.rfft2(padded, shape, axes=(0, 1)) * response, shape, axes=(0, 1))
    return _rounded(whole[2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width])


def _plasma(decay: float, rng: Random) -> Floats:
    """Return ``(256, 256)`` in 0..1: mid-points displaced ever less (diamond-square), without a seam."""
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


def _scale(pixels: Pixels) -> float:
    height, width, _ = pixels.shape
    return float(min(height, width) / _SIDE)


def _sign(rng: Random) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _unit(pixels: Pixels) -> Floats:
    return pixels.astype(np.float32) / np.float32(255)


def _rounded(unit: NDArray[np.floating]) -> Pixels:
    rounded: Pixels = np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)
    return rounded
