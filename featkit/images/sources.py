"""Loading of image sources by name or path, with splits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featkit.arguments import FLAG, SEED, checked, one_of, text
from featkit.errors import DataError, SpecError
from featkit.images import datasets
from featkit.images.archives import images_from_archives, is_archive_spec
from featkit.images.base import SPLITS, ImageSet
from featkit.images.decode import array_key
from featkit.images.files import UNSPLIT
from featkit.images.folder import images_from_folder
from featkit.images.groups import (
    PARENT,
    assign_groups,
    check_class_groups,
    check_groups,
    group_split,
    refuse_leak,
)
from featkit.images.intensity import IntensityRange
from featkit.images.iterative import iterative_split
from featkit.images.multilabel import label_names, targets_of
from featkit.images.remote import is_url
from featkit.images.splits import (
    FRACTIONS,
    TEST_ON_VAL,
    format_limit,
    format_split,
    limit_rows,
    parse_limit,
    parse_split,
    stratified_split,
)
from featkit.images.table import csv_columns, images_from_csv, line_of
from featkit.images.url_folder import images_from_url
from featkit.registry import Registry, unknown
from featkit.storage import user_path

_log = logging.getLogger("featkit")

SOURCES: Registry[Callable[..., ImageSet]] = Registry(
    "data source",
    "featkit.sources",
    {
        "digits": "featkit.images.sources:digits",
        **{name: f"featkit.images.datasets:{name}" for name in datasets.NAMES},
    },
)
"""Factories ``(**options) -> ImageSet``, with ``split`` either ``own``, or ``none`` if the source
defines no splits.
"""


@checked(
    spec=one_of(text("digits"), Path),
    split=text("70/15/15"),
    seed=SEED,
    limit=text("train=500,test=100"),
    intensity_range=text("0:4095"),
    group=text("parent"),
    allow_group_leak=FLAG,
)
def load_images(
    spec: str | Path = "digits",
    *,
    split: str | None = None,
    seed: int = 0,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
) -> ImageSet:
    """Return the images of a source, split into train, val and test. No image is decoded yet.

    Args:
        spec: a name with options (``digits``, ``cifar10:root=DIR``), a folder
            ``root/[split/]<class>/*``, its URL (see ``featkit.images.url_folder.images_from_url``),
            a CSV file with columns ``path,label[,split,group]``, or tar files ``tar:PATTERN`` (see
            ``featkit.images.archives.images_from_archives``). A folder with the name of a source is
            written ``./name``. What was passed over is in ``notes`` and logged.
        split: fractions such as ``70/15/15`` for a new stratified split; ``val`` to test on the
            val images of a source without test images; None keeps the splits of the source, or
            makes 70/15/15 if it defines none.
        seed: of the split and of the limit.
        limit: ``train=5000,test=1000``: take a stratified sample of these splits.
        intensity_range: ``0:4095``, the values that become black and white in grey image files of
            more than 8 bits per pixel; None for the range of the file format.
        group: groups of images that no split separates, such as patients: ``parent`` for the folder
            of the image inside its class folder, ``duplicates`` for each image with its near
            duplicates, the name of a column of the CSV file, a regular
            expression for the id (see ``featkit.images.groups.assign_groups``), ``none`` to ignore
            groups; None for those that the source defines.
        allow_group_leak: whether splits of the source may separate the images of a group.

    Raises:
        SpecError: if an option, the split, the limit or the range is malformed, or the source has
            no image files to apply the range to.
        DataError: if the images are not found, there are fewer than two classes, train or test is
            empty, only some images have a group, or the splits of the source separate a group.
    """
    fractions = None if split in (None, TEST_ON_VAL) else parse_split(str(split))
    limits = {} if limit is None else parse_limit(limit)
    intensity = None if intensity_range is None else IntensityRange.parse(intensity_range)
    images = _open(str(spec), intensity, group)
    for note in images.notes:
        _log.info("%s: %s", images.name, note, extra={"once": True})
    if split == TEST_ON_VAL:
        images = _test_on_val(images)
        _log.info("%s: %s", images.name, images.notes[-1], extra={"once": True})
    elif fractions is None and images.split == UNSPLIT:
        fractions = FRACTIONS
    if fractions is not None:
        images = _split(images, fractions, seed)
        if images.groups:
            _log.info("%s: %s", images.name, images.notes[-1], extra={"once": True})
    elif images.groups and not allow_group_leak:
        refuse_leak(images)
    path = user_path(str(spec))
    table = path if path.suffix.lower() == ".csv" and path.is_file() else None
    check_splits(images, table)
    return _limit(images, limits, seed) if limits else images


def _open(spec: str, intensity: IntensityRange | None, group: str | None) -> ImageSet:
    """Return the images of a source with their groups."""
    path = user_path(spec)
    is_table = not is_url(spec) and path.is_file() and path.suffix.lower() == ".csv"
    column = group if group and is_table and group.lower() in csv_columns(path) else None
    images = _open_source(spec, intensity, column, nested_groups=group == PARENT)
    if group and not column:
        images = assign_groups(images, group)
    if images.groups:
        check_groups(images)
    return images


def _open_source(
    spec: str, intensity: IntensityRange | None, column: str | None, *, nested_groups: bool
) -> ImageSet:
    if is_archive_spec(spec):
        return images_from_archives(spec, intensity)
    name = spec.partition(":")[0].strip()
    if name in SOURCES.names():
        if intensity is not None:
            raise SpecError(
                f"an intensity range applies to images in a folder or a CSV file, not to {name}: "
                "leave out --intensity-range"
            )
        images: ImageSet = SOURCES.make(spec)
        return images
    if is_url(spec):
        return images_from_url(spec, intensity, nested_groups=nested_groups)
    path = user_path(spec)
    if spec and path.is_dir():
        return images_from_folder(path, intensity, nested_groups=nested_groups)
    if path.is_file() and path.suffix.lower() == ".csv":
        return images_from_csv(path, intensity, column)
    raise DataError(
        f"{spec!r} is neither a folder nor a CSV file: "
        f"{unknown('data source', name, SOURCES.names())}"
    )


def _split(images: ImageSet, fractions: tuple[float, float, float], seed: int) -> ImageSet:
    rule = f"{format_split(fractions)}:seed={seed}"
    if images.multilabel:
        splits = iterative_split(targets_of(images), fractions, seed, images.groups)
        notes = (_shares(images, splits),) if images.groups else ()
        rule = f"{rule},groups" if images.groups else rule
        return replace(images, splits=splits, split=rule, notes=(*images.notes, *notes))
    if not images.groups:
        splits = stratified_split(images.labels, fractions, seed)
        return replace(images, splits=splits, split=rule)
    parts = sum(fraction > 0 for fraction in fractions)
    try:
        check_class_groups(images.labels, images.groups, images.classes, parts)
    except DataError as error:
        raise DataError(f"{images.name}: {error}") from error
    splits = group_split(images.labels, images.groups, fractions, seed)
    return replace(
        images,
        splits=splits,
        split=f"{rule},groups",
        notes=(*images.notes, _shares(images, splits)),
    )


def _shares(images: ImageSet, splits: NDArray[np.str_]) -> str:
    """Return the shares of a split that keeps groups together, which are those of whole groups."""
    parts = []
    for split in SPLITS:
        own = splits == split
        groups = {group for group, chosen in zip(images.groups, own, strict=True) if chosen}
        parts.append(f"{split} {int(own.sum())} images of {len(groups)} groups")
    return f"the split keeps groups together: {', '.join(parts)}"


def _test_on_val(images: ImageSet) -> ImageSet:
    """Return images whose val images are the test images; the note says so in every report.

    Raises:
        DataError: if there are test images, or no val images.
    """
    counts = {name: len(images.rows(name)) for name in SPLITS}
    if counts["test"]:
        raise DataError(
            f"{images.name} has {counts['test']} test images of its own: leave out --test-on val"
        )
    if not counts["val"]:
        raise DataError(f"{images.name} has no val images to test on: leave out --test-on val")
    splits = np.where(images.splits == "val", "test", images.splits)
    note = (
        f"the {counts['val']} val images are the test images; hyperparameters are chosen on a "
        "fifth of train"
    )
    return replace(images, splits=splits, notes=(*images.notes, note))


def _limit(images: ImageSet, limits: dict[str, int], seed: int) -> ImageSet:
    part = images.take(limit_rows(images, limits, seed))
    if images.multilabel:  # a limit below the number of labels leaves some of them out
        check_splits(part)
    return (
        part if part.split == "own" else replace(part, split=f"{part.split},{format_limit(limits)}")
    )


def check_splits(images: ImageSet, table: Path | None = None) -> None:
    """Raise DataError unless a classifier can be fitted to the images and evaluated on them.

    Args:
        images: the images.
        table: the CSV file that lists them, if there is one, for the error messages.
    """
    train_classes = np.unique(images.labels[images.rows("train")])
    if len(train_classes) == 1:
        only = images.classes[train_classes[0]]
        raise DataError(
            f"all train images of {images.name} are of class {only!r}: a classifier needs two "
            "classes or more"
        )
    for split in ("train", "test"):
        if not len(images.rows(split)):
            raise _empty_split(images, split)
    if images.multilabel:
        _check_train_labels(images, table)
        return
    for split in ("val", "test"):
        labels = images.labels[images.rows(split)]
        if len(labels) and not np.isin(labels, train_classes).any():
            raise DataError(
                f"no {split} image of {images.name} is of a class of the train images, but of "
                f"{images.classes[labels[0]]!r} and the like: sort them into folders of the same "
                "names, or make a new split with --split 70/15/15"
            )


def _check_train_labels(images: ImageSet, table: Path | None) -> None:
    """Raise DataError unless some train images have each label, and others do not have it."""
    targets, names = targets_of(images), label_names(images.classes)
    train = targets[images.rows("train")]
    for column, name in enumerate(names):
        having, rows = int(train[:, column].sum()), np.flatnonzero(targets[:, column])
        if having == len(train):
            raise DataError(
                f"all {having} train images of {images.name} have label {name!r}: add train images "
                "without it, or remove the label"
            )
        if having == 0 and not len(rows):
            raise DataError(
                f"--limit keeps no image of {images.name} with label {name!r}: raise it"
            )
        if having == 0:
            first = images.ids[rows[0]]
            where = f"{first} of {images.name}" if table is None else line_of(table, first)
            raise DataError(
                f"{where} has label {name!r}, which no train image has: add train images with it, "
                "remove the label, or make a new split with --split 70/15/15"
            )


def _empty_split(images: ImageSet, split: str) -> DataError:
    """Return the error for images without any to train on, or to test on."""
    missing = f"{images.name} has {len(images)} images, but none in {split}"
    if split == "test" and images.split != "own":
        return DataError(
            f"{missing}, since no class has enough: give each class at least two images, better "
            "ten or more"
        )
    fixes = ["add some", "make a new split with --split 70/15/15"]
    if split == "test" and len(images.rows("val")):
        fixes.insert(0, "test on the val images with --test-on val")
    return DataError(missing, fixes=fixes)


def digits() -> ImageSet:
    """Return the 1,797 handwritten 8x8 digits of scikit-learn, without splits.

    Source: Alpaydin and Kaynak (1998).
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=3)
    pixels.flags.writeable = False
    return ImageSet(
        name="digits",
        ids=tuple(f"{row:04d}" for row in range(len(pixels))),
        labels=data.target.astype(np.int64),
        classes=tuple(map(str, data.target_names)),
        splits=np.full(len(pixels), SPLITS[0]),
        split=UNSPLIT,
        load=pixels.__getitem__,
        key=lambda row: array_key(pixels[row]),
    )
