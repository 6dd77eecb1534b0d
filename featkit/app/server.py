"""Start the server of the app: on this machine only, without telemetry."""

from __future__ import annotations

import logging
import os
import socket
import threading
from pathlib import Path
from typing import Any

from featkit.app.models import load_model
from featkit.app.settings import (
    UPLOAD_MB,
    VARIABLE,
    AppSettings,
    available_runs,
    check_settings,
)
from featkit.errors import FeatkitError, OptionsError
from featkit.extras import require
from featkit.storage import OFFLINE_VARIABLE

ADDRESS = "127.0.0.1"
PORT = 8501
"""Default port; the next free one is taken if it is in use."""

_SCRIPT = Path(__file__).parent / "pages" / "main.py"
_PORTS = 50

log = logging.getLogger("featkit")


def server_options(port: int, *, open_browser: bool) -> dict[str, Any]:
    """Return the options of Streamlit's server; they override the user's configuration files.

    Args:
        port: where it listens on 127.0.0.1.
        open_browser: whether to open a browser, where there is a display.
    """
    options: dict[str, Any] = {
        "server.address": ADDRESS,
        "server.port": port,
        # Only these names may stand in the address: a foreign page cannot reach the app by a name
        # of its own that resolves to 127.0.0.1.
        "server.allowedHosts": [ADDRESS, "localhost"],
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.enableStaticServing": False,
        "server.maxUploadSize": UPLOAD_MB,
        "server.fileWatcherType": "none",
        "server.showEmailPrompt": False,
        "browser.serverAddress": ADDRESS,
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        # Streamlit's red would look like an error.
        "theme.light.primaryColor": "#0b62a4",
        "theme.dark.primaryColor": "#5aa9e6",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,
        "logger.hideWelcomeMessage": True,
        "global.developmentMode": False,
    }
    if not open_browser:
        options["server.headless"] = True
    return options


def serve(settings: AppSettings, *, port: int | None = None, open_browser: bool = True) -> None:
    """Run the server until it is interrupted.

    Args:
        settings: what the pages may read.
        port: where it listens; None for the first free one from 8501 on.
        open_browser: whether to open a browser, where there is a display.

    Raises:
        MissingExtraError: if Streamlit is not installed.
        RunError, DataError: if a path does not exist.
        OptionsError: if the port is in use.
    """
    bootstrap = require("streamlit.web.bootstrap", "app")
    check_settings(settings)
    port = _free_port(port)
    os.environ[VARIABLE] = settings.to_json()
    for name in (OFFLINE_VARIABLE, "HF_HUB_OFFLINE"):  # nothing is downloaded either
        os.environ.setdefault(name, "1")
    threading.Thread(target=_warm_up, args=(settings,), daemon=True).start()
    options = server_options(port, open_browser=open_browser)
    bootstrap.load_config_options(options)
    log.info("featkit app: http://%s:%d (Ctrl-C ends it)", ADDRESS, port)
    bootstrap.run(str(_SCRIPT), False, [], options)


def _free_port(port: int | None) -> int:
    """Return the port to listen on.

    Raises:
        OptionsError: if it is in use.
    """
    for candidate in [port] if port is not None else range(PORT, PORT + _PORTS):
        with socket.socket() as probe:
            # As the server does; else a port that was closed a moment ago would count as in use.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ADDRESS, candidate))
            except OSError:
                continue
            return candidate
    taken = port if port is not None else f"{PORT} to {PORT + _PORTS - 1}"
    raise OptionsError(f"port {taken} is in use or not allowed: give another --port")


def _warm_up(settings: AppSettings) -> None:
    """Load the model that the page Try selects first, so that the first upload need not wait."""
    try:
        for path in available_runs(settings)[:1]:
            load_model(path, settings.cache, settings.device).warm_up()
    except FeatkitError as error:  # the page shows it when the model is chosen
        log.info("not loaded in advance: %s", error)
