"""Image sources: uint8 RGB pixels with labels, splits, corruptions and augmentation."""

from __future__ import annotations

from featkit.images.sources import load_images as load_images
