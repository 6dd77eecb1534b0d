"""Progress and end of a training, as the pages Train and Clean show them."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from featkit.app.jobs import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    STOPPED,
    Job,
    read_job,
    resume_job,
    stop_job,
)
from featkit.app.settings import AppSettings
from featkit.app.shared import errors_shown
from featkit.app.views import plain, time_text


@st.fragment(run_every=1.0)
def show_job_progress(folder: Path) -> None:
    """Show how far a training is, every second; the page runs again when it has ended."""
    with errors_shown():
        job = read_job(folder)
        if not job.is_active:
            st.rerun()
        state = job.state
        part = state.done / state.total if state.total else 0.0
        counts = f", {state.done:,} of {state.total:,}" if state.total else ""
        left = time_text(state.seconds_left)
        text = f"{state.step or 'Starting'}{counts}{', about ' + left + ' left' if left else ''}"
        st.progress(min(1.0, part), plain(text))
        st.caption("It goes on when this page is closed.")
        for text in state.results:  # figures and reports are being written
            st.success(plain(text))
        _show_messages(job)
        if st.button("Stop", key=f"stop_{job.id}", icon=":material/stop:"):
            stop_job(job)


def show_job_ended(settings: AppSettings, job: Job, key: str) -> None:
    """Show how a training ended; one that did not finish can be continued."""
    state = job.state
    if state.status == FAILED:
        st.error(plain(state.error))
    if state.status == INTERRUPTED:
        st.warning("The training was interrupted. Features that were extracted are kept.")
    if state.status == STOPPED:
        st.info("The training was stopped. Features that were extracted are kept.")
    _show_messages(job)
    if state.status != FINISHED and st.button(
        "Continue", key=f"{key}_resume", icon=":material/play_arrow:"
    ):
        resume_job(settings, job)
        st.rerun()


def _show_messages(job: Job) -> None:
    for text in job.state.messages:
        st.warning(plain(text))
