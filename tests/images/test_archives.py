"""Image sets from tar files."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featkit.embeddings.index import indexed
from featkit.errors import DataError, DecodeError
from featkit.images import load_images
from featkit.images.archives import absolute_spec, archives_exist


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(
    path: Path, members: Mapping[str, bytes] | Sequence[tuple[str, bytes]], **options: object
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = members.items() if isinstance(members, Mapping) else members
    with tarfile.open(path, "w", **options) as archive:  # type: ignore[call-overload]
        for name, data in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shard(path: Path, start: int, count: int = 8) -> Path:
    """Write images of two classes, by number, with their class in KEY.cls."""
    members = {}
    for number in range(start, start + count):
        members[f"{number:04}.png"] = png(number)
        members[f"{number:04}.cls"] = b"%d" % (number % 2)
    return write_tar(path, members)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(3):
        shard(tmp_path / f"photos-{number:02}.tar", 8 * number)
    return tmp_path


@pytest.mark.parametrize("pattern", ["photos-*.tar", "photos-{00..02}.tar", "photos-0{0,1,2}.tar"])
def test_shards_are_one_image_set(shards: Path, pattern: str) -> None:
    """Classes in the order of their numbers, pixels from the right place, ids with the file."""
    images = load_images(f"tar:{shards}/{pattern}")
    assert images.name in {"photos", "photos-0"}
    assert len(images) == 24
    assert images.classes == ("0", "1")
    assert images.ids[9] == "photos-01.tar/0009.png"
    assert images.labels.tolist() == [0, 1] * 12
    for row in (23, 0, 9):
        pixels, key = images.load_with_key(row)
        assert pixels.shape == (4, 5, 3)
        assert (pixels == row).all()
        assert key == images.key(row)
    assert images.take(np.array([9, 3])).load(0)[0, 0, 0] == 9
    assert not images.files


def test_keys_are_those_of_the_same_files_in_a_folder(shards: Path, tmp_path: Path) -> None:
    """So that features are found again when a folder is packed."""
    images = load_images(f"tar:{shards}/photos-00.tar")
    for number in range(8):
        path = tmp_path / "folder" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    folder = load_images(tmp_path / "folder")
    keys = {folder.key(row) for row in range(8)}
    assert {images.key(row) for row in range(8)} == keys


def test_the_index_of_files_remembers_members_separately(shards: Path, tmp_path: Path) -> None:
    """Keys of one tar file are not confused, and found again."""
    images = load_images(f"tar:{shards}/*.tar")
    expected = [images.key(row) for row in range(24)]
    (tmp_path / "cache").mkdir()
    for _ in range(2):
        with indexed(images, tmp_path / "cache") as found:
            assert [found.key(row) for row in range(24)] == expected
    part = images.take(np.array([5, 7]))
    with indexed(part, tmp_path / "cache") as found:
        assert [found.key(0), found.key(1)] == [expected[5], expected[7]]


def test_json_members_may_have_split_and_group(tmp_path: Path) -> None:
    """Names of classes are text then, in the order of the alphabet."""
    members: dict[str, bytes] = {}
    for number in range(12):
        facts = {"label": ["cat", "dog"][number % 2], "group": f"p{number // 2}"}
        facts["split"] = "testing" if number >= 8 else "training"
        members[f"a/{number}.png"] = png(number)
        members[f"a/{number}.json"] = json.dumps(facts).encode()
    images = load_images(f"tar:{write_tar(tmp_path / 'x.tar', members)}")
    assert images.classes == ("cat", "dog")
    assert images.splits.tolist() == ["train"] * 8 + ["test"] * 4
    assert images.groups[:3] == ("p0", "p0", "p1")
    assert images.split == "own"


def test_splits_are_those_that_the_names_of_the_files_begin_with(tmp_path: Path) -> None:
    """As WebDataset's shards are named, if all of them do."""
    for place, name in enumerate(("train-000", "train-001", "val-000", "test-000")):
        shard(tmp_path / f"{name}.tar", 8 * place)
    images = load_images(f"tar:{tmp_path}/*.tar")
    assert images.splits[[0, 8]].tolist() == ["test", "train"]
    assert [len(images.rows(split)) for split in ("train", "val", "test")] == [16, 8, 8]
    shard(tmp_path / "more.tar", 100)
    assert load_images(f"tar:{tmp_path}/*.tar").split != "own"


def test_text_and_folders_are_labels_too(tmp_path: Path) -> None:
    """KEY.txt without KEY.cls; folders if there is no member with a label at all."""
    texts: dict[str, bytes] = {}
    folders: dict[str, bytes] = {}
    for number in range(8):
        label = ["cat", "dog"][number % 2]
        texts |= {f"{number}.png": png(number), f"{number}.txt": f" {label}\n".encode()}
        folders[f"data/{label}/{number}.PNG"] = png(number)
    assert load_images(f"tar:{write_tar(tmp_path / 'texts.tar', texts)}").classes == ("cat", "dog")
    images = load_images(f"tar:{write_tar(tmp_path / 'folders.tar', folders)}")
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 1] * 4


def test_names_of_images_in_packed_folders_may_have_dots(tmp_path: Path) -> None:
    """They are the images of the unpacked folder, but for those beside an image of the same key."""
    members = {}
    for label in ("cat", "dog"):
        for number in range(6):
            members[f"{label}/photo.v{number}.png"] = png(number)
        members[f"{label}/other.png"] = png(9)
        members[f"{label}/other.seg.png"] = png(10)
    images = load_images(f"tar:{write_tar(tmp_path / 'a.tar', members)}")
    expected = [f"a.tar/{name}" for name in members if "seg" not in name]
    assert sorted(images.ids) == sorted(expected)
    row = images.ids.index("a.tar/dog/photo.v3.png")
    assert images.load(row)[0, 0, 0] == 3
    assert images.classes[images.labels[row]] == "dog"
    assert "2 other members of the tar files are passed over (2 .seg.png)" in images.notes
    labelled = {**members, "cat/photo.cls": b"cat", "cat/other.cls": b"cat"}
    labelled |= {"dog/other.cls": b"dog", "dog/more.cls": b"dog", "dog/more.png": png(1)}
    with_labels = load_images(f"tar:{write_tar(tmp_path / 'b.tar', labelled)}", split="50/0/50")
    assert not any("photo" in name for name in with_labels.ids)


def test_other_members_are_passed_over_and_counted(tmp_path: Path) -> None:
    """Masks, files of systems, links: nothing outside of the archive is ever read."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(8):
            for name, data in (
                (f"{number}.png", png(number)),
                (f"{number}.cls", b"%d" % (number % 2)),
                (f"{number}.seg.png", png(0)),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        for name, kind in (("9.png", tarfile.SYMTYPE), ("10.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    images = load_images(f"tar:{path}")
    assert len(images) == 8
    assert "2 links or special files" in images.notes[0]


@pytest.mark.parametrize(
    "name", ["../../etc/1.png", "/abs/1.png", "a\nb\x1b[31m.png", "é\udcff.png"]
)
def test_hostile_names_are_names_only(tmp_path: Path, name: str) -> None:
    """Nothing is extracted; ids can be printed and encoded."""
    members = [(name, png(1)), (name.removesuffix(".png") + ".cls", b"1")]
    members += [("2.png", png(2)), ("2.cls", b"0"), ("3.png", png(3)), ("3.cls", b"1")]
    members += [("4.png", png(4)), ("4.cls", b"0")]
    before = sorted(tmp_path.parent.iterdir())
    images = load_images(f"tar:{write_tar(tmp_path / 'x.tar', members, format=tarfile.GNU_FORMAT)}")
    assert images.load(0)[0, 0, 0] == 1
    images.ids[0].encode()
    assert sorted(tmp_path.parent.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    """In a header, in an image, and between two members, where tarfile sees the end."""
    data = shard(tmp_path / "whole.tar", 0).read_bytes()
    end = len(data.rstrip(b"\0"))
    path = tmp_path / "cut.tar"
    for size in (0, 100, 512, 700, 1024, 1536, 2000, end - 1):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"cut.tar is (damaged or )?incomplete") as raised:
            load_images(f"tar:{path}")
        assert "\n" not in str(raised.value)


def test_a_damaged_header_is_refused_and_named_by_the_member_before(tmp_path: Path) -> None:
    """Not taken for the end, as tarfile does."""
    data = bytearray(shard(tmp_path / "x.tar", 0).read_bytes())
    data[4 * 1024 + 3] ^= 0x55
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"x.tar is damaged or incomplete after member '0001.cls'"):
        load_images(f"tar:{tmp_path / 'x.tar'}")


def test_a_header_that_claims_a_huge_size_costs_no_memory(tmp_path: Path) -> None:
    """Neither an image nor an extended header."""
    for kind in (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        info = tarfile.TarInfo("1.png")
        info.type, info.size = kind, 2**33
        header = info.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "x.tar").write_bytes(header + bytes(4096))
        with pytest.raises(DataError, match="incomplete"):
            load_images(f"tar:{tmp_path / 'x.tar'}")


def test_a_damaged_image_is_named_with_file_and_member(tmp_path: Path) -> None:
    """When it is read, so that it can be skipped."""
    members = {f"{number}.png": png(number) for number in range(8)} | {"3.png": b"no image"}
    members |= {f"{number}.cls": b"%d" % (number % 2) for number in range(8)}
    images = load_images(f"tar:{write_tar(tmp_path / 'x.tar', members)}")
    row = images.ids.index("x.tar/3.png")
    with pytest.raises(DecodeError, match=r"x.tar: member '3.png'"):
        images.load(row)


def test_a_file_that_changes_while_it_is_in_use_is_not_read(tmp_path: Path) -> None:
    images = load_images(f"tar:{shard(tmp_path / 'x.tar', 0)}")
    images.load(0)
    shard(tmp_path / "x.tar", 0, count=6)
    with pytest.raises(DecodeError, match="was changed while it was in use"):
        images.load(0)
    assert len(load_images(f"tar:{tmp_path / 'x.tar'}")) == 6


def test_images_of_one_stem_in_a_packed_folder_are_two_images(tmp_path: Path) -> None:
    """As in the same folder on a disk; only label members belong to one image of a key."""
    names = ["cat/1.png", "cat/1.jpg", "cat/2.v1.png", *(f"dog/{row}.png" for row in range(3))]
    members = [(name, png(number)) for number, name in enumerate(names)]
    images = load_images(f"tar:{write_tar(tmp_path / 'x.tar', members)}", split="50/0/50")
    assert sorted(images.ids) == sorted(f"x.tar/{name}" for name in names)
    row = images.ids.index("x.tar/cat/1.jpg")
    assert images.load(row).max() == 1
    assert images.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        pytest.param({"1.txt": b"cat"}, "no image in 1 tar files", id="no image"),
        pytest.param({"1.png": png(1)}, "lies in no folder", id="no label anywhere"),
        pytest.param(
            {"1.png": png(1), "1.cls": b"0", "2.png": png(2)}, "'2' has no label", id="no label"
        ),
        pytest.param({"1.png": png(1), "1.cls": b" "}, "'1' has no label", id="empty label"),
        pytest.param(
            {"1.png": png(1), "1.cls": b"0", "1.jpg": png(2)},
            "2 images of key '1', '1.png' and '1.jpg': a label belongs to one image",
            id="two images",
        ),
        pytest.param(
            [("1.png", png(1)), ("1.cls", b"0"), ("1.cls", b"1")],
            "second member '1.cls'",
            id="twice",
        ),
        pytest.param({"1.png": png(1), "1.json": b"{"}, "'1.json' is not JSON", id="json"),
        pytest.param({"1.png": png(1), "1.json": b"[1]"}, "is not a JSON object", id="list"),
        pytest.param(
            {"1.png": png(1), "1.json": b'{"label": [1]}'}, "neither text nor a whole", id="kind"
        ),
        pytest.param({"1.png": png(1), "1.cls": b"\xff"}, "'1.cls' is not UTF-8", id="bytes"),
        pytest.param(
            {"1.png": png(1), "1.cls": bytes(2**20 + 1)}, "too large for a label", id="label size"
        ),
        pytest.param(
            {"1.png": png(1), "1.json": b'{"label": 1, "split": "x"}'}, "unknown split 'x'", id="x"
        ),
        pytest.param(
            {
                "1.png": png(1),
                "1.json": b'{"label": 1, "group": "a"}',
                "2.png": png(2),
                "2.json": b'{"label": 2}',
            },
            "1 of 2 images have no group",
            id="some groups",
        ),
    ],
)
def test_bad_members_are_named_with_their_file(
    tmp_path: Path, members: Mapping[str, bytes], message: str
) -> None:
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=message) as raised:
        load_images(f"tar:{path}")
    assert str(path) in str(raised.value) or "x.tar/" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_and_compressed_files_are_refused(shards: Path) -> None:
    """Also a missing shard of a range."""
    with pytest.raises(DataError, match=r"no file matches .*photos-03.tar"):
        load_images(f"tar:{shards}/photos-{{00..03}}.tar")
    with pytest.raises(DataError, match="stands for 100,000,000 files"):
        load_images(f"tar:{shards}/photos-{{0000..9999}}{{0000..9999}}.tar")
    with pytest.raises(DataError, match="names no file"):
        load_images("tar:")
    packed = shards / "x.tar"
    packed.write_bytes(gzip.compress((shards / "photos-00.tar").read_bytes()))
    with pytest.raises(DataError, match=r"x.tar is compressed with gzip"):
        load_images(f"tar:{packed}")


def test_specs_become_absolute(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    assert absolute_spec("tar: photos-*.tar") == f"tar:{shards}/photos-*.tar"
    assert archives_exist("tar:photos-*.tar")
    assert not archives_exist("tar:other-*.tar")
