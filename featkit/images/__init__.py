"""A source of images, by any name, becomes uint8 RGB with labels and splits."""

from __future__ import annotations

from featkit.images.sources import load_images as load_images
