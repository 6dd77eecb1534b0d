"""From images to cached features."""
