"""Images to embeddings, once; then heads, judged with numbers one can publish.

What is public is what ``__all__`` names; a name is imported when it is first used: ``import featkit`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featkit.backbones import load_backbone as load_backbone
    from featkit.embeddings.base import Embeddings as Embeddings
    from featkit.embeddings.embedder import ImageEmbedder as ImageEmbedder
    from featkit.embeddings.extract import extract as extract
    from featkit.embeddings.pipeline import Compute as Compute
    from featkit.errors import FeatkitError as FeatkitError
    from featkit.evaluation import evaluate as evaluate
    from featkit.evaluation.report import Report as Report
    from featkit.heads import make_head as make_head
    from featkit.images import load_images as load_images
    from featkit.images.base import ImageSet as ImageSet

__version__ = "0.1.0"

_HOMES = {
    "Compute": "featkit.embeddings.pipeline",
    "Embeddings": "featkit.embeddings.base",
    "FeatkitError": "featkit.errors",
    "ImageEmbedder": "featkit.embeddings.embedder",
    "ImageSet": "featkit.images.base",
    "Report": "featkit.evaluation.report",
    "evaluate": "featkit.evaluation",
    "extract": "featkit.embeddings.extract",
    "load_backbone": "featkit.backbones",
    "load_images": "featkit.images",
    "make_head": "featkit.heads",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featkit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
