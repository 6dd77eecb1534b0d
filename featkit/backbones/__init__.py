"""Networks that turn images into features, their weights and their preprocessing."""

from featkit.backbones.catalog import list_layers, list_models
from featkit.backbones.load import BACKBONES, load_backbone

__all__ = ["BACKBONES", "list_layers", "list_models", "load_backbone"]
