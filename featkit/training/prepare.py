"""Load the images and the network of a training, and compute its fingerprint."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np

from featkit.backbones.base import Backbone
from featkit.backbones.devices import resolve_precision
from featkit.backbones.saved import (
    KERAS,
    NetworkDescription,
    check_not_trained_on,
    describe_derived,
    images_trained_on,
    is_path,
    saved_network,
    short_key,
    torch_spec,
)
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys
from featkit.embeddings.request import Request
from featkit.embeddings.validation import images_digest, labels_digest
from featkit.errors import DataError, SpecError
from featkit.images.base import ImageSet
from featkit.images.groups import hold_out_groups
from featkit.images.multilabel import refuse_multilabel
from featkit.images.splits import stratified_split
from featkit.storage import digest
from featkit.training.config import TrainingConfig


@dataclass(frozen=True)
class PreparedTraining:
    """Everything that decides the trained weights.

    Attributes:
        config: with ``auto`` values resolved for the device.
        images: all images; the splits are those of this training.
        backbone: the initial network.
        fingerprint: digest of everything that decides the weights.
        test: digests of the test images and of their labels, which do not decide the weights.
        trained_on: ``short_key`` of each training and validation image, and of those of the
            training of the initial network.
        about: addition to the description of the network, such as its teacher.
        name: name of the run for tables and figures, which decides nothing; empty for a composed
            one.
    """

    config: TrainingConfig
    images: ImageSet
    backbone: Backbone
    fingerprint: str
    test: tuple[str, str] = ("", "")
    trained_on: tuple[str, ...] = ()
    about: str = ""
    name: str = ""

    @property
    def id(self) -> str:
        """Run id: 12 hex digits."""
        return self.fingerprint[:12]

    @property
    def description(self) -> NetworkDescription:
        """Description from which the trained network is rebuilt."""
        config, backbone = self.config, self.backbone
        kinds = {
            "deep": f"{config.unfreeze} fine-tuned",
            "full": "fine-tuned",
            "shallow": "classifier trained",
            "scratch": "trained from scratch",
        }
        network = torch_spec(backbone.name)
        label = f"{network}, {kinds[config.mode]} on {self.images.name}"
        if backbone.framework == "keras":
            label += " in TensorFlow"
        if self.about:
            label += f", {self.about}"
        name = f"{network}-{config.mode}-{self.id[:8]}"
        spec = config.request.backbone
        return describe_derived(backbone, spec, name, label, trained_on=self.trained_on)


def prepare(
    config: TrainingConfig, compute: Compute, *, extra: str = "", about: str = ""
) -> PreparedTraining:
    """Load the images and the initial network, and compute the fingerprint of the training.

    Args:
        config: the training.
        compute: device, and how image contents are read.
        extra: other inputs that affect the weights, such as a teacher.
        about: readable description of ``extra``.

    Raises:
        SpecError: if an option does not fit the network or the mode.
        DataError: if the images cannot be used, or the network was trained on test images.
        WeightsError: if the weights cannot be read.
    """
    request = config.request.for_device(compute.device)
    if config.mode == "scratch":
        request = _with_random_weights(request, config.seed)
    in_keras = request.backbone.startswith(KERAS)
    if in_keras and config.precision == "auto":
        precision = "fp32"
    else:
        precision = resolve_precision(config.precision, compute.device)
    config = replace(config, request=request, precision=precision)
    images = request.load_images()
    refuse_multilabel(images, "the training of a network")
    images = split_validation(images, config.val, config.seed)
    keys = content_keys(images, compute)
    backbone = request.load_backbone()
    train_or_val, test = np.flatnonzero(images.splits != "test"), images.rows("test")
    fingerprint = _fingerprint(config, images, keys, backbone, extra)
    test_keys, training_keys = {keys[row] for row in test}, {keys[row] for row in train_or_val}
    # An image in both parts is a property of the data, not a wrong --seed: ``fit`` warns about
    # those.
    before = saved_network(request.backbone, request.weights)
    trained_on = {short_key(key) for key in training_keys}
    if before is not None:
        check_not_trained_on(before, images.name, test_keys - training_keys)
        trained_on |= images_trained_on(before)
    return PreparedTraining(
        config=config,
        images=images,
        backbone=backbone,
        fingerprint=fingerprint,
        test=(
            images_digest([images.ids[row] for row in test], [keys[row] for row in test]),
            labels_digest(images.classes, images.labels[test]),
        ),
        trained_on=tuple(sorted(trained_on)),
        about=about,
    )


def _fingerprint(
    config: TrainingConfig, images: ImageSet, keys: tuple[str, ...], backbone: Backbone, extra: str
) -> str:
    """Return the digest of everything that decides the weights; it must stay stable."""
    decided = {
        **config.to_dict(),
        "frozen": config.request.precision,
        "extra": extra,
        "backbone": backbone.name,
        "weights": backbone.digest,
        "preprocess": str(backbone.preprocess),
    }
    rows = [
        f"{images.ids[row]} {keys[row]} {images.labels[row]} {images.splits[row]}"
        for row in np.flatnonzero(images.splits != "test")
    ]
    return digest([json.dumps(decided, sort_keys=True), *images.classes, *rows])


def _with_random_weights(request: Request, seed: int) -> Request:
    """Return the request with random weights.

    Raises:
        SpecError: if it asks for pretrained weights.
    """
    if request.weights.startswith("random") and not is_path(request.backbone):
        return request
    if request.weights == "imagenet" and not is_path(request.backbone):  # the default
        return replace(request, weights=f"random:{seed}")
    raise SpecError(
        "--mode scratch starts from random weights: use --backbone NAME, such as resnet18, "
        "without --weights"
    )


def split_validation(images: ImageSet, fraction: float, seed: int) -> ImageSet:
    """Return the images with a validation split: their own, or one taken from train.

    Args:
        images: the images.
        fraction: of train, if there is no validation split; 0: move all validation images to train.
        seed: of the stratified split.

    Raises:
        DataError: if there are fewer than two classes to train on.
    """
    splits = images.splits.astype("<U5")
    validation = np.flatnonzero(splits == "val")
    if not fraction:
        splits[validation] = "train"
    elif not len(validation):
        rows = np.flatnonzero(splits == "train")
        parts = (1 - fraction, fraction, 0.0)
        if images.groups:
            groups = np.array(images.groups)[rows]
            splits[rows[hold_out_groups(images.labels[rows], groups, fraction, seed)]] = "val"
        else:
            splits[rows] = stratified_split(images.labels[rows], parts, seed)
    classes = np.unique(images.labels[splits == "train"])
    if len(classes) < 2:
        count = int((splits == "train").sum())
        raise DataError(
            f"{images.name} has {count} training images of {len(classes)} classes: "
            "give two classes or more"
        )
    return replace(images, splits=splits, split="own")
