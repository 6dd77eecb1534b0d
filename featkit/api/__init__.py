"""The public functions of featkit; the command line and the app call the same ones.

Names, defaults and meaning are those of the command-line options. Functions return values and print
nothing: progress messages go to the logger ``featkit``, and ``progress=True`` shows progress bars.

Options that many functions share:

    Images: ``data`` (``digits``, a folder, a CSV file, ``cifar10:root=DIR``), ``split``
    (``70/15/15``), ``limit`` (``train=500,test=100``), ``intensity_range`` (``0:4095``, grey values
    that become black and white), ``seed``, ``augment`` and ``views`` (augmented views of train
    images), ``perturb`` (corruption of test images).

    Network: ``backbone``, ``weights``, ``layer``, ``pool``, ``resize``, ``crop``, ``precision``:
    see ``load_backbone`` and ``featkit.embeddings.request.Request``.

    Files: ``cache`` is the folder of the embeddings cache, ``out`` the folder for results.

    Compute: ``device``, ``batch_size``, ``workers``, ``engine``, ``compile``, ``on_error``: see
    ``featkit.embeddings.pipeline.Compute``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featkit.api.budget import TrainResult as TrainResult
    from featkit.api.budget import train as train
    from featkit.api.compression import CLASSIFIER_FILE as CLASSIFIER_FILE
    from featkit.api.compression import QuantizedModel as QuantizedModel
    from featkit.api.compression import prune as prune
    from featkit.api.compression import quantize as quantize
    from featkit.api.features import check_cluster as check_cluster
    from featkit.api.features import explain_cache as explain_cache
    from featkit.api.features import extract as extract
    from featkit.api.features import extract_files as extract_files
    from featkit.api.features import extract_shard as extract_shard
    from featkit.api.fitting import FitResults as FitResults
    from featkit.api.fitting import expand_heads as expand_heads
    from featkit.api.fitting import fit as fit
    from featkit.api.fitting import fit_heads as fit_heads
    from featkit.api.grids import ablate as ablate
    from featkit.api.grids import ablation_grid as ablation_grid
    from featkit.api.grids import estimate_study as estimate_study
    from featkit.api.grids import longtail as longtail
    from featkit.api.grids import longtail_grid as longtail_grid
    from featkit.api.grids import publication_table as publication_table
    from featkit.api.grids import robustness as robustness
    from featkit.api.grids import robustness_grid as robustness_grid
    from featkit.api.grids import run_study as run_study
    from featkit.api.inspection import FewShotResult as FewShotResult
    from featkit.api.inspection import ProfileResult as ProfileResult
    from featkit.api.inspection import audit as audit
    from featkit.api.inspection import fewshot as fewshot
    from featkit.api.inspection import neighbours as neighbours
    from featkit.api.inspection import profile as profile
    from featkit.api.inspection import suggest as suggest
    from featkit.api.inspection import write_clean as write_clean
    from featkit.api.options import OUT as OUT
    from featkit.api.reports import PLOT_KINDS as PLOT_KINDS
    from featkit.api.reports import plot as plot
    from featkit.api.reports import report as report
    from featkit.api.runs import ExportedRun as ExportedRun
    from featkit.api.runs import bundle as bundle
    from featkit.api.runs import compare as compare
    from featkit.api.runs import export as export
    from featkit.api.runs import load_run as load_run
    from featkit.api.runs import predict as predict
    from featkit.api.runs import rename_run as rename_run
    from featkit.api.training import TrainingComparison as TrainingComparison
    from featkit.api.training import compare_frameworks as compare_frameworks
    from featkit.api.training import distill as distill
    from featkit.api.training import distill_seeds as distill_seeds
    from featkit.api.training import finetune as finetune
    from featkit.api.training import finetune_study as finetune_study
    from featkit.backbones import load_backbone as load_backbone
    from featkit.embeddings.embedder import ImageEmbedder as ImageEmbedder
    from featkit.evaluation import evaluate as evaluate
    from featkit.heads import make_head as make_head
    from featkit.images import load_images as load_images

__all__ = [
    "ImageEmbedder",
    "ablate",
    "audit",
    "bundle",
    "compare",
    "compare_frameworks",
    "distill",
    "evaluate",
    "export",
    "extract",
    "fewshot",
    "finetune",
    "fit",
    "load_backbone",
    "load_images",
    "load_run",
    "longtail",
    "make_head",
    "neighbours",
    "plot",
    "predict",
    "profile",
    "prune",
    "publication_table",
    "quantize",
    "report",
    "robustness",
    "suggest",
    "train",
]

_MODULES = {
    "CLASSIFIER_FILE": "featkit.api.compression",
    "ExportedRun": "featkit.api.runs",
    "FewShotResult": "featkit.api.inspection",
    "FitResults": "featkit.api.fitting",
    "ImageEmbedder": "featkit.embeddings.embedder",
    "OUT": "featkit.api.options",
    "PLOT_KINDS": "featkit.api.reports",
    "ProfileResult": "featkit.api.inspection",
    "QuantizedModel": "featkit.api.compression",
    "TrainResult": "featkit.api.budget",
    "TrainingComparison": "featkit.api.training",
    "ablate": "featkit.api.grids",
    "ablation_grid": "featkit.api.grids",
    "audit": "featkit.api.inspection",
    "bundle": "featkit.api.runs",
    "check_cluster": "featkit.api.features",
    "compare": "featkit.api.runs",
    "compare_frameworks": "featkit.api.training",
    "distill": "featkit.api.training",
    "distill_seeds": "featkit.api.training",
    "estimate_study": "featkit.api.grids",
    "evaluate": "featkit.evaluation",
    "expand_heads": "featkit.api.fitting",
    "explain_cache": "featkit.api.features",
    "export": "featkit.api.runs",
    "extract": "featkit.api.features",
    "extract_files": "featkit.api.features",
    "extract_shard": "featkit.api.features",
    "fewshot": "featkit.api.inspection",
    "finetune": "featkit.api.training",
    "finetune_study": "featkit.api.training",
    "fit": "featkit.api.fitting",
    "fit_heads": "featkit.api.fitting",
    "load_backbone": "featkit.backbones",
    "load_images": "featkit.images",
    "load_run": "featkit.api.runs",
    "longtail": "featkit.api.grids",
    "longtail_grid": "featkit.api.grids",
    "make_head": "featkit.heads",
    "neighbours": "featkit.api.inspection",
    "plot": "featkit.api.reports",
    "predict": "featkit.api.runs",
    "profile": "featkit.api.inspection",
    "prune": "featkit.api.compression",
    "publication_table": "featkit.api.grids",
    "quantize": "featkit.api.compression",
    "rename_run": "featkit.api.runs",
    "report": "featkit.api.reports",
    "robustness": "featkit.api.grids",
    "robustness_grid": "featkit.api.grids",
    "run_study": "featkit.api.grids",
    "suggest": "featkit.api.inspection",
    "train": "featkit.api.budget",
    "write_clean": "featkit.api.inspection",
}
"""Module of each public name, imported when it is first used."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'featkit.api' has no attribute {name!r}")
