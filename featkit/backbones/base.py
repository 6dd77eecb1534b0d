"""Describe a backbone: its preprocessing, its weights, how to build it. Imports no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featkit.backbones.devices import INT8
from featkit.errors import SpecError, WeightsError
from featkit.storage import read_file

if TYPE_CHECKING:
    from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MAX_PIXELS = 100_000_000
_MAX_EDGE = 9999
MAX_ONNX_BYTES = 2**31
"""Protobuf messages, and therefore ONNX files with their weights inside, cannot be larger."""
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop and normalise, as torchvision's ``ImageClassification`` does.

    Attributes:
        resize: length of the shorter edge in pixels, or ``(height, width)`` without keeping the
            aspect ratio.
        crop: ``(height, width)`` of the centre crop in pixels; a smaller image gets a black border.
        interpolation: ``bilinear`` or ``bicubic``, both with anti-aliasing.
        mean, std: per channel, for values in 0..1.
    """

    resize: int | tuple[int, int] = 256
    crop: tuple[int, int] = (224, 224)
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Build from the dict of ``asdict``, also from JSON.

        Raises:
            TypeError, ValueError: if a value is of another type or out of range.
        """
        read: dict[str, Any] = {}
        for name, value in values.items():
            read[name] = tuple(value) if isinstance(value, list) else value
        preprocess = cls(**read)
        preprocess._check()
        return preprocess

    def _check(self) -> None:
        """Raise ValueError for values that no image can be preprocessed with."""
        pixels = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
        for sizes in (pixels, self.crop):
            is_size = all(type(size) is int and 0 < size <= _MAX_EDGE for size in sizes)
            if len(sizes) != 2 or not is_size:
                raise ValueError(f"resize {self.resize!r} or crop {self.crop!r} is not a size")
        if self.interpolation not in _FILTERS:
            raise ValueError(f"interpolation {self.interpolation!r} is unknown")
        for channels in (self.mean, self.std):
            if len(channels) != 3 or not all(map(math.isfinite, channels)):
                raise ValueError(f"mean {self.mean!r} or std {self.std!r} is not three numbers")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std {self.std!r} is not positive")

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop one uint8 image ``(h, w, 3)`` to uint8 ``(*crop, 3)``.

        Normalisation is left to ``normalise``: bytes are copied to the device at a quarter of the
        size of floats.
        """
        return np.asarray(self._crop(self._resize(Image.fromarray(pixels))))

    def fast(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop by resizing only what the crop shows: a third faster than a call.

        3 % of the values differ by one of 256 levels, because Pillow stores the edges of the region
        that it resizes as float32. That changes the features of ResNet-50 more than bf16 does
        (cosine similarity at least 0.9992), and less than int8.
        """
        image = Image.fromarray(pixels)
        resized = self._resize_visible(image, *self._resized_size(*image.size))
        return np.asarray(self._crop(resized))

    def for_precision(self, precision: str) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
        """Return what resizes and crops images for a precision: ``fast`` for int8."""
        return self.fast if precision in INT8 else self

    @property
    def edge(self) -> int:
        """Shorter edge in pixels of an image after resizing.

        Without keeping the aspect ratio, the longer edge: an image of twice that size has enough
        pixels in both directions.
        """
        return self.resize if isinstance(self.resize, int) else max(self.resize)

    def normalise(self, batch: Any) -> Any:
        """Normalise a float batch ``(b, 3, h, w)`` of values in 0..255, an array or a tensor."""
        like = batch.new_tensor if hasattr(batch, "new_tensor") else np.asarray
        mean = like(self.mean, dtype=batch.dtype).reshape(1, 3, 1, 1)
        std = like(self.std, dtype=batch.dtype).reshape(1, 3, 1, 1)
        return (batch / 255 - mean) / std

    def _crop(self, image: Image.Image) -> Image.Image:
        height, width = self.crop
        left, top = _crop_offset(image.width, width), _crop_offset(image.height, height)
        return image.crop((left, top, left + width, top + height))

    def _resize(self, image: Image.Image) -> Image.Image:
        width, height = self._resized_size(*image.size)
        if width * height <= _MAX_PIXELS:
            return image.resize((width, height), _FILTERS[self.interpolation])
        # An image of 1 x 100000 pixels, resized by its shorter edge, would not fit into memory.
        return self._resize_visible(image, width, height)

    def _resize_visible(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Return the part of the resized image that the centre crop shows."""
        visible_width, visible_height = min(width, self.crop[1]), min(height, self.crop[0])
        left, top = _crop_offset(width, visible_width), _crop_offset(height, visible_height)
        scale_x, scale_y = image.width / width, image.height / height
        box = (
            left * scale_x,
            top * scale_y,
            (left + visible_width) * scale_x,
            (top + visible_height) * scale_y,
        )
        return image.resize((visible_width, visible_height), _FILTERS[self.interpolation], box=box)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the resized image."""
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        short, long = sorted((width, height))
        longer = int(self.resize * long / short)
        return (self.resize, longer) if width <= height else (longer, self.resize)


def _crop_offset(length: int, crop: int) -> int:
    """Return where a centre crop begins, rounded as in torchvision; negative for a border."""
    return round((length - crop) / 2.0) if length >= crop else -((crop - length) // 2)


class QuantizedNetwork(NamedTuple):
    """ONNX file of an int8 network, uint8 ``(b, h, w, 3)`` to ``(b, d)``, and its SHA-256."""

    path: Path
    digest: str


@dataclass(frozen=True)
class Backbone:
    """A network, its weights and its preprocessing: everything needed to turn pixels into features.

    Creating one costs no more than the digest of a weights file. torch is imported and the network
    built only by ``build``, so that a cache hit needs neither.

    Attributes:
        name: as the user specifies it, such as ``resnet50``.
        weights: which weights were found, for display: ``IMAGENET1K_V1 (resnet50-0676ba61.pth)``,
            ``random:0 (untrained)``.
        digest: SHA-256 (hex) of the weights file, or ``random:<seed>``.
        layer: dotted name of the layer whose output is the embedding.
        pool: how a feature map becomes a vector: ``avg``, ``max``, ``catavgmax`` or ``none``.
        preprocess: from pixels to the network's input.
        build: () -> a module in eval mode, without gradients, float32 ``(b, 3, h, w)`` -> ``(b,
            d)``. Raises WeightsError if the file belongs to another network, SpecError if the layer
            is unknown.
        quantized: the same network in int8, once it has been calibrated.
        framework: what runs it in float32, ``torch`` or ``keras``.
        build_keras: () -> a ``keras.Model`` from normalised float32 ``(b, h, w, 3)`` to ``(b, d)``,
            if the framework is Keras.
        reload: () -> the same backbone with the digest that its weights have now; None for one that
            was not loaded by ``load_backbone``.
    """

    name: str
    weights: str
    digest: str
    layer: str
    pool: str
    preprocess: Preprocess
    build: Callable[[], nn.Module]
    quantized: QuantizedNetwork | None = None
    framework: str = "torch"
    build_keras: Callable[[], Any] | None = None
    reload: Callable[[], Backbone] | None = None

    @property
    def trained(self) -> bool:
        """Whether the weights are trained; results of random ones are labelled as such."""
        return not self.digest.startswith("random:")

    def weights_changed(self) -> bool:
        """Return whether the weights were replaced since they were located."""
        return self.reload is not None and self.reload().digest != self.digest

    def read_quantized(self) -> bytes:
        """Read the file of ``quantized`` and check its digest.

        Raises:
            SpecError: if the network was not quantized.
            WeightsError: if the file cannot be read, or its content has changed.
        """
        if self.quantized is None:
            raise SpecError(
                f"{self.name} has not been quantized: int8 needs train images for calibration"
            )
        path, digest = self.quantized
        try:
            data = read_file(path, MAX_ONNX_BYTES)
        except OSError as error:
            raise WeightsError(
                f"cannot read {path} ({error.strerror}): extract with --precision int8 again"
            ) from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise WeightsError(
                f"{path} is not the int8 network {digest[:12]} of the features: it was changed; "
                "remove it and make it again, or copy it again"
            )
        return data
