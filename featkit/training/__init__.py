"""Backbones to backbones, by gradient."""
