"""A server of the app in a process of its own, which may not connect to the outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]

GUARD = '''
"""Refuse and record connections to other machines, and look-ups of their names."""

import os
import socket

_connect, _connect_ex = socket.socket.connect, socket.socket.connect_ex
_sendto, _getaddrinfo = socket.socket.sendto, socket.getaddrinfo


def _check(host):
    if host not in (None, "", "localhost", "::1") and not str(host).startswith("127."):
        with open(os.environ["GUARD_LOG"], "a") as log:
            log.write(f"{host}\\n")
        raise ConnectionRefusedError(f"the guard refuses {host}")


def _check_address(sock, address):
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        _check(address[0])


def connect(self, address):
    _check_address(self, address)
    return _connect(self, address)


def connect_ex(self, address):
    _check_address(self, address)
    return _connect_ex(self, address)


def sendto(self, data, *rest):
    _check_address(self, rest[-1])
    return _sendto(self, data, *rest)


def getaddrinfo(host, *rest, **named):
    _check(host.decode() if isinstance(host, bytes) else host)
    return _getaddrinfo(host, *rest, **named)


socket.socket.connect, socket.socket.connect_ex = connect, connect_ex
socket.socket.sendto, socket.getaddrinfo = sendto, getaddrinfo
'''


class Server:
    """A running server.

    Attributes:
        url: its address.
        process: its process.
        tried: file in which the guard records attempts to leave the machine.
        log: what it printed.
    """

    def __init__(self, url, process, tried, log):
        self.url, self.process, self.tried, self.log = url, process, tried, log

    def attempts(self):
        """Return the hosts that the server or its trainings tried to reach."""
        return self.tried.read_text().split() if self.tried.exists() else []


def free_port():
    """Return a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(folder, *arguments, timeout=120):
    """Run ``featkit app`` in a folder until the block ends."""
    (folder / "sitecustomize.py").write_text(GUARD)
    tried, log, port = folder / "tried.txt", folder / "server.log", free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "GUARD_LOG": str(tried),
        "HOME": str(folder),
    }
    command = [sys.executable, "-m", "featkit", "app", *map(str, arguments)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--no-browser", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + timeout
        while not _answers(f"{url}/_stcore/health"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Server(url, process, tried, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def _answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False
