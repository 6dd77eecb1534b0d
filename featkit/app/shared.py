"""What the pages share: cached models, messages, and the reporting of errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import streamlit as st

from featkit.app.models import Model, load_model
from featkit.app.settings import AppSettings, current_settings, resolve_run
from featkit.app.views import STYLE, error_text, plain
from featkit.errors import FeatkitError
from featkit.images.base import ImageSet

UNEXPECTED = "The page failed unexpectedly"
"""Start of the message about errors that featkit does not foresee."""

_MAX_SETS = 4

log = logging.getLogger(__name__)


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show errors that the user can fix as messages on the page; the session goes on."""
    try:
        yield
    except FeatkitError as error:
        st.error(plain(error_text(error)))
    except MemoryError:
        st.error("There is not enough memory: use smaller images, or close other programs.")
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        st.error(plain(f"Cannot access{where}: {error.strerror or error}; check the disk."))
    except Exception as error:  # a fault of the app; the page must say more than Streamlit does
        log.exception("the page failed")
        text = f"{UNEXPECTED} ({type(error).__name__}: {error}): the terminal has the details."
        st.error(plain(text))


def page(show: Callable[[AppSettings], None]) -> Callable[[], None]:
    """Return the function of a page that shows its errors as messages."""

    @wraps(show)
    def run() -> None:
        st.html(STYLE)
        with errors_shown():
            show(current_settings())

    return run


def load_run_model(text: str, settings: AppSettings) -> Model:
    """Return the model of a run that was chosen on a page; it is shared by all sessions.

    Raises:
        RunError: if the run is not one of this app, or was changed.
    """
    with st.spinner("Loading the model …"):
        return load_model(resolve_run(settings, text), settings.cache, settings.device)


def load_data(spec: str) -> ImageSet:
    """Return the images of a data set; the list of files is kept for a minute."""
    return _load_data(spec)


@st.cache_resource(max_entries=_MAX_SETS, ttl=60, show_spinner="Listing images …")
def _load_data(spec: str) -> ImageSet:
    from featkit.images import load_images

    return load_images(spec)
