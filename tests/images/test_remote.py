"""Images at URLs in CSV files: downloads, further tries, and errors."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest
from PIL import Image

import featkit
from featkit.errors import DataError, DecodeError, MissingExtraError
from featkit.images import load_images, remote


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 6, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """A server on this machine that counts requests."""

    daemon_threads = True
    requests: list[str]
    failures: dict[str, list[int]]
    """By path, the answers before the right one: a status, 0 to close the connection, 1 to send
    one byte too few."""


class Handler(BaseHTTPRequestHandler):
    """Answer with an image, or in one of several wrong ways."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        status = 200
        if left := self.server.failures.get(self.path):
            status = left.pop(0)
        if status == 0:
            self.close_connection = True
            return
        if status > 200:
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        name = self.path.strip("/").partition(".")[0]
        if name == "wait":
            threading.Event().wait(1.5)
        if name == "missing":
            self.send_error(404)
            return
        body = png(int(name)) if name.isdigit() else b"<html>Please log in</html>"
        self.send_response(200)
        missing = 10 if name == "short" or status == 1 else 0
        self.send_header("Content-Length", str(len(body) + missing))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.requests = []
    server.failures = {}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEATKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.001)
    return tmp_path / "data"


def write_list(folder: Path, urls: list[str]) -> Path:
    path = folder / "list.csv"
    lines = [f"{url},{'ab'[place % 2]}" for place, url in enumerate(urls)]
    path.write_text("\n".join(["path,label", *lines]) + "\n", encoding="utf-8")
    return path


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_images_are_downloaded_once_and_used_like_files(server: Server, tmp_path: Path) -> None:
    """Nothing is read when they are listed; the copies serve later commands without the server."""
    urls = [f"{address(server)}/{number}.png" for number in range(24)]
    path = write_list(tmp_path, urls)
    images = load_images(path)
    assert images.ids == tuple(urls)
    assert not server.requests
    assert images.load(7)[0, 0].tolist() == [7, 7, 7]
    options = {"backbone": "resnet18", "weights": "random", "resize": "32", "head": "knn:k=1"}
    run = featkit.fit(path, cache=tmp_path / "cache", **options)
    assert run.report.n == 4
    assert sorted(server.requests) == sorted(url.removeprefix(address(server)) for url in urls)
    again = load_images(path)
    assert again.key(7) == images.key(7)
    assert len(server.requests) == 24


def test_nothing_is_downloaded_offline(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = load_images(write_list(tmp_path, [f"{address(server)}/{n}.png" for n in range(12)]))
    images.load(0)
    monkeypatch.setenv("FEATKIT_OFFLINE", "1")
    images.load(0)  # there is a copy
    with pytest.raises(DecodeError, match="FEATKIT_OFFLINE forbids downloads"):
        images.load(1)
    assert server.requests == ["/0.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("missing.png", "the server answers 404 Not Found", id="404"),
        pytest.param("login.png", "it is an HTML page", id="HTML"),
        pytest.param("short.png", r"26 of 36 bytes arrived|IncompleteRead", id="incomplete"),
    ],
)
def test_a_wrong_answer_names_line_and_url(
    server: Server, tmp_path: Path, data_folder: Path, name: str, message: str
) -> None:
    """When the image is read, so that it can be skipped; nothing is kept of it."""
    urls = [f"{address(server)}/{number}.png" for number in range(4)]
    images = load_images(write_list(tmp_path, [urls[0], f"{address(server)}/{name}", *urls[1:]]))
    row = next(row for row, each in enumerate(images.ids) if each.endswith(name))
    with pytest.raises(DecodeError, match=message) as raised:
        images.load(row)
    assert f"line 3 of {tmp_path / 'list.csv'}: {address(server)}/{name}" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(data_folder.rglob("*"))


@pytest.mark.parametrize(
    "failures",
    [
        pytest.param([503], id="503"),
        pytest.param([500, 429], id="500 and 429"),
        pytest.param([0, 0], id="closed connections"),
        pytest.param([1], id="incomplete"),
    ],
)
def test_errors_that_pass_are_tried_again(
    server: Server, tmp_path: Path, failures: list[int]
) -> None:
    images = load_images(write_list(tmp_path, [f"{address(server)}/{n}.png" for n in range(8)]))
    server.failures["/5.png"] = list(failures)
    assert images.load(5)[0, 0].tolist() == [5, 5, 5]
    assert server.requests == ["/5.png"] * (len(failures) + 1)


def test_after_three_tries_one_line_says_so(server: Server, tmp_path: Path) -> None:
    images = load_images(write_list(tmp_path, [f"{address(server)}/{n}.png" for n in range(8)]))
    server.failures["/5.png"] = [502, 503, 504, 200]
    with pytest.raises(DecodeError, match=r"the server answers 504 .* \(tried 3 times\)") as raised:
        images.load(5)
    assert "line 7 of" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_errors_that_do_not_pass_are_not_tried_again(
    server: Server, tmp_path: Path, status: int
) -> None:
    images = load_images(write_list(tmp_path, [f"{address(server)}/{n}.png" for n in range(8)]))
    server.failures["/5.png"] = [status]
    with pytest.raises(DecodeError, match=rf"the server answers {status} [^(]*; check"):
        images.load(5)
    assert len(server.requests) == 1


def test_the_time_of_all_tries_is_limited(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no further try that would begin after the limit."""
    images = load_images(write_list(tmp_path, [f"{address(server)}/{n}.png" for n in range(8)]))
    server.failures["/5.png"] = [503] * 3
    monkeypatch.setattr(remote, "_LONGEST", 5.0)
    monkeypatch.setattr(remote, "_FIRST_WAIT", 6.0)
    with pytest.raises(DecodeError, match=r"503 [^(]*; check"):
        images.load(5)
    assert len(server.requests) == 1


def test_a_server_may_ask_to_wait(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``Retry-After`` in seconds is used up to a limit; dates are not read."""
    waits: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    asked = iter(["3", "4000", "Fri, 31 Dec 1999 23:59:59 GMT"])

    def refuse(url: str) -> None:
        headers = Message()
        headers["Retry-After"] = next(asked)
        raise HTTPError(url, 503, "Service Unavailable", headers, io.BytesIO())

    monkeypatch.setattr(remote, "_open", refuse)
    with pytest.raises(remote.TransferError, match="tried 3 times"):
        remote.read_url("http://host/1.png")
    assert waits == [3.0, remote._LONGEST_WAIT]


def test_an_unreachable_host_and_a_silent_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line each, after at most the time limit."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(remote, "TIMEOUT", 0.3)
    urls = [f"http://127.0.0.1:{port}/1.png", f"{address(server)}/wait.png"]
    images = load_images(write_list(tmp_path, [*urls, *[f"{address(server)}/{n}" for n in "1234"]]))
    with pytest.raises(DecodeError, match=r"refused[^(]*;"):  # at the first try
        images.load(images.ids.index(urls[0]))
    with pytest.raises(DecodeError, match=r"no answer within 0 seconds \(tried 3 times\)"):
        images.load(images.ids.index(urls[1]))


def test_too_large_and_too_slow_answers_are_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [f"{address(server)}/{number}.png" for number in range(4)]
    images = load_images(write_list(tmp_path, urls))
    monkeypatch.setattr(remote, "MAX_BYTES", 20)
    with pytest.raises(DecodeError, match="larger than the limit"):
        images.load(0)
    monkeypatch.setattr(remote, "MAX_BYTES", 2**20)
    monkeypatch.setattr(remote, "_LONGEST", -1.0)
    with pytest.raises(DecodeError, match="takes more than"):
        images.load(0)


def test_stores_are_opened_by_fsspec(tmp_path: Path) -> None:
    """Such as s3, here its store in memory; a missing object is named."""
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for number in range(6):
        with store.open(f"/photos/{number}.png", "wb") as file:
            file.write(png(number))
    urls = [f"memory://photos/{number}.png" for number in (*range(6), 9, 10)]
    images = load_images(write_list(tmp_path, urls))
    assert images.load(images.ids.index(urls[5]))[0, 0, 0] == 5
    with pytest.raises(DecodeError, match=r"line 8 of .*memory://photos/9.png cannot be"):
        images.load(images.ids.index(urls[6]))
    store.rm("/photos", recursive=True)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fsspec when the images are listed, of the package of a store when one is read."""
    path = write_list(tmp_path, [f"s3://bucket/{number}.png" for number in range(4)])
    images = load_images(path)

    def refuse(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote, "_open", refuse)
    with pytest.raises(MissingExtraError, match=r"s3fs .*featkit\[remote\]"):
        images.load(0)
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"fsspec .*featkit\[remote\]"):
        load_images(path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param("https://me:secret@host/1.png", "no user name or password", id="password"),
        pytest.param("https:///1.png", "must have a host", id="no host"),
        pytest.param("ftp://host/1.png", "ftp:// is not supported", id="ftp"),
        pytest.param("file:///etc/passwd", "file:// is not supported", id="file"),
        pytest.param("https://[::1/1.png", "is not a URL", id="malformed"),
    ],
)
def test_other_urls_are_refused_with_their_line(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        load_images(write_list(tmp_path, [url, "https://host/2.png"]))
    assert f"line 2 of {tmp_path / 'list.csv'}" in str(raised.value)


def test_a_url_listed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lists 'https://host/1.png' twice"):
        load_images(write_list(tmp_path, ["https://host/1.png"] * 2))
