"""What a backbone is, without the network itself: this module never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MOST_PIXELS = 100_000_000
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop and normalise, as torchvision's ``ImageClassification`` preset does on PIL images.

    Attributes:
        resize: length of the shorter edge in pixels, or ``(height, width)`` to squash.
        crop: ``(height, width)`` of the centre crop in pixels; black where the image is smaller.
        interpolation: ``bilinear`` or ``bicubic``, both with anti-aliasing.
        mean, std: per channel, of values in 0..1.
    """

    resize: int | tuple[int, int] = 256
    crop: tuple[int, int] = (224, 224)
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Read what ``asdict`` gave and JSON made lists of; TypeError if it is anything else."""
        read: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in values.items()}
        return cls(**read)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop one uint8 image ``(h, w, 3)`` to uint8 ``(*crop, 3)``.

        Normalisation is left to ``normalise``: bytes travel to the network at a quarter of the size.
        """
        return np.asarray(self._crop(self._resize(Image.fromarray(pixels))))

    def normalise(self, batch: Any) -> Any:
        """Turn a float batch ``(b, 3, h, w)`` of values in 0..255 (array or tensor) into the network's input."""
        like = batch.new_tensor if hasattr(batch, "new_tensor") else np.asarray
        mean, std = (like(values, dtype=batch.dtype).reshape(1, 3, 1, 1) for values in (self.mean, self.std))
        return (batch / 255 - mean) / std

    def nearly(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Do what a call does in about two thirds of the time: only what the crop shows is resized.

        Off by one of 256 levels in 3 % of the values, since Pillow keeps the edges of what it resizes as float32. That
        moves ResNet-50's vectors more than bf16 does (cosine 0.9992 at worst), and less than int8.
        """
        image = Image.fromarray(pixels)
        resized = self._resize_shown(image, *self._resized(*image.size))
        return np.asarray(self._crop(resized))

    def _crop(self, image: Image.Image) -> Image.Image:
        height, width = self.crop
        left, top = _offset(image.width, width), _offset(image.height, height)
        return image.crop((left, top, left + width, top + height))

    def _resize(self, image: Image.Image) -> Image.Image:
        width, height = self._resized(*image.size)
        if width * height <= _MOST_PIXELS:
            return image.resize((width, height), _FILTERS[self.interpolation])
        # A strip of 1 x 100000 pixels would fill the memory.
        return self._resize_shown(image, width, height)

    def _resize_shown(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Return the part of the resized image that the crop will show."""
        wide, high = min(width, self.crop[1]), min(height, self.crop[0])
        left, top = _offset(width, wide), _offset(height, high)
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + wide) * across, (top + high) * down)
        return image.resize((wide, high), _FILTERS[self.interpolation], box=box)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        short, long = sorted((width, height))
        longer = int(self.resize * long / short)
        return (self.resize, longer) if width <= height else (longer, self.resize)


def _offset(length: int, crop: int) -> int:
    """Return where a centre crop begins; negative where it is padded. Halves fall as in torchvision."""
    return round((length - crop) / 2.0) if length >= crop else -((crop - length) // 2)


class QuantizedNetwork(NamedTuple):
    """A network in eight bits: an ONNX file from uint8 ``(b, h, w, 3)`` to ``(b, d)``, and its SHA-256 (hex)."""

    path: Path
    digest: str


@dataclass(frozen=True)
class Backbone:
    """A network, its weights and its preprocessing: everything needed to turn pixels into vectors.

    Making one costs no more than the digest of a weights file: the network is built by ``build``, and only then is
    torch imported, so that a cache can be recognised without it.

    Attributes:
        name: as the user asks for it, such as ``resnet50``.
        weights: what was found, for people: ``IMAGENET1K_V1 (resnet50-0676ba61.pth)``, ``random:0 (untrained)``.
        digest: SHA-256 (hex) of the weights file, or ``random:<seed>``.
        layer: dotted name of the layer whose output is the embedding.
        pool: ``avg``, ``max`` or ``catavgmax``: how a feature map becomes a vector.
        preprocess: from pixels to the network's input.
        build: () -> a module in eval mode, without gradients, float32 ``(b, 3, h, w)`` -> ``(b, d)``.
            Raises WeightsError if the file is not of this network, SpecError if the layer is unknown.
        quantized: the same in eight bits, once it has been calibrated; what int8 runs.
    """

    name: str
    weights: str
    digest: str
    layer: str
    pool: str
    preprocess: Preprocess
    build: Callable[[], nn.Module]
    quantized: QuantizedNetwork | None = None

    @property
    def trained(self) -> bool:
        """Whether the weights were ever trained; untrained ones are labelled as such wherever they appear."""
        return not self.digest.startswith("random:")
