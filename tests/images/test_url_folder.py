"""Folders of images at URLs: stores that fsspec lists, and servers that list their folders."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featkit
from featkit.embeddings.request import Request
from featkit.errors import DataError, MissingExtraError
from featkit.images import load_images, remote, url_folder
from featkit.images.base import ImageSet
from featkit.runs.summary import summarise_run
from featkit.studies.clean import COLUMNS


class Handler(SimpleHTTPRequestHandler):
    """Serve a folder with pages of links; ``hidden`` has none."""

    failures: list[int]
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.failures:
            self.send_error(self.failures.pop(0))
            return
        if self.path.rstrip("/").endswith("/hidden"):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b"{}")
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with two classes of images, a name with spaces, and what is passed over."""
    root = tmp_path / "web" / "my photos"
    for label in ("cat", "dog & co"):
        folder = root / label / "inner"
        folder.mkdir(parents=True)
        for number in range(8):
            place = folder if number % 2 else folder.parent
            pixels = np.full((6, 6, 3), 10 * number + (label == "cat"), np.uint8)
            Image.fromarray(pixels).save(place / f"n {number}#%.png")
    (root / "cat" / "notes.txt").write_text("x")
    (root / "cat" / ".hidden.png").write_bytes(b"x")
    (root / "@eaDir").mkdir()
    (root / "@eaDir" / "thumb.jpg").write_bytes(b"x")
    return root


@pytest.fixture
def server(photos: Path) -> Iterator[str]:
    Handler.failures, Handler.requests = [], []
    handler = partial(Handler, directory=str(photos.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}"
        web.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _separate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FEATKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.001)
    url_folder._tree.cache_clear()
    yield
    url_folder._tree.cache_clear()


def upload(folder: Path, name: str) -> Any:
    """Copy a folder into fsspec's store in memory."""
    store = pytest.importorskip("fsspec").filesystem("memory")
    for file in folder.rglob("*"):
        if file.is_file():
            store.pipe(f"/{name}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return store


def same(images: ImageSet, local: ImageSet) -> None:
    assert images.ids == local.ids
    assert images.classes == local.classes
    assert images.labels.tolist() == local.labels.tolist()
    assert images.splits.tolist() == local.splits.tolist()
    assert images.notes == local.notes
    for row in (0, 5, len(local) - 1):
        assert np.array_equal(images.load(row), local.load(row))
        assert images.key(row) == local.key(row)


def test_a_folder_of_a_server_is_that_on_the_disk(photos: Path, server: str) -> None:
    """Names with spaces, ``#`` and ``%``; folders of the system are not even listed."""
    url = f"{server}/my%20photos"
    images = load_images(f"{url}/")
    assert images.name == load_images(photos).name
    same(images, load_images(photos))
    assert images.urls[0].startswith(f"{url}/cat/")
    assert not any("eaDir/" in path or "hidden" in path for path in Handler.requests)
    downloads = [path for path in Handler.requests if path.endswith(".png")]
    assert len(downloads) == 3
    listed = len(Handler.requests)
    load_images(url)
    assert len(Handler.requests) == listed


def test_a_folder_of_a_store_is_that_on_the_disk(photos: Path) -> None:
    store = upload(photos, "bucket/photos")
    try:
        images = load_images("memory://bucket/photos")
        same(images, load_images(photos))
        assert images.urls[0].startswith("memory://bucket/photos/cat/")
        with pytest.raises(DataError, match="memory://bucket/nothing does not exist"):
            load_images("memory://bucket/nothing")
    finally:
        store.rm("/bucket", recursive=True)


def test_split_folders_and_groups_are_known_at_urls(photos: Path, server: str) -> None:
    for split in ("train", "test"):
        shutil.copytree(photos, photos / split, ignore=shutil.ignore_patterns("train", "test"))
    for name in ("cat", "dog & co"):
        shutil.rmtree(photos / name)
    images = load_images(f"{server}/my%20photos")
    assert images.split == "own"
    assert sorted(set(images.splits.tolist())) == ["test", "train"]
    grouped = load_images(f"{server}/my%20photos", group="n ([0-9])", allow_group_leak=True)
    assert set(grouped.groups) == set("01234567")


def test_runs_and_cleaned_lists_name_the_urls(photos: Path, server: str, tmp_path: Path) -> None:
    """``audit --out`` lists URLs and not the local copies, and ``--data`` reads the list."""
    url = f"{server}/my%20photos"
    options: dict[str, Any] = {"backbone": "resnet18", "weights": "random", "resize": "32"}
    options |= {"cache": tmp_path / "cache"}
    run = featkit.fit(url, head="prototypical", out=tmp_path / "out", **options)
    assert summarise_run(next((tmp_path / "out").glob("*/*"))).data == "my_photos"
    assert run.source.request.data == url
    assert Request.from_dict(run.source.request.to_dict()).data == url
    featkit.audit(url, out=tmp_path / "clean.csv", apply="duplicates", **options)
    lines = (tmp_path / "clean.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].split(",") == list(COLUMNS)
    assert all(line.startswith(f"{url}/") for line in lines[1:])
    again = load_images(tmp_path / "clean.csv")
    assert set(again.ids) <= set(load_images(url).urls)
    row = load_images(url).urls.index(again.ids[0])
    assert np.array_equal(again.load(0), load_images(url).load(row))


def test_a_page_that_leads_elsewhere_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to above, to other hosts, that sort the page, and names that would leave the folder."""
    pages = {
        "http://host/a/": "<a href='/'>up</a><a href=../>up</a><a href='?C=N;O=D'>sort</a>"
        "<a href='http://other/a/x/'>x</a><a href='cat/'>cat</a><a href='/a/dog/'>dog</a>"
        "<a href='%2e%2e%2fsecret.png'>no</a><a href='http://host/a/cat/'>twice</a><a>none</a>",
        "http://host/a/cat/": "<a href='1&amp;2.png'>1</a><A HREF='./'>self</A>",
        "http://host/a/dog/": "<a href='3.png'>3</a><a href='http://[bad/'>bad</a>",
    }
    monkeypatch.setattr(url_folder, "read_url", lambda url: pages[url].encode())
    top = url_folder._tree("http://host/a")
    assert [folder.name for folder in top.folders] == ["cat", "dog"]
    assert top.images == {}
    assert [list(folder.images.values()) for folder in top.folders] == [
        ["http://host/a/cat/1&2.png"],
        ["http://host/a/dog/3.png"],
    ]


def test_folders_that_lead_back_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_folder, "read_url", lambda url: b"<a href='more/'>more</a>")
    with pytest.raises(DataError, match="nested in more than 20 levels"):
        load_images("http://host/a")


def test_a_folder_that_cannot_be_listed_is_one_line(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without such pages, a missing folder, a server that fails, offline, a CSV file."""
    with pytest.raises(DataError, match=r"lists no files: the server shows no page with links"):
        load_images(f"{server}/hidden")
    with pytest.raises(DataError, match=r"/none cannot be listed: the server answers 404 [^(]*;"):
        load_images(f"{server}/none")
    Handler.failures[:] = [503] * 3
    with pytest.raises(DataError, match=r"cannot be listed: the server answers 503 .*3 times"):
        load_images(f"{server}/my%20photos")
    with pytest.raises(DataError, match="is a CSV file at a URL: download it"):
        load_images(f"{server}/list.csv")
    with pytest.raises(DataError, match="--data: ftp:// is not supported"):
        load_images("ftp://host/photos")
    monkeypatch.setenv("FEATKIT_OFFLINE", "1")
    with pytest.raises(DataError, match="FEATKIT_OFFLINE forbids it"):
        load_images(f"{server}/my%20photos")


def test_a_listing_is_tried_again(photos: Path, server: str) -> None:
    Handler.failures[:] = [503, 502]
    assert load_images(f"{server}/my%20photos").ids == load_images(photos).ids


def test_a_store_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    core = pytest.importorskip("fsspec.core")

    def refuse(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(core, "url_to_fs", refuse)
    with pytest.raises(MissingExtraError, match=r"s3fs .*featkit\[remote\]"):
        load_images("s3://bucket/photos")
