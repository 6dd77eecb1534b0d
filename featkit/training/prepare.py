"""What is to be trained, found and fingerprinted before any of it costs time."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np

from featkit.backbones.base import Backbone
from featkit.backbones.devices import resolve_precision
from featkit.backbones.saved import NetworkDescription, check_not_trained_on, describe_derived, is_path, short_key
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys, images_digest, labels_digest
from featkit.embeddings.request import Request
from featkit.errors import DataError, SpecError
from featkit.images.base import ImageSet
from featkit.images.splits import stratified_split
from featkit.storage import digest
from featkit.training.config import TrainingConfig


@dataclass(frozen=True)
class PreparedTraining:
    """Everything that decides the weights, found; nothing is trained yet.

    Attributes:
        config: what was asked for.
        images: all of them; splits say what trains, what chooses the epoch, what judges.
        backbone: the network to begin with.
        fingerprint: digest of all that decides the weights.
        test: digests of the test images and of their labels, which decide no weight.
        trained_on: beginnings of the content digests of the images that train it or choose its epoch.
        about: what else there is to say of it, such as who its teacher is.
    """

    config: TrainingConfig
    images: ImageSet
    backbone: Backbone
    fingerprint: str
    test: tuple[str, str] = ("", "")
    trained_on: tuple[str, ...] = ()
    about: str = ""

    @property
    def id(self) -> str:
        """12 hex digits that name the run."""
        return self.fingerprint[:12]

    @property
    def description(self) -> NetworkDescription:
        """How the trained network will be rebuilt, and what it is called."""
        config, backbone, request = self.config, self.backbone, self.config.request
        what = {"deep": f"{config.unfreeze} fine-tuned", "full": "fine-tuned", "shallow": "classifier trained"}
        label = f"{backbone.name}, {what.get(config.mode, 'trained from scratch')} on {self.images.name}"
        label += f", {self.about}" if self.about else ""
        name = f"{backbone.name}-{config.mode}-{self.id[:8]}"
        return describe_derived(backbone, request.backbone, name, label, trained_on=self.trained_on)


def prepare(config: TrainingConfig, compute: Compute, *, extra: str = "", about: str = "") -> PreparedTraining:
    """Find the images and the network.

    Args:
        config: what is asked for.
        compute: how contents are read.
        extra: what else decides the weights, such as a teacher.
        about: the same for people.

    Raises:
        FeatkitError: of the kind that says what cannot be had.
    """
    request = config.request.for_device(compute.device)
    if config.mode == "scratch":
        request = _untrained(request, config.seed)
    config = replace(config, request=request, precision=resolve_precision(config.precision, compute.device))
    images = divide(request.load_images(), config.val, config.seed)
    keys = content_keys(images, compute)
    backbone = request.load_backbone()
    decided = {
        **config.to_dict(),
        **{"frozen": request.precision, "extra": extra},
        **{"backbone": backbone.name, "weights": backbone.digest, "preprocess": str(backbone.preprocess)},
    }
    learning = np.flatnonzero(images.splits != "test")
    rows = [f"{images.ids[row]} {keys[row]} {images.labels[row]} {images.splits[row]}" for row in learning]
    fingerprint = digest([json.dumps(decided, sort_keys=True), *images.classes, *rows])
    judged, learned = images.rows("test"), tuple(sorted({short_key(keys[row]) for row in learning}))
    test = (
        images_digest([images.ids[row] for row in judged], [keys[row] for row in judged]),
        labels_digest(images.classes, images.labels[judged]),
    )
    prepared = PreparedTraining(config, images, backbone, fingerprint, test, learned, about)
    check_not_trained_on(request.backbone, images.name, {keys[row] for row in judged} - {keys[row] for row in learning})
    return prepared


def _untrained(request: Request, seed: int) -> Request:
    """Return the request with weights that were never trained.

    Raises:
        SpecError: if it asks for trained ones.
    """
    if is_path(request.backbone) or (request.weights != "imagenet" and not request.weights.startswith("random")):
        raise SpecError("--mode scratch trains an untrained network: name one by its kind, and leave --weights out")
    return replace(request, weights=f"random:{seed}") if request.weights == "imagenet" else request


def divide(images: ImageSet, share: float, seed: int) -> ImageSet:
    """Return the images with a val part that chooses the epoch; with none where the share is 0.

    Raises:
        DataError: if there are fewer than two classes to train on.
    """
    splits = images.splits.astype("<U5")
    own = np.flatnonzero(splits == "val")
    if not share:
        splits[own] = "train"
    elif not len(own):
        rows = np.flatnonzero(splits == "train")
        splits[rows] = stratified_split(images.labels[rows], (1 - share, share, 0.0), seed)
    if len(np.unique(images.labels[splits == "train"])) < 2:
        raise DataError(f"{images.name} has {int((splits == 'train').sum())} images of one class to train on: give two")
    return replace(images, splits=splits, split="own")
