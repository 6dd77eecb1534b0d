"""A saved run in eight bits, network and head as one file, beside the run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featkit.backbones.base import QuantizedNetwork
from featkit.compression.export import answers, export
from featkit.compression.exported import load_exported
from featkit.embeddings.pipeline import Compute
from featkit.evaluation import PairedComparison, Predictions, compare
from featkit.runs.directory import SavedRun
from featkit.runs.export import classifier_of, images_to_check

_CHECKED = 256


@dataclass(frozen=True)
class QuantizedRun:
    """How a run does in eight bits: top-1 of the run and of the file on the run's test images, and the difference."""

    before: float
    after: float
    paired: PairedComparison


def quantize_run(run: SavedRun, network: QuantizedNetwork, path: Path, compute: Compute) -> QuantizedRun:
    """Write a run's classifier into one ONNX file with its network in eight bits; the head is the run's own.

    Args:
        run: the run; its images must still be there.
        network: its network in eight bits.
        path: the file.
        compute: how images are read.

    Raises:
        DataError: if the images came from Python, or there are no test images.
        HeadError: if the head cannot be expressed.
        SpecError: if the file does not answer as the network and the head do.
    """
    classifier = classifier_of(run)
    eight = replace(classifier, backbone=replace(classifier.backbone, quantized=network), precision="int8")
    export(eight, path, images_to_check(run, _CHECKED), compute=compute)
    images, file = images_to_check(run), load_exported(path)
    rows, before, after = answers(classifier, file.engine, images, compute, prepare=file.about.prepare)
    true = [images.classes[label] for label in images.labels[rows]]
    names = np.array(classifier.classes)
    told = {
        title: Predictions([images.ids[row] for row in rows], true, names[scores.argmax(axis=1)])
        for title, scores in (("in eight bits", after), ("the run", before))
    }
    (paired,) = compare(told)
    right = {title: float(np.mean(np.asarray(each.predicted) == np.asarray(true))) for title, each in told.items()}
    return QuantizedRun(right["the run"], right["in eight bits"], paired)
