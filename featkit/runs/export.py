"""Export a saved run to one file, verified on the run's own test images."""

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


def export_run(
    run: SavedRun,
    path: Path,
    *,
    to: str = "onnx",
    most: int = 256,
    data: str | None = None,
    compute: Compute,
) -> ExportAgreement | None:
    """Export a run to one file and verify its predictions.

    Neither format computes in bf16: such a run is exported and verified in fp32. A run in OpenVINO
    is verified in ONNX Runtime.

    Args:
        run: the run.
        path: the file.
        to: ``onnx`` or ``torch``.
        most: maximum number of test images for the verification, spread over the classes; 0 for no
            verification.
        data: spec of the images whose test images are used; None for those of the run, which must
            still exist.
        compute: device and batch size of the verification.

    Returns:
        The comparison; None without verification.

    Raises:
        DataError: if the images of the run are no longer where they were.
        FeatkitError: as ``featkit.compression.export.export``.
    """
    images = None
    if most:
        if data is None:
            run.check_images(
                "give their new folder with --data", "write the file unverified with --check 0"
            )
        images = run_test_images(run, most, data)
    return export(classifier_of(run), path, images, to=to, compute=compute)


def classifier_of(run: SavedRun) -> Classifier:
    """Return the classifier of a run; bf16 becomes fp32, int8-openvino becomes int8."""
    return Classifier(
        backbone=run.load_backbone(),
        precision="int8" if run.request.precision in INT8 else "fp32",
        head=run.head,
        head_spec=run.head_spec,
        classes=tuple(run.classes[label] for label in run.head.classes_),
        temperature=run.temperature,
        threshold=run.threshold,
        # As the run decodes: its own images may have been small.
        recipe=replace(run.recipe, decode=run.request.decode or "full"),
        labels=tuple(rule.calibration for rule in run.labels),
        thresholds=tuple(rule.threshold for rule in run.labels),
    )


def run_test_images(run: SavedRun, most: int | None = None, data: str | None = None) -> ImageSet:
    """Return the test images of a run.

    Args:
        run: the run.
        most: maximum number, spread over the classes; None for all.
        data: spec of images that are split as those of the run, and used instead of them; or None.

    Raises:
        DataError: if the images are no longer where they were, were given in memory, or there are
            no test images.
    """
    request = replace(run.request, augment=None)
    if data is None:
        run.check_images()
    else:
        request = replace(request, data=data)
    images = request.load_images()
    rows = images.rows("test")
    if not len(rows):
        raise DataError(f"{images.name} has no test images")
    count = min(most or len(rows), len(rows))
    spread = np.linspace(0, len(rows) - 1, count).astype(int)
    return images.take(rows[spread])
