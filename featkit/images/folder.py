"""Image sets from folders: which folders are splits, which are classes, and what is passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from featkit.errors import DataError
from featkit.images.base import ImageSet
from featkit.images.files import ImageEntry, check_labels, from_entries, note_look_alikes
from featkit.images.intensity import IntensityRange
from featkit.images.names import (
    HEIF,
    ending,
    image_endings,
    is_foreign,
    is_image,
    is_system_file,
    normal_form,
    plain_splits,
    printable,
    split_folders,
    unread_images,
)
from featkit.storage import safe_name

_LISTED = 3
"""Number of names in a message."""


@dataclass
class Folder:
    """A folder and everything below it.

    Attributes:
        name: its name.
        path: its path.
        prefix: relative path from the root of the image set, with a slash at the end.
        linked: whether it is a symbolic link; its content is then unknown until ``open``.
        images: path of each image in it, by name.
        folders: its subfolders, sorted.
        passed_over: number of other entries by ending or description.
    """

    name: str
    path: str
    prefix: str = ""
    linked: bool = False
    images: dict[str, str] = field(default_factory=dict)
    folders: list[Folder] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, root: Path) -> Folder:
        """Read a folder with its subfolders, except for linked ones, where links may be cyclic.

        Raises:
            DataError: if a folder cannot be listed.
        """
        folder = cls(root.name, str(root))
        folder._read_below()
        return folder

    def open(self) -> Folder:
        """Return the folder with its content, also if it is a link to a folder elsewhere."""
        if self.linked and Path(self.path).resolve() not in Path(self.path).absolute().parents:
            self.linked = False
            self._read_below()
        return self

    def _read_below(self) -> None:
        pending = [self]
        while pending:
            folder = pending.pop()
            folder._read()
            pending.extend(below for below in folder.folders if not below.linked)

    def _read(self) -> None:
        for entry in _scan(self.path):
            is_folder = _is_folder(entry)
            linked = is_folder and entry.is_symlink()
            self.add(entry.name, entry.path, is_folder=is_folder, linked=linked)

    def add(self, name: str, path: str, *, is_folder: bool, linked: bool = False) -> None:
        """Add a file or a folder, or count it as passed over.

        Args:
            name: its name; those of a folder are added in order.
            path: its path or URL.
            is_folder: whether it is a folder.
            linked: whether it is a symbolic link to a folder.
        """
        if is_folder:
            self._add_folder(name, path, linked)
        elif name[0] == ".":
            # "._1.jpg" holds macOS metadata of 1.jpg.
            if is_image(name) and not name.startswith("._"):
                self.passed_over[f"hidden {ending(name)}"] += 1
        elif is_image(name):
            self.images[name] = path
        elif not is_system_file(name):
            self.passed_over[ending(name)] += 1

    def _add_folder(self, name: str, path: str, linked: bool) -> None:
        if is_foreign(name):
            self.passed_over[f"{name}/"] += 1
        elif name[0] != ".":
            self.folders.append(Folder(name, path, f"{self.prefix}{name}/", linked))

    def walk(self) -> Iterator[Folder]:
        """Yield this folder and all below it, without linked ones."""
        pending = [self]
        while pending:
            folder = pending.pop()
            yield folder
            pending.extend(below for below in folder.folders if not below.linked)

    @property
    def has_images(self) -> bool:
        """Whether there is an image in it or below it."""
        return any(folder.images for folder in self.walk())

    def open_folders(self) -> tuple[list[Folder], list[Folder]]:
        """Open linked subfolders; return the subfolders with images below them, and the others."""
        full: list[Folder] = []
        empty: list[Folder] = []
        for folder in self.folders:
            (full if folder.open().has_images else empty).append(folder)
        return full, empty

    def names_inside(self) -> set[str]:
        """Return the names of the subfolders with images below them, without linked ones."""
        return {folder.name for folder in self.folders if folder.has_images}

    def all_passed_over(self) -> Counter[str]:
        """Return the number of entries that are passed over in it and below it."""
        counts: Counter[str] = Counter()
        for folder in self.walk():
            counts.update(folder.passed_over)
            counts["linked folders"] += sum(below.linked for below in folder.folders)
        return +counts


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it as an image says so
        return False


def _scan(base: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(base) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{base} cannot be listed: {error.strerror}; check the path and its permissions"
        ) from error


def describe_passed_over(counts: Mapping[str, int]) -> str:
    """Return counts by ending as text; an empty string if nothing was passed over."""
    if not counts:
        return ""
    listed = ", ".join(f"{number} {printable(name)}" for name, number in sorted(counts.items()))
    hint = ""
    if any(name in HEIF for name in counts):
        hint = "; pip install 'featkit[heif]' to read .heic"
    return f"passed over: {listed}{hint}"


# Files of unknown class ---------------------------------------------------------------------------


def list_image_files(root: Path) -> tuple[list[str], str]:
    """Return the paths of all images in a folder and below it, sorted, and what is passed over.

    Raises:
        DataError: if there are none.
    """
    top = Folder.read(root)
    passed_over = describe_passed_over(top.all_passed_over())
    found = sorted(path for folder in top.walk() for path in folder.images.values())
    if not found:
        because = f"; {passed_over}" if passed_over else ""
        raise DataError(
            f"{root} contains no images (known endings: {' '.join(image_endings())}{because})"
        )
    return found, passed_over


# Classes and splits -------------------------------------------------------------------------------


def images_from_folder(
    root: Path, intensity: IntensityRange | None = None, *, nested_groups: bool = False
) -> ImageSet:
    """Return the images of a folder with one subfolder for each class, sorted by id.

    The class folders are in ``root``, or in split folders in it such as ``train`` and ``test`` or
    ``seg_train`` and ``seg_test``, see ``featkit.images.names.split_folders``. Split folders may
    also be inside the class folders. A folder that holds nothing but one other folder is skipped.

    Hidden files and files that are not images by their ending are passed over, folders of the
    system such as ``@eaDir`` and ``__MACOSX`` too, and class folders without any image; ``notes``
    counts them. A symbolic link to a folder is followed if it is a class or split folder, but not
    inside one, where links may be cyclic. Class names are in normal form: folders whose names
    differ only in invisible ways are one class.

    Args:
        root: the folder.
        intensity: see ``featkit.images.decode.decode``.
        nested_groups: whether the folders in the class folders are known to be groups of images,
            so that the same names in several classes do not make it unclear which are the classes.

    Raises:
        DataError: if there are no class folders, if a class folder holds images that cannot be read
            and no others, or if it is not clear which folders are the classes.
    """
    name = safe_name(root.resolve().name)
    return images_below(Folder.read(root), name, intensity, nested_groups=nested_groups)


def images_below(
    top: Folder,
    name: str,
    intensity: IntensityRange | None,
    *,
    nested_groups: bool,
    change: Callable[[ImageEntry], ImageEntry] = lambda entry: entry,
) -> ImageSet:
    """Return the images of a folder that was read, see ``images_from_folder``.

    Args:
        top: the folder.
        name: of the image set.
        intensity: as for ``images_from_folder``.
        nested_groups: the same.
        change: applied to each image, such as one at a URL, which is downloaded.
    """
    reader = _LayoutReader(nested_groups)
    entries = reader.read(top)
    check_labels(top.path, [entry.label for entry in entries])
    reader.notes += note_look_alikes(entry.id for entry in entries)
    passed_over = describe_passed_over(top.all_passed_over() + reader.outside)
    notes = ([passed_over] if passed_over else []) + reader.notes
    changed = [change(entry) for entry in sorted(entries)]
    return from_entries(name, changed, notes=notes, intensity=intensity)


class _LayoutReader:
    """Find splits and classes of a folder.

    Attributes:
        notes: what was noticed, one line each.
        outside: number of images outside the class folders, by description.
    """

    def __init__(self, nested_groups: bool) -> None:
        self.nested_groups = nested_groups
        self.notes: list[str] = []
        self.outside: Counter[str] = Counter()

    def read(self, top: Folder) -> list[ImageEntry]:
        """Return the images of all classes."""
        base = self._descend(top)
        full, empty = base.open_folders()
        splits = split_folders(folder.name for folder in full)
        if splits:
            self._pass_over(base, empty)
            return self._read_splits(full, splits)
        self._refuse_mixture(base, full)
        classes = self._class_folders(base)
        inside = plain_splits(set[str]().union(*(kind.names_inside() for kind in classes)))
        if "train" in inside.values() and len(set(inside.values())) > 1:
            return self._read_splits_inside(classes, inside)
        self._check_classes(base, classes)
        return self._entries(classes, "")

    def _descend(self, top: Folder) -> Folder:
        """Return the first folder below ``top`` that holds more than one folder of folders."""
        base = top
        while True:
            inner = _only_folder_of_folders(base)
            if inner is None or split_folders([inner.name]):
                break
            base = inner
        if base is not top:
            self.notes.append(f"class folders are those in {printable(base.prefix)}")
        return base

    def _read_splits(self, folders: list[Folder], splits: Mapping[str, str]) -> list[ImageEntry]:
        labelled = [folder for folder in folders if splits[folder.name] != "unlabelled"]
        self._count_unlabelled([folder for folder in folders if folder not in labelled])
        # Such as seg_train/seg_train/<class>: the same extra folder in every split.
        inner = [_only_folder_of_folders(folder) for folder in labelled]
        bases = [folder for folder in inner if folder is not None]
        if len(bases) == len(labelled):
            listed = ", ".join(printable(base.prefix) for base in bases)
            self.notes.append(f"class folders are those in {listed}")
        else:
            bases = labelled
        entries: list[ImageEntry] = []
        for folder, base in zip(labelled, bases, strict=True):
            entries += self._entries(self._class_folders(base), splits[folder.name])
        return entries

    def _count_unlabelled(self, folders: list[Folder]) -> None:
        for folder in folders:
            count = sum(len(below.images) for below in folder.walk())
            self.outside[f"unlabelled in {folder.name}"] += count

    def _read_splits_inside(
        self, classes: list[Folder], splits: Mapping[str, str]
    ) -> list[ImageEntry]:
        """Return the images of ``<class>/<split>/*``."""
        entries: list[ImageEntry] = []
        for kind in classes:
            others = sorted(kind.names_inside() - splits.keys())
            if others or kind.images:
                named = ", ".join(sorted(splits))
                raise DataError(
                    f"{kind.path} contains images beside its split folders ({named}): "
                    "move them into one of these folders, or list the images in a CSV file with "
                    "path,label,split"
                )
            for folder in kind.folders:
                if folder.name in splits:
                    entries += _entries_below(folder, kind.name, splits[folder.name])
        return entries

    def _class_folders(self, base: Folder) -> list[Folder]:
        full, empty = base.open_folders()
        if full:
            for folder in empty:
                _refuse_unread(folder)
            self._pass_over(base, empty)
            return full
        if base.images:
            raise DataError(
                f"{base.path} contains images but no class folders: sort them into "
                f"{base.path.rstrip('/')}/<class>"
            )
        passed_over = describe_passed_over(base.all_passed_over())
        because = f" ({passed_over})" if passed_over else ""
        raise DataError(
            f"{base.path} contains no images{because}: expected a folder for each class"
        )

    def _pass_over(self, base: Folder, empty: list[Folder]) -> None:
        """Count what is beside class or split folders."""
        if base.images:
            self.outside["images outside class folders"] += len(base.images)
        if empty:
            kind = "folder" if len(empty) == 1 else "folders"
            names = ", ".join(printable(folder.name) for folder in empty[:_LISTED])
            more = ", ..." if len(empty) > _LISTED else ""
            self.notes.append(f"{len(empty)} {kind} without images: {names}{more}")

    def _refuse_mixture(self, base: Folder, full: list[Folder]) -> None:
        splits = plain_splits([folder.name for folder in full])
        if "train" in splits.values() and len(set(splits.values())) > 1:
            others = sorted(folder.name for folder in full if folder.name not in splits)
            raise DataError(
                f"{base.path} contains split folders ({', '.join(sorted(splits))}) next to other "
                "folders "
                f"({', '.join(map(printable, others))}): move the other folders away, or move the "
                "class folders of all splits one level up"
            )

    def _check_classes(self, base: Folder, classes: list[Folder]) -> None:
        """Refuse folders that hold the same folders and no image: those are more likely classes."""
        if len(classes) < 2 or any(kind.images for kind in classes):
            return
        held = {kind.name: kind.names_inside() for kind in classes}
        counts = Counter(name for names in held.values() for name in names)
        shared = sorted(name for name, number in counts.items() if number > 1)
        in_all = all(names.intersection(shared) for names in held.values())
        common = sum(counts[name] for name in shared)
        names = ", ".join(map(printable, list(held)[:_LISTED]))
        below = ", ".join(map(printable, shared[:_LISTED]))
        unclear = in_all and len(counts) > 1 and 2 * common >= counts.total()
        if unclear and not self.nested_groups:
            raise DataError(
                f"{base.path}: it is not clear whether the classes are {names}, which hold no "
                f"images themselves, or the folders of the same names in them ({below}): give one "
                "of these folders alone, or list the images in a CSV file with path,label[,split]; "
                "if they are groups of images, such as patients, use --group parent"
            )
        self.notes.append(f"all images are in subfolders of the class folders ({names})")

    def _entries(self, classes: list[Folder], split: str) -> list[ImageEntry]:
        entries: list[ImageEntry] = []
        names: dict[str, list[str]] = {}
        for kind in classes:
            entries += _entries_below(kind, kind.name, split)
            names.setdefault(normal_form(kind.name), []).append(kind.name)
        for label, folders in names.items():
            if len(folders) > 1:
                self.notes.append(
                    f"{len(folders)} folders are class {label!r}: their names differ only in "
                    "invisible characters, spaces or Unicode form"
                )
        return entries


def _only_folder_of_folders(base: Folder) -> Folder | None:
    """Return the only folder with images in ``base``, if there are no images beside or in it."""
    if base.images:
        return None
    full, _ = base.open_folders()
    if len(full) != 1 or full[0].images:
        return None
    return full[0]


def _refuse_unread(folder: Folder) -> None:
    """Refuse a class folder that holds images of unknown formats only: the class would vanish."""
    unread = unread_images(folder.all_passed_over())
    if unread:
        raise DataError(
            f"{folder.path} contains only images that featkit does not read "
            f"({describe_passed_over(unread)}): convert them, or remove the folder"
        )


def _entries_below(kind: Folder, name: str, split: str) -> list[ImageEntry]:
    """Return the images of a class folder and of its subfolders."""
    label = normal_form(name)
    entries = []
    for folder in kind.walk():
        for image, path in folder.images.items():
            entries.append(ImageEntry(printable(folder.prefix + image), path, label, split))
    return entries
