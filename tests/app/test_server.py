"""The server: on this machine only, without telemetry, protected against other web pages."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest
from click.testing import CliRunner

from featkit.app.server import server_options
from featkit.app.settings import UPLOAD_MB
from featkit.backbones.weights import download
from featkit.cli.main import main
from featkit.errors import WeightsError
from tests.app.serving import GUARD, serving

pytest.importorskip("streamlit")


def test_streamlit_knows_every_option_of_the_server():
    config = pytest.importorskip("streamlit.config")
    known = config.get_config_options()
    assert set(server_options(8501, open_browser=False)) <= set(known)


def test_the_options_keep_the_app_on_this_machine():
    options = server_options(8501, open_browser=True)
    assert options["server.address"] == "127.0.0.1"
    assert options["browser.gatherUsageStats"] is False
    assert options["server.enableXsrfProtection"] is True
    assert options["server.enableCORS"] is True
    assert options["server.maxUploadSize"] == UPLOAD_MB
    assert not any(name.startswith("theme.font") for name in options)


def test_weights_are_not_downloaded_while_the_app_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATKIT_OFFLINE", "1")
    with pytest.raises(WeightsError, match="FEATKIT_OFFLINE forbids to download it"):
        download("http://127.0.0.1:9/x.pth", tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/at/all"], "there is no run at"),
        (["--data", "nowhere"], "the images nowhere do not exist"),
        (["."], "holds no run and no exported file"),
    ],
)
def test_paths_that_do_not_exist_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["app", *arguments])
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_port_in_use_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(main, ["app", "--port", port])
    assert result.exit_code == 2
    assert f"port {port} is in use" in result.output


def test_the_guard_refuses_and_records_connections(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    code = "import urllib.request; urllib.request.urlopen('http://192.0.2.1', timeout=1)"
    environment = {"PYTHONPATH": str(tmp_path), "GUARD_LOG": str(tmp_path / "log")}
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=False, capture_output=True
    )
    assert process.returncode == 1
    assert (tmp_path / "log").read_text().strip() == "192.0.2.1"


def status(url, **headers):
    """Return the HTTP status of a request."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        error.close()  # it holds the open response
        return error.code


@pytest.mark.slow
def test_the_server_listens_here_only_and_connects_to_nobody(tmp_path):
    with serving(tmp_path) as server:
        assert status(server.url) == 200
        connections = psutil.Process(server.process.pid).net_connections("inet")
        listening = {each.laddr.ip for each in connections if each.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
        # No file outside of Streamlit's own page is served, whatever the path.
        for path in ("/app/static/../settings.py", "/../../../../etc/passwd", "/media/x"):
            with urllib.request.urlopen(f"{server.url}/try", timeout=10) as page:
                start = page.read(200)
            found = status(f"{server.url}{path}")
            assert found in (200, 400, 403, 404)
            if found == 200:
                with urllib.request.urlopen(f"{server.url}{path}", timeout=10) as answer:
                    assert answer.read(200) == start
        # An upload without the token of a page is refused.
        upload = urllib.request.Request(
            f"{server.url}/_stcore/upload_file/session/file", data=b"x", method="PUT"
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(upload, timeout=10)
        refused.value.close()
        assert refused.value.code == 403
        assert server.attempts() == []
        assert server.process.poll() is None


@pytest.mark.slow
def test_the_server_ends_when_it_is_told_to(tmp_path):
    with serving(tmp_path) as server:
        pass
    assert server.process.returncode is not None
    assert "Traceback" not in server.log.read_text()
