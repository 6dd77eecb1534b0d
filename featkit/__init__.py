"""Image features from pretrained networks, cached, and classical heads with honest evaluation.

The public names are those of ``__all__``; see ``featkit.api`` for the functions. A name is imported
when it is first used, so ``import featkit`` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featkit.api import ablate as ablate
    from featkit.api import audit as audit
    from featkit.api import bundle as bundle
    from featkit.api import compare as compare
    from featkit.api import compare_frameworks as compare_frameworks
    from featkit.api import distill as distill
    from featkit.api import export as export
    from featkit.api import extract as extract
    from featkit.api import fewshot as fewshot
    from featkit.api import finetune as finetune
    from featkit.api import fit as fit
    from featkit.api import load_run as load_run
    from featkit.api import longtail as longtail
    from featkit.api import neighbours as neighbours
    from featkit.api import plot as plot
    from featkit.api import predict as predict
    from featkit.api import profile as profile
    from featkit.api import prune as prune
    from featkit.api import publication_table as publication_table
    from featkit.api import quantize as quantize
    from featkit.api import report as report
    from featkit.api import robustness as robustness
    from featkit.api import suggest as suggest
    from featkit.api import train as train
    from featkit.backbones import load_backbone as load_backbone
    from featkit.embeddings.base import Embeddings as Embeddings
    from featkit.embeddings.embedder import ImageEmbedder as ImageEmbedder
    from featkit.embeddings.pipeline import Compute as Compute
    from featkit.errors import FeatkitError as FeatkitError
    from featkit.evaluation import evaluate as evaluate
    from featkit.evaluation.report import Report as Report
    from featkit.heads import make_head as make_head
    from featkit.images import load_images as load_images
    from featkit.images.base import ImageSet as ImageSet

__version__ = "0.4.0"

_MODULES = {
    "Compute": "featkit.embeddings.pipeline",
    "Embeddings": "featkit.embeddings.base",
    "FeatkitError": "featkit.errors",
    "ImageEmbedder": "featkit.embeddings.embedder",
    "ImageSet": "featkit.images.base",
    "Report": "featkit.evaluation.report",
    "ablate": "featkit.api",
    "audit": "featkit.api",
    "bundle": "featkit.api",
    "compare": "featkit.api",
    "compare_frameworks": "featkit.api",
    "distill": "featkit.api",
    "evaluate": "featkit.evaluation",
    "export": "featkit.api",
    "extract": "featkit.api",
    "fewshot": "featkit.api",
    "finetune": "featkit.api",
    "fit": "featkit.api",
    "load_backbone": "featkit.backbones",
    "load_images": "featkit.images",
    "load_run": "featkit.api",
    "longtail": "featkit.api",
    "make_head": "featkit.heads",
    "neighbours": "featkit.api",
    "plot": "featkit.api",
    "predict": "featkit.api",
    "profile": "featkit.api",
    "prune": "featkit.api",
    "publication_table": "featkit.api",
    "quantize": "featkit.api",
    "report": "featkit.api",
    "robustness": "featkit.api",
    "suggest": "featkit.api",
    "train": "featkit.api",
}
"""The module of each public name."""

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    from difflib import get_close_matches

    close = get_close_matches(name, __all__, n=1)
    suggestion = f"; did you mean {close[0]!r}?" if close else ""
    raise AttributeError(f"module 'featkit' has no attribute {name!r}{suggestion}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
