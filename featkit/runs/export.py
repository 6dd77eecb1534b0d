"""A saved run as one file, checked on the run's own test images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from featkit.backbones.devices import INT8
from featkit.compression.export import Classifier, ExportAgreement, export
from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError
from featkit.images.base import ImageSet
from featkit.runs.directory import SavedRun


def export_run(run: SavedRun, path: Path, *, to: str = "onnx", most: int = 256, compute: Compute) -> ExportAgreement:
    """Write a run into a file; see ``featkit.compression.export.export`` for what is raised.

    A run in bf16, which neither format computes in, is written and checked in fp32; one in OpenVINO is checked in ONNX
    Runtime.

    Args:
        run: the run; its images must still be there.
        path: the file.
        to: ``onnx`` or ``torch``.
        most: test images to check it on, spread over the classes; all of them if there are fewer.
        compute: how the check is done.
    """
    return export(classifier_of(run), path, images_to_check(run, most), to=to, compute=compute)


def classifier_of(run: SavedRun) -> Classifier:
    """Return what a run consists of; bf16 becomes fp32, int8-openvino int8."""
    return Classifier(
        backbone=run.load_backbone(),
        precision="int8" if run.request.precision in INT8 else "fp32",
        head=run.head,
        head_spec=run.head_spec,
        classes=tuple(run.classes[label] for label in run.head.classes_),
        temperature=run.temperature,
        threshold=run.threshold,
        recipe=run.recipe,
    )


def images_to_check(run: SavedRun, most: int | None = None) -> ImageSet:
    """Return a run's own test images: all, or as many as are asked for, spread over the classes.

    Raises:
        DataError: if the images came from Python, or there is none to test on.
    """
    if not run.request.data:
        raise DataError(f"the images of {run.path} came from Python: fit again with --data")
    images = replace(run.request, augment=None).load_images()
    rows = images.rows("test")
    if not len(rows):
        raise DataError(f"{images.name} has no test images")
    return images.take(rows[np.linspace(0, len(rows) - 1, min(most or len(rows), len(rows))).astype(int)])
