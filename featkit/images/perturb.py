"""Corrupted images by family and severity level, reproducible in any order and process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from featkit.errors import SpecError
from featkit.images import corruptions
from featkit.images.augment import MOST_VIEWS
from featkit.images.base import SPLITS, ImageSet, Pixels, partly_changed
from featkit.registry import Spec, Value, unknown

LEVELS = ("mild", "medium", "strong")

_IMAGENET_C = "ImageNet-C, severities 1, 3, 5"
_IMAGENET_C_EXTRA = "ImageNet-C, its extra set, severities 1, 3, 5"
_OWN = "featkit"


@dataclass(frozen=True)
class Family:
    """A family of corruptions at three severity levels.

    Attributes:
        apply: function of uint8 ``(h, w, 3)``, a random generator and the parameters as keyword
            arguments; returns uint8 of the same shape, except for ``mixed``, which may enlarge the
            image.
        group: ``noise``, ``blur``, ``colour``, ``geometry``, ``digital`` or ``scene``.
        levels: values of each parameter at mild, medium and strong.
        meaning: description of the parameters, with units.
        source: origin of the values.
        switches: boolean parameters that a spec may set.
    """

    apply: Callable[..., Pixels]
    group: str
    levels: Mapping[str, tuple[Value, Value, Value]]
    meaning: str
    source: str = _OWN
    switches: tuple[str, ...] = ()

    def parameters(self, level: str) -> dict[str, Value]:
        """Return the parameters at ``mild``, ``medium`` or ``strong``."""
        return {name: values[LEVELS.index(level)] for name, values in self.levels.items()}


PERTURBATIONS: Mapping[str, Family] = {
    "gaussian_noise": Family(
        corruptions.gaussian_noise,
        "noise",
        {"sd": (0.08, 0.18, 0.38)},
        "standard deviation; white is 1",
        _IMAGENET_C,
    ),
    "shot_noise": Family(
        corruptions.shot_noise,
        "noise",
        {"photons": (60, 12, 3)},
        "mean number of photons for white",
        _IMAGENET_C,
    ),
    "impulse_noise": Family(
        corruptions.impulse_noise,
        "noise",
        {"share": (0.03, 0.09, 0.27)},
        "share of black or white",
        _IMAGENET_C,
    ),
    "defocus_blur": Family(
        corruptions.defocus_blur,
        "blur",
        {"radius": (3, 6, 10)},
        "radius of a disk, pixels of 224",
        _IMAGENET_C,
    ),
    "motion_blur": Family(
        corruptions.motion_blur,
        "blur",
        {"radius": (10, 15, 20), "sigma": (3, 8, 15)},
        "half the length and standard deviation of the smear, pixels of 224",
        _IMAGENET_C,
    ),
    "gaussian_blur": Family(
        corruptions.gaussian_blur,
        "blur",
        {"sigma": (1, 3, 6)},
        "standard deviation, pixels of 224",
        _IMAGENET_C_EXTRA,
    ),
    "brightness": Family(
        corruptions.brightness,
        "colour",
        {"added": (0.1, 0.3, 0.5)},
        "added to the value; white is 1",
        _IMAGENET_C,
    ),
    "contrast": Family(
        corruptions.contrast,
        "colour",
        {"factor": (0.4, 0.2, 0.05)},
        "remaining contrast",
        _IMAGENET_C,
    ),
    "saturation": Family(
        corruptions.saturation,
        "colour",
        {"factor": (0.3, 2, 20), "added": (0, 0, 0.2)},
        "saturation times factor, plus added",
        _IMAGENET_C_EXTRA,
    ),
    "hue": Family(
        corruptions.hue,
        "colour",
        {"turns": (0.05, 0.1, 0.2)},
        "rotation of the hue circle in turns, either direction",
    ),
    "rotation": Family(
        corruptions.rotation, "geometry", {"degrees": (15, 30, 45)}, "degrees, either direction"
    ),
    "translation": Family(
        corruptions.translation,
        "geometry",
        {"share": (0.05, 0.15, 0.3)},
        "share of each side, either direction",
    ),
    "scale": Family(
        corruptions.scale,
        "geometry",
        {"factor": (1.25, 1.5, 2)},
        "factor by which the image is enlarged or shrunk",
    ),
    "shear": Family(
        corruptions.shear,
        "geometry",
        {"slope": (0.1, 0.2, 0.3)},
        "slope of rows or columns, either direction",
    ),
    "flip": Family(
        corruptions.flip,
        "geometry",
        {"sides": ("left-right", "top-bottom", "both")},
        "axes of the flip",
    ),
    "jpeg": Family(
        corruptions.jpeg, "digital", {"quality": (25, 15, 7)}, "JPEG quality", _IMAGENET_C
    ),
    "pixelate": Family(
        corruptions.pixelate,
        "digital",
        {"share": (0.6, 0.4, 0.25)},
        "remaining share of the pixels of each side",
        _IMAGENET_C,
    ),
    "posterise": Family(
        corruptions.posterise, "digital", {"bits": (4, 3, 2)}, "remaining bits of 8"
    ),
    "fog": Family(
        corruptions.fog,
        "scene",
        {"density": (1.5, 2.5, 3), "decay": (2, 1.7, 1.4)},
        "thickest fog, white is 1; smoothness",
        _IMAGENET_C,
    ),
    "occlusion": Family(
        corruptions.occlusion, "scene", {"share": (0.1, 0.3, 0.5)}, "share of 8 x 8 fields covered"
    ),
    "mixed": Family(
        corruptions.mixed,
        "scene",
        {
            "p": (0.3, 0.5, 0.8),
            "degrees": (15, 30, 45),
            "colour": (0.1, 0.2, 0.3),
            "hue": (0.05, 0.1, 0.2),
            "sd": (5, 15, 25),
        },
        "probability of each transformation; maximum degrees, colour factors 1 ± colour, maximum "
        "hue turns, noise sd of 255",
        switches=("jpeg75",),
    ),
}


@dataclass(frozen=True)
class Perturbation:
    """A family of corruptions at a severity level.

    ``Perturbation()`` means none and is false; ``str()`` gives the canonical spec.
    """

    family: str = "none"
    level: str = "none"
    switches: tuple[str, ...] = ()

    def __str__(self) -> str:
        options: dict[str, Value] = {"level": self.level, **dict.fromkeys(self.switches, True)}
        return str(Spec(self.family, options=options if self else {}))

    def __bool__(self) -> bool:
        return self.level != "none"


def parse_perturbation(text: str) -> Perturbation:
    """Parse ``none``, ``fog:level=strong`` or ``mixed:level=mild,jpeg75=true``.

    Level ``none`` or 0 means no perturbation.

    Raises:
        SpecError: if the family, the level or an option is unknown, or the level is missing.
    """
    spec = Spec.parse(text)
    if spec == Spec("none"):
        return Perturbation()
    if spec.name == "none":
        raise SpecError(f"perturbation {text!r}: none takes no options")
    if spec.name not in PERTURBATIONS:
        raise unknown("perturbation", spec.name, ["none", *PERTURBATIONS])
    switches = PERTURBATIONS[spec.name].switches
    _check_options(spec, text, ["level", *switches])
    level = _level(spec)
    enabled = tuple(name for name in switches if _is_on(spec, name))
    if level == "none":
        return Perturbation()
    return Perturbation(spec.name, level, enabled)


def _check_options(spec: Spec, text: str, known: list[str]) -> None:
    """Raise SpecError for an unknown option or a missing level."""
    for option in spec.options:
        if option not in known:
            raise unknown(f"option of perturbation {spec.name}", option, known)
    if spec.argument is not None or "level" not in spec.options:
        raise SpecError(
            f"perturbation {text!r} has no level: write {spec.name}:level={'|'.join(LEVELS)}"
        )


def _level(spec: Spec) -> str:
    level = spec.options["level"]
    if level is None or level == 0:
        return "none"
    if level not in LEVELS:
        raise unknown(f"level of {spec.name}", str(level), ["none", *LEVELS])
    return str(level)


def _is_on(spec: Spec, switch: str) -> bool:
    value = spec.options.get(switch, False)
    if not isinstance(value, bool):
        raise SpecError(f"{switch}={value} of perturbation {spec.name}: write true or false")
    return value


def perturb(pixels: Pixels, perturbation: Perturbation, rng: np.random.Generator) -> Pixels:
    """Return a corrupted image, or the image itself for ``none``.

    Args:
        pixels: uint8 ``(h, w, 3)``.
        perturbation: family and level.
        rng: source of directions, positions and noise, see ``image_rng``.

    Returns:
        uint8 of the same shape, except for ``mixed``, which may enlarge the image.
    """
    if not perturbation:
        return pixels
    family = PERTURBATIONS[perturbation.family]
    switches = dict.fromkeys(perturbation.switches, True)
    return family.apply(pixels, rng, **family.parameters(perturbation.level), **switches)


def image_rng(seed: int, name: str) -> np.random.Generator:
    """Return the random generator of one image.

    All levels of a family use the same directions and positions for an image.
    """
    return np.random.default_rng(int(_sha256(f"{seed} {name}"), 16))


def perturb_images(
    images: ImageSet, spec: str, seed: int = 0, splits: Collection[str] = ("test",)
) -> ImageSet:
    """Return the images with those of some splits corrupted, under the same ids.

    The result depends on the pixels, the id and the seed. The key of an image differs for each spec
    and seed.

    Args:
        images: the images.
        spec: such as ``fog:level=mild``; ``none`` changes nothing.
        seed: of directions, positions and noise.
        splits: splits to corrupt.

    Raises:
        SpecError: if the spec or a split is unknown.
    """
    perturbation = parse_perturbation(spec)
    _check_splits(splits)
    if not perturbation:
        return images
    changed = np.isin(images.splits, list(splits))

    def change(row: int, clean: Pixels) -> Pixels:
        if not changed[row]:
            return clean
        return perturb(clean, perturbation, image_rng(seed, images.ids[row]))

    def changed_key(row: int, clean: str) -> str:
        if not changed[row]:
            return clean
        return _sha256(f"{clean} {perturbation} {seed} {images.ids[row]}")

    def key(row: int) -> str:
        return changed_key(row, images.key(row))

    def load_with_key(row: int) -> tuple[Pixels, str]:
        clean, clean_key = images.load_with_key(row)
        return change(row, clean), changed_key(row, clean_key)

    def unchanged(row: int) -> int | None:
        return None if changed[row] else row

    load, sized_key = partly_changed(images, unchanged, load_with_key, key)
    return replace(images, load=load, key=sized_key)


def _check_splits(splits: Collection[str]) -> None:
    for split in splits:
        if split not in SPLITS:
            raise unknown("split", split, list(SPLITS))


def perturb_split(images: ImageSet, spec: str, part: str, seed: int = 0) -> ImageSet:
    """Return only the images of one split, corrupted.

    Test images keep their ids, as they replace the clean images. Training images are additional
    views of their images, with numbers above those of augmented views.

    Raises:
        SpecError: if the spec or the split is unknown.
    """
    own = images.take(images.rows(part))
    if part != "test":
        own = replace(own, ids=tuple(f"{name}#view{MOST_VIEWS + 1}" for name in own.ids))
    return perturb_images(own, spec, seed, (part,))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
