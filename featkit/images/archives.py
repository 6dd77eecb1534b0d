"""Image sets from tar files in the naming of WebDataset: ``KEY.jpg`` beside ``KEY.cls``.

Nothing is extracted: the headers are read once for an index of offsets, and the bytes of an image
directly from its place in the file.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path, PurePosixPath
from typing import IO, Any

from featkit.errors import DataError, DecodeError, visible
from featkit.images.base import ImageSet
from featkit.images.decode import MAX_BYTES
from featkit.images.files import ImageEntry, check_labels, from_entries, note_look_alikes
from featkit.images.intensity import IntensityRange
from featkit.images.names import is_image, is_system_file, normal_form, printable, split_of
from featkit.storage import open_file, parse_json, safe_name, user_path

PREFIX = "tar:"
"""Start of the spec of tar files."""

LABELS = ("cls", "json", "txt")
"""Endings of the members that may hold the label, in the order in which they are looked at."""

_LABEL_KEYS = ("label", "cls", "class")
"""Keys of a JSON member that may hold the label."""

_MAX_HEADER = 2**20
_MAX_LABEL = 2**20
"""Largest size of extended headers and of label members in bytes."""

_MAX_FILES = 100_000
_BLOCK = 512
_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"(\xb5/\xfd", "zstd"),
)
_RANGE = re.compile(r"\{([^{}]*)\}")
_WILDCARDS = re.compile(r"\{[^{}]*\}|\[[^]]*\]|[*?]")


@dataclass(frozen=True)
class _Member:
    """A file in a tar file: where its bytes are."""

    name: str
    offset: int
    size: int


@dataclass
class _Sample:
    """The members of one key, by their ending in lower case."""

    members: dict[str, _Member] = field(default_factory=dict)

    def image(self) -> _Member | None:
        """Return the member that is the image; None if there is none."""
        for ending, member in self.members.items():
            if _is_image_ending(ending):
                return member
        return None

    def images(self, *, has_labels: bool) -> list[_Member]:
        """Return the members that are images.

        Args:
            has_labels: whether the image's class is in a member beside it, so that the image must
                have the whole key as its name. In a packed folder ``photo.v1.jpg`` is an image too,
                unless there is a ``photo.jpg``, which it then belongs to.
        """
        named = [each for ending, each in self.members.items() if _is_image_ending(ending)]
        if named:
            return named
        members = [] if has_labels else list(self.members.values())
        return [member for member in members if is_image(member.name)]

    def unused(self, images: Sequence[_Member], *, has_labels: bool) -> list[str]:
        """Return the endings of members that are passed over.

        Beside an image they may hold its label, unless there are no labels.
        """
        if images and has_labels:
            return []
        return [f".{ending}" for ending, each in self.members.items() if each not in images]


def _is_image_ending(ending: str) -> bool:
    """Return whether an ending is that of the image: ``jpg``, but not ``seg.png`` beside it."""
    return "." not in ending and is_image(f"image.{ending}")


@dataclass(frozen=True)
class _Archive:
    """The index of a tar file.

    Attributes:
        path: the file.
        status: its size and time of last change when it was read.
        samples: by key, the path of the members up to the first dot of their names.
        labels: content of the label members, by name.
        passed_over: number of other entries by ending or description.
    """

    path: str
    status: tuple[int, int]
    samples: Mapping[str, _Sample]
    labels: Mapping[str, bytes]
    passed_over: Mapping[str, int]


def images_from_archives(spec: str, intensity: IntensityRange | None = None) -> ImageSet:
    """Return the images in tar files, such as the shards of WebDataset.

    Members of one key belong together: ``0001.jpg`` with ``0001.cls`` (number or name of the
    class), else ``0001.json`` (an object with ``label``, and maybe ``split`` and ``group``), else
    ``0001.txt`` (name of the class). Without any such member, the class is the folder of the image
    in the archive, the name of an image may have dots, and ``1.jpg`` and ``1.png`` are two
    images. The split is that of the JSON member, else that which the names of all files begin with,
    such as ``train-0001.tar``. Ids are ``FILE/KEY.jpg``.

    Args:
        spec: ``tar:PATTERN``: a path with ``*``, ``?``, ``[...]``, ``{0000..0009}`` or ``{a,b}``.
        intensity: see ``featkit.images.decode.decode``.

    Raises:
        DataError: naming file and member, if no file matches, a file is compressed, damaged or
            incomplete, a key occurs twice, or an image has no label.
    """
    paths = _matching(_pattern(spec))
    archives = [_index(path, *_status(path)) for path in paths]
    names = _names(paths)
    splits = _splits_of_files(paths)
    found = _Found([], [], Counter())
    has_labels = any(archive.labels for archive in archives)
    for archive, name, split in zip(archives, names, splits, strict=True):
        _collect(archive, name, split, found, has_labels=has_labels)
    entries, places, passed_over = found.entries, found.places, found.passed_over
    if not entries:
        raise DataError(
            f"no image in {len(paths)} tar files, such as {paths[0]}: members must be named "
            "KEY.jpg (or another image format) and KEY.cls"
        )
    _check_entries(entries)
    check_labels(spec, [entry.label for entry in entries])
    notes = note_look_alikes(entry.id for entry in entries)
    if passed_over:
        listed = ", ".join(f"{count} {ending}" for ending, count in passed_over.most_common(3))
        notes.append(
            f"{passed_over.total()} other members of the tar files are passed over ({listed})"
        )
    return from_entries(
        archive_name(spec),
        entries,
        classes=_order(entries),
        notes=notes,
        intensity=intensity,
        read=lambda row: _read(*places[row]),
        members=tuple(printable(member.name) for _, member in places),
    )


@dataclass
class _Found:
    """The images of all files."""

    entries: list[ImageEntry]
    places: list[tuple[_Archive, _Member]]
    passed_over: Counter[str]


def _collect(archive: _Archive, name: str, split: str, found: _Found, *, has_labels: bool) -> None:
    """Add the images of a file to those that were found.

    Args:
        archive: the index of the file.
        name: of the file, for ids.
        split: of images without a split of their own; empty for none.
        found: where they are added.
        has_labels: whether any file has a member with a label.
    """
    found.passed_over.update(archive.passed_over)
    for key, sample in archive.samples.items():
        images = sample.images(has_labels=has_labels)
        found.passed_over.update(sample.unused(images, has_labels=has_labels))
        if not images:
            continue
        if has_labels:
            _refuse_two_images(archive.path, key, images)
        entry = _entry(archive, key, sample, has_labels=has_labels)
        for image in images:
            image_id = f"{name}/{printable(image.name)}"
            found.entries.append(
                entry._replace(id=image_id, path=archive.path, split=entry.split or split)
            )
            found.places.append((archive, image))


def is_archive_spec(spec: str) -> bool:
    """Return whether a spec names tar files."""
    return spec.strip().startswith(PREFIX)


def _pattern(spec: str) -> str:
    return spec.strip().removeprefix(PREFIX).strip()


def absolute_spec(spec: str) -> str:
    """Return a spec of tar files with an absolute path."""
    return f"{PREFIX}{user_path(_pattern(spec)).absolute()}"


def archives_exist(spec: str) -> bool:
    """Return whether any file matches a spec of tar files."""
    try:
        return bool(_matching(_pattern(spec)))
    except DataError:
        return False


def archive_name(spec: str) -> str:
    """Return a name for the images: that of the files without wildcards, else of their folder."""
    path = user_path(_pattern(spec))
    stem = _WILDCARDS.sub("", path.name.removesuffix(".tar")).strip(" -_.")
    return safe_name(stem or path.absolute().parent.name or "tar")


# Files --------------------------------------------------------------------------------------------


def _matching(pattern: str) -> list[str]:
    """Return the sorted paths of the files that a pattern matches.

    Raises:
        DataError: if there is none, or a file of a range is missing.
    """
    if not pattern:
        raise DataError("tar: names no file: write tar:PATTERN, such as 'tar:photos-*.tar'")
    found: dict[str, None] = {}
    for each in _expand(str(user_path(pattern))):
        matching = [each] if Path(each).is_file() else _glob(each)
        if not matching:
            raise DataError(
                f"no file matches {each}: correct the pattern of tar:{pattern}; it is relative to "
                "the working directory"
            )
        found |= dict.fromkeys(matching)
    return list(found)


def _glob(pattern: str) -> list[str]:
    path = Path(pattern).absolute()
    try:
        found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        return sorted(str(each) for each in found if each.is_file())
    except (ValueError, OSError) as error:
        raise DataError(f"{pattern} is not a pattern of files ({error}): correct it") from error


def _expand(pattern: str) -> Iterator[str]:
    """Yield the patterns without braces, as the shell does for ``{0..3}`` and ``{a,b}``.

    Raises:
        DataError: if they stand for too many files.
    """
    parts = _RANGE.split(pattern)
    choices = [_choices(part) if place % 2 else [part] for place, part in enumerate(parts)]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total > _MAX_FILES:
        raise DataError(
            f"{pattern} stands for {total:,} files, more than {_MAX_FILES:,}: use fewer "
            "and larger files"
        )
    for combination in product(*choices):
        yield "".join(combination)


def _choices(text: str) -> Sequence[str]:
    numbers = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", text)
    if numbers is None:
        return text.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not first <= last < first + _MAX_FILES + 1:
        raise DataError(f"{{{text}}} is not a range of up to {_MAX_FILES:,} files: correct it")
    return [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]


def _status(path: str) -> tuple[int, int]:
    """Return size and time of the last change; raises DataError if the file cannot be read."""
    try:
        with open_file(path) as file:
            found = os.fstat(file.fileno())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check the file") from error
    return found.st_size, found.st_mtime_ns


def _names(paths: Sequence[str]) -> list[str]:
    """Return the shortest different names of files: relative to their common folder."""
    absolute = [str(Path(path).absolute()) for path in paths]
    try:
        folder = os.path.commonpath([os.path.dirname(path) for path in absolute])  # noqa: PTH120
    except ValueError:  # on several drives of Windows
        return [printable(Path(path).as_posix()) for path in absolute]
    return [printable(Path(path).relative_to(folder).as_posix()) for path in absolute]


def _splits_of_files(paths: Sequence[str]) -> list[str]:
    """Return the split that each file's name begins with; nothing unless all begin with one."""
    first = [re.split(r"[^a-zA-Z]", Path(path).name, maxsplit=1)[0] for path in paths]
    found = [split_of(word, set(first)) if word else None for word in first]
    splits = [split or "" for split in found]
    return splits if all(splits) else [""] * len(paths)


# Index --------------------------------------------------------------------------------------------


class _Headers:
    """A file whose reads are limited: a header may claim any size.

    Args:
        file: the opened tar file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; raises tarfile.ReadError for more than a header may have."""
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"an extended header of {size:,} bytes")
        return self._file.read(size)


@lru_cache(maxsize=4096)
def _index(path: str, size: int, changed: int) -> _Archive:
    """Return the index of a tar file; it is kept as long as the file does not change.

    Raises:
        DataError: if the file is compressed, damaged or incomplete, or a member occurs twice.
    """
    samples: dict[str, _Sample] = {}
    labels: dict[str, bytes] = {}
    passed_over: Counter[str] = Counter()
    last = ""
    try:
        with open_file(path) as file:
            _refuse_compressed(path, file)
            with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
                end = 0
                while (info := archive.next()) is not None:
                    # The names are kept here; a list of all headers would need much more memory.
                    archive.members = []
                    if info.size < 0 or archive.offset <= end:
                        raise tarfile.ReadError("a header with a negative size")
                    last, end = info.name, archive.offset
                    if info.isdir():
                        continue
                    if not info.isreg() or info.issparse():
                        passed_over["links or special files"] += 1
                        continue
                    member = _Member(info.name, info.offset_data, info.size)
                    _check_end(path, member, size)
                    _add(path, member, samples, passed_over)
                end = archive.offset
            _check_marker(path, file, end, last)
            for sample in samples.values():
                _read_labels(path, file, sample, labels)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path} is damaged or incomplete{_after(last)} ({reason}): copy or write it again"
        ) from error
    return _Archive(path, (size, changed), samples, labels, passed_over)


def _after(last: str) -> str:
    return f" after member {visible(printable(last))!r}" if last else ""


def _refuse_compressed(path: str, file: IO[bytes]) -> None:
    beginning = file.read(8)
    file.seek(0)
    for signature, name in _COMPRESSED:
        if beginning.startswith(signature):
            raise DataError(
                f"{path} is compressed with {name}, so that no image in it can be read by itself: "
                "decompress it; images are compressed already"
            )


def _check_end(path: str, member: _Member, size: int) -> None:
    if member.offset + member.size > size:
        raise DataError(
            f"{path} is incomplete: member {visible(printable(member.name))!r} ends after the end "
            "of the file; copy or write it again"
        )


def _check_marker(path: str, file: IO[bytes], end: int, last: str) -> None:
    """Raise DataError unless zeros follow the last member: tarfile takes damage for the end."""
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise DataError(
            f"{path} is damaged or incomplete{_after(last)}: neither a member nor the end of the "
            "archive follows; copy or write it again"
        )


def _add(
    path: str, member: _Member, samples: dict[str, _Sample], passed_over: Counter[str]
) -> None:
    name = PurePosixPath(member.name).name
    if not name or name.startswith(".") or is_system_file(name):
        passed_over["hidden files"] += 1
        return
    stem, _, ending = name.partition(".")
    key = member.name[: len(member.name) - len(name)] + stem
    ending = ending.lower()
    sample = samples.setdefault(key, _Sample())
    if ending in sample.members:
        raise DataError(
            f"{path} has a second member {visible(printable(member.name))!r} (upper and lower case "
            "of an ending are the same): write it again with each member once"
        )
    sample.members[ending] = member


def _refuse_two_images(path: str, key: str, images: Sequence[_Member]) -> None:
    """Raise DataError if several images have one key, and so the same label members."""
    if len(images) > 1:
        first, second = (visible(printable(image.name)) for image in images[:2])
        raise DataError(
            f"{path} has {len(images)} images of key {visible(printable(key))!r}, {first!r} and "
            f"{second!r}: a label belongs to one image, so give each image a key (its name up to "
            "the first dot) and a label of its own, or leave out all but one"
        )


def _read_labels(path: str, file: IO[bytes], sample: _Sample, labels: dict[str, bytes]) -> None:
    """Read the first label member of an image, and its JSON member."""
    if sample.image() is None:
        return
    for ending in LABELS:
        member = sample.members.get(ending)
        if member is None:
            continue
        if member.size > _MAX_LABEL:
            raise DataError(
                f"{path}: member {visible(printable(member.name))!r} is too large for a label "
                f"({member.size / 1e6:.1f} MB): it must hold the class only"
            )
        file.seek(member.offset)
        labels[member.name] = file.read(member.size)


# Labels -------------------------------------------------------------------------------------------


def _entry(archive: _Archive, key: str, sample: _Sample, *, has_labels: bool) -> ImageEntry:
    """Return label, split and group of an image."""
    values: dict[str, str] = {}
    for ending in LABELS:
        member = sample.members.get(ending)
        if member is None:
            continue
        found = _label_values(archive, member, ending)
        values = found | values
    if not has_labels:
        values = {"label": normal_form(printable(PurePosixPath(key).parent.name))}
    if not values.get("label"):
        problem = "has no label" if has_labels else "lies in no folder that could be its class"
        raise DataError(
            f"{archive.path}: the image of key {visible(printable(key))!r} {problem}: add a member "
            f"{visible(printable(key))}.cls with its class"
        )
    split = values.get("split", "")
    if split:
        known = split_of(split, {split})
        if known is None:
            raise DataError(
                f"{archive.path}: the image of key {visible(printable(key))!r} has an unknown "
                f"split {split!r}: known: train, val, test and their usual names"
            )
        split = known
    return ImageEntry("", "", values["label"], split, group=values.get("group", ""))


def _label_values(archive: _Archive, member: _Member, ending: str) -> dict[str, str]:
    """Return ``label``, ``split`` and ``group`` of a member; raises DataError."""
    where = f"{archive.path}: member {visible(printable(member.name))!r}"
    try:
        text = archive.labels[member.name].decode("utf-8-sig")
        values: Any = parse_json(text) if ending == "json" else {"label": text}
    except (UnicodeDecodeError, json.JSONDecodeError, ValueError) as error:
        kind = "JSON" if ending == "json" else "UTF-8 text"
        raise DataError(f"{where} is not {kind}: write it again") from error
    if not isinstance(values, dict):
        raise DataError(f"{where} is not a JSON object with a label: write it again")
    label = next((values[name] for name in _LABEL_KEYS if name in values), "")
    found = {"label": label, "split": values.get("split", ""), "group": values.get("group", "")}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DataError(f"{where} has a {name} that is neither text nor a whole number")
        found[name] = normal_form(str(value))
    return {name: str(value) for name, value in found.items() if value != ""}


def _check_entries(entries: Sequence[ImageEntry]) -> None:
    """Raise DataError if an id occurs twice, or only some images have a split or a group."""
    (name, count), *_ = Counter(entry.id for entry in entries).most_common(1)
    if count > 1:
        raise DataError(f"{visible(name)!r} stands for {count} images: rename the members")
    for kind in ("split", "group"):
        without = [entry.id for entry in entries if not getattr(entry, kind)]
        if without and len(without) < len(entries):
            raise DataError(
                f"{len(without)} of {len(entries)} images have no {kind}, such as {without[0]!r}, "
                f"and others have one: give each image a {kind}, or none"
            )


def _order(entries: Sequence[ImageEntry]) -> list[str] | None:
    """Return the classes in the order of their numbers, if all are numbers."""
    labels = {entry.label for entry in entries}
    if all(re.fullmatch(r"\d{1,9}", label, re.ASCII) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return None


def _read(archive: _Archive, member: _Member) -> bytes:
    """Return the bytes of an image.

    Raises:
        DecodeError: if it is too large, or the file cannot be read or has changed.
    """
    where = f"{archive.path}: member {visible(printable(member.name))!r}"
    if member.size > MAX_BYTES:
        raise DecodeError(
            f"{where} of {member.size / 1e6:,.0f} MB is larger than the limit of "
            f"{MAX_BYTES / 1e6:,.0f} MB: remove it, or skip such images with --on-error skip"
        )
    try:
        with open_file(archive.path) as file:
            found = os.fstat(file.fileno())
            file.seek(member.offset)
            data = file.read(member.size)
    except OSError as error:
        raise DecodeError(f"{where} cannot be read: {error.strerror}; check the file") from error
    if (found.st_size, found.st_mtime_ns) != archive.status or len(data) != member.size:
        raise DecodeError(
            f"{where} cannot be read: the file was changed while it was in use; start again when "
            "nothing writes to it"
        )
    return data
