"""Perturbed images: by family and level, the same for an image whatever the order or the worker."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from featkit.errors import SpecError
from featkit.images import corruptions
from featkit.images.augment import MOST_VIEWS
from featkit.images.base import SPLITS, ImageSet, Pixels
from featkit.registry import Spec, Value, unknown

LEVELS = ("mild", "medium", "strong")

_IMAGENET_C = "ImageNet-C, severities 1, 3, 5"
_IMAGENET_C_EXTRA = "ImageNet-C, its extra set, severities 1, 3, 5"
_OWN = "featkit"


@dataclass(frozen=True)
class Family:
    """A kind of perturbation at three levels.

    Attributes:
        apply: takes uint8 ``(h, w, 3)``, a generator and the parameters by name; gives uint8 ``(h, w, 3)``, of the
            same shape for all families but ``mixed``.
        group: ``noise``, ``blur``, ``colour``, ``geometry``, ``digital`` or ``scene``.
        levels: each parameter at mild, medium and strong.
        meaning: what the parameters are, with their units.
        source: where their values come from.
        switches: names of further parameters that a spec may turn on.
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
        corruptions.gaussian_noise, "noise", {"sd": (0.08, 0.18, 0.38)}, "standard deviation; white is 1", _IMAGENET_C
    ),
    "shot_noise": Family(
        corruptions.shot_noise, "noise", {"photons": (60, 12, 3)}, "photons that white gives on average", _IMAGENET_C
    ),
    "impulse_noise": Family(
        corruptions.impulse_noise, "noise", {"share": (0.03, 0.09, 0.27)}, "share of black or white", _IMAGENET_C
    ),
    "defocus_blur": Family(
        corruptions.defocus_blur, "blur", {"radius": (3, 6, 10)}, "radius of a disk, pixels of 224", _IMAGENET_C
    ),
    "motion_blur": Family(
        corruptions.motion_blur,
        "blur",
        {"radius": (10, 15, 20), "sigma": (3, 8, 15)},
        "half the length and standard deviation of the smear, pixels of 224",
        _IMAGENET_C,
    ),
    "gaussian_blur": Family(
        corruptions.gaussian_blur, "blur", {"sigma": (1, 3, 6)}, "standard deviation, pixels of 224", _IMAGENET_C_EXTRA
    ),
    "brightness": Family(
        corruptions.brightness, "colour", {"added": (0.1, 0.3, 0.5)}, "added to the value; white is 1", _IMAGENET_C
    ),
    "contrast": Family(
        corruptions.contrast, "colour", {"factor": (0.4, 0.2, 0.05)}, "what is left of the contrast", _IMAGENET_C
    ),
    "saturation": Family(
        corruptions.saturation,
        "colour",
        {"factor": (0.3, 2, 20), "added": (0, 0, 0.2)},
        "saturation times factor, plus added",
        _IMAGENET_C_EXTRA,
    ),
    "hue": Family(corruptions.hue, "colour", {"turns": (0.05, 0.1, 0.2)}, "turns of the colour circle, either way"),
    "rotation": Family(corruptions.rotation, "geometry", {"degrees": (15, 30, 45)}, "degrees, either way"),
    "translation": Family(
        corruptions.translation, "geometry", {"share": (0.05, 0.15, 0.3)}, "share of each side, either way"
    ),
    "scale": Family(corruptions.scale, "geometry", {"factor": (1.25, 1.5, 2)}, "enlarged or shrunk by"),
    "shear": Family(
        corruptions.shear, "geometry", {"slope": (0.1, 0.2, 0.3)}, "slope of rows or of columns, either way"
    ),
    "flip": Family(
        corruptions.flip, "geometry", {"sides": ("left-right", "top-bottom", "both")}, "sides that are swapped"
    ),
    "jpeg": Family(corruptions.jpeg, "digital", {"quality": (25, 15, 7)}, "quality of the file", _IMAGENET_C),
    "pixelate": Family(
        corruptions.pixelate, "digital", {"share": (0.6, 0.4, 0.25)}, "share of each side's pixels left", _IMAGENET_C
    ),
    "posterise": Family(corruptions.posterise, "digital", {"bits": (4, 3, 2)}, "bits left of 8"),
    "fog": Family(
        corruptions.fog,
        "scene",
        {"density": (1.5, 2.5, 3), "decay": (2, 1.7, 1.4)},
        "thickest fog, white is 1; smoothness",
        _IMAGENET_C,
    ),
    "occlusion": Family(corruptions.occlusion, "scene", {"share": (0.1, 0.3, 0.5)}, "share of 8 x 8 fields covered"),
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
        "probability of each change; most degrees, colour factors 1 ± colour, most turns of hue, noise (white is 255)",
        switches=("jpeg75",),
    ),
}


@dataclass(frozen=True)
class Perturbation:
    """A family at a level; ``Perturbation()`` is none, and false. As text, the spec in one canonical form."""

    family: str = "none"
    level: str = "none"
    switches: tuple[str, ...] = ()

    def __str__(self) -> str:
        options: dict[str, Value] = {"level": self.level, **dict.fromkeys(self.switches, True)}
        return str(Spec(self.family, options=options if self else {}))

    def __bool__(self) -> bool:
        return self.level != "none"


def parse_perturbation(text: str) -> Perturbation:
    """Read ``none``, ``gaussian_noise:level=strong``, ``mixed:level=mild,jpeg75=true``; level ``none`` or 0 is none.

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
    for option in spec.options:
        if option not in ("level", *switches):
            raise unknown(f"option of perturbation {spec.name}", option, ["level", *switches])
    if spec.argument is not None or "level" not in spec.options:
        raise SpecError(f"perturbation {text!r} has no level=...: write {spec.name}:level={'|'.join(LEVELS)}")
    level, chosen = _level(spec), tuple(name for name in switches if _is_on(spec, name))
    return Perturbation(spec.name, level, chosen) if level != "none" else Perturbation()


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
        raise SpecError(f"{switch}={value} of perturbation {spec.name} is neither true nor false")
    return value


def perturb(pixels: Pixels, perturbation: Perturbation, rng: np.random.Generator) -> Pixels:
    """Return an image, uint8 ``(h, w, 3)``, perturbed: uint8, of the same shape but for ``mixed``, which may grow it.

    ``none`` gives the image itself. ``rng`` decides directions, places and noise: see ``image_rng``.
    """
    if not perturbation:
        return pixels
    family = PERTURBATIONS[perturbation.family]
    switches = dict.fromkeys(perturbation.switches, True)
    return family.apply(pixels, rng, **family.parameters(perturbation.level), **switches)


def image_rng(seed: int, name: str) -> np.random.Generator:
    """Return the generator of one image: all levels of a family go the same way with it."""
    return np.random.default_rng(int(_sha256(f"{seed} {name}"), 16))


def perturb_images(images: ImageSet, spec: str, seed: int = 0, splits: Collection[str] = ("test",)) -> ImageSet:
    """Return the images, those of some splits perturbed, under the same ids.

    What becomes of an image is decided by the seed and its id. Its key is another for each spec and seed.

    Args:
        images: the images.
        spec: such as ``fog:level=mild``; ``none`` changes nothing.
        seed: other directions, places and noise.
        splits: those whose images are perturbed.

    Raises:
        SpecError: if the spec or a split is unknown.
    """
    perturbation = parse_perturbation(spec)
    for split in splits:
        if split not in SPLITS:
            raise unknown("split", split, list(SPLITS))
    if not perturbation:
        return images
    changed = np.isin(images.splits, list(splits))

    def key(place: int) -> str:
        clean = images.key(place)
        return _sha256(f"{clean} {perturbation} {seed} {images.ids[place]}") if changed[place] else clean

    def load(place: int) -> Pixels:
        clean = images.load(place)
        return perturb(clean, perturbation, image_rng(seed, images.ids[place])) if changed[place] else clean

    return replace(images, load=load, key=key)


def perturb_split(images: ImageSet, spec: str, part: str, seed: int = 0) -> ImageSet:
    """Return the images of one split alone, perturbed.

    Those of ``test`` keep their ids: they take the place of the images as they are. Those of ``train`` are further
    views of their images, named and numbered after any augmented ones.

    Raises:
        SpecError: if the spec or the split is unknown.
    """
    own = images.take(images.rows(part))
    if part != "test":
        own = replace(own, ids=tuple(f"{name}#view{MOST_VIEWS + 1}" for name in own.ids))
    return perturb_images(own, spec, seed, (part,))


def parameter_table() -> list[dict[str, str]]:
    """Return a row for each family: its group, the parameters at each level, what they mean and their source."""
    return [
        {
            "family": name,
            "group": family.group,
            **{level: _written(family.parameters(level)) for level in LEVELS},
            "meaning": family.meaning,
            "source": family.source,
        }
        for name, family in PERTURBATIONS.items()
    ]


def _written(parameters: Mapping[str, Value]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parameters.items())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
