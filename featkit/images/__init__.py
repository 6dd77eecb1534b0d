"""A source of images, by any name, becomes uint8 RGB with labels and splits."""
