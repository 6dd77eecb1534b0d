from __future__ import annotations

import hashlib
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import torchvision

from featkit.backbones import weights
from featkit.backbones.resnet import SIZES
from featkit.backbones.weights import FILES, RESIZE, Weights, find_weights, hub_folder
from featkit.errors import SpecError, StorageError, WeightsError

CONTENT = b"weights, as far as the download can tell" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("FEATKIT_WEIGHTS", str(folder))
    return folder


@pytest.mark.parametrize("network", SIZES)
def test_file_names_equal_torchvision(network):
    published = torchvision.models.get_model_weights(network)
    assert FILES[network] == {each.name: each.url.rpartition("/")[2] for each in published}
    for each in published:
        transform = each.transforms()
        assert (transform.resize_size, transform.crop_size) == ([RESIZE[each.name]], [224])
        assert weights._url(network, each.name) == each.url


@pytest.mark.parametrize(
    "environment",
    [{}, {"TORCH_HOME": "/a/b"}, {"TORCH_HOME": "~/c"}, {"XDG_CACHE_HOME": "/caches"}],
)
def test_the_hub_folder_equals_that_of_torch(environment, monkeypatch):
    monkeypatch.delenv("TORCH_HOME")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hub_folder() == Path(torch.hub.get_dir()) / "checkpoints"


def test_weights_are_searched_by_torchvisions_name_then_by_network_then_in_the_hub_folder(folder):
    names = [
        folder / "resnet50-0676ba61.pth",
        folder / "resnet50.pth",
        folder / "resnet50.safetensors",
    ]
    names.append(hub_folder() / "resnet50-0676ba61.pth")
    for name in names:
        put(name, str(name).encode())
    for name in names:
        found = find_weights("resnet50", "imagenet")
        assert (found.path, found.digest, found.resize) == (name, sha256(name), 256)
        assert found.label == f"IMAGENET1K_V1 ({name.name}, not torchvision's own file)"
        name.unlink()


def test_a_file_with_the_published_digest_is_labelled_as_published(folder, monkeypatch):
    monkeypatch.setitem(FILES["resnet18"], "IMAGENET1K_V1", f"resnet18-{DIGEST[:8]}.pth")
    path = put(folder / f"resnet18-{DIGEST[:8]}.pth", CONTENT)
    assert find_weights("resnet18", "imagenet") == Weights(
        f"IMAGENET1K_V1 ({path.name})", DIGEST, path
    )


def test_a_file_name_without_digest_is_not_used_for_v2_weights(folder, monkeypatch):
    put(folder / "resnet50.pth", b"of the first, who knows")
    monkeypatch.setattr(weights, "download", lambda url, path: put(path, b"of the second"))
    assert find_weights("resnet50", "IMAGENET1K_V2").path == hub_folder() / "resnet50-11ad3fa6.pth"
    path = put(folder / "resnet50-11ad3fa6.pth")
    found = find_weights("resnet50", "IMAGENET1K_V2")
    assert (found.path, found.resize) == (path, 232)


def test_the_weights_folder_must_be_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATKIT_WEIGHTS", str(tmp_path / "typo"))
    with pytest.raises(WeightsError, match=r"FEATKIT_WEIGHTS is .*typo, which is not a folder"):
        find_weights("resnet18", "imagenet")


def test_random_weights_are_labelled_untrained():
    assert find_weights("resnet18", "random") == Weights("random:0 (untrained)", "random:0", seed=0)
    assert find_weights("resnet18", "random:007") == Weights(
        "random:7 (untrained)", "random:7", seed=7
    )


@pytest.mark.parametrize(
    "text", ["random:", "random:x", "random:-1", "random:1.5", "random:" + "9" * 30]
)
def test_a_seed_that_is_not_an_integer_is_rejected(text):
    with pytest.raises(SpecError, match="random:N"):
        find_weights("resnet18", text)


@pytest.mark.parametrize("text", ["IMAGENET1K_V2", "IMAGENET21K", "imagnet", ""])
def test_unknown_weights_are_rejected_with_the_known_ones(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        (SpecError, WeightsError), match="IMAGENET1K_V1" if text else "cannot be read"
    ):
        find_weights("resnet18", text)


def test_a_file_is_labelled_by_its_name(tmp_path, monkeypatch):
    path = put(tmp_path / "mine.pth")
    monkeypatch.chdir(tmp_path)
    assert find_weights("resnet34", "mine.pth") == Weights("mine.pth", sha256(path), path)


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors", "."])
def test_the_error_for_an_unreadable_file_names_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=f"{tmp_path}.*cannot be read"):
        find_weights("resnet18", name)


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/there" else 404)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path == "/there":
            self.wfile.write(CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def fetch(monkeypatch):
    """Return a function that downloads from a URL as if it were torchvision's."""

    def fetch(url: str, prefix: str = DIGEST[:8]) -> Weights:
        monkeypatch.setitem(FILES["resnet18"], "IMAGENET1K_V1", f"resnet18-{prefix}.pth")
        monkeypatch.setattr(weights, "_url", lambda network, name: url)
        return find_weights("resnet18", "imagenet")

    return fetch


def test_weights_are_downloaded_once_into_the_hub_folder(fetch, address, capsys):
    found = fetch(f"{address}/there")
    assert found.path == hub_folder() / f"resnet18-{DIGEST[:8]}.pth"
    assert found.path.read_bytes() == CONTENT
    assert (found.digest, found.label) == (DIGEST, f"IMAGENET1K_V1 ({found.path.name})")
    seen = capsys.readouterr()
    assert "100%" in seen.err
    assert not seen.out
    assert fetch("http://127.0.0.1:1/") == found


@pytest.mark.parametrize(
    ("path", "prefix", "reason"),
    [("there", "00000000", "invalid hash"), ("missing", DIGEST[:8], "404")],
)
def test_a_failed_download_leaves_no_file_and_says_what_to_do(fetch, address, path, prefix, reason):
    with pytest.raises(WeightsError, match=reason) as caught:
        fetch(f"{address}/{path}", prefix)
    assert all(
        way in str(caught.value)
        for way in ("--weights FILE", "--weights random", "FEATKIT_WEIGHTS")
    )
    assert "\n" not in str(caught.value)
    assert list(hub_folder().iterdir()) == []


def test_an_unreachable_server_is_reported(fetch, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(WeightsError, match="refused"):
            fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/there")


def test_a_server_that_does_not_answer_times_out(fetch, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(weights, "_TIMEOUT_SECONDS", 0.1)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(WeightsError, match="timed out"),
    ):
        fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/there")
    assert socket.getdefaulttimeout() is None


def test_a_full_disk_raises_a_storage_error(fetch, address, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.hub, "download_url_to_file", full)
    with pytest.raises(StorageError, match="No space left on device"):
        fetch(f"{address}/there")
