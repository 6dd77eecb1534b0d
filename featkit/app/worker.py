"""The process of one training: ``python -m featkit.app.worker FOLDER``."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tqdm import tqdm

from featkit.app.jobs import (
    FAILED,
    FINISHED,
    LOCK_FILE,
    RUNNING,
    STOPPED,
    JobState,
    TrainingRequest,
    read_job,
    write_state,
)
from featkit.app.settings import AppSettings, current_settings
from featkit.app.views import error_text
from featkit.errors import FeatkitError
from featkit.storage import locked

_INTERVAL = 0.3
"""Seconds between two looks at the progress bars."""
_MAX_MESSAGES = 100


class _Reporter(logging.Handler):
    """Write the state of the training whenever it changes: messages, and progress bars of tqdm."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._writing = threading.RLock()
        self._ended = threading.Event()
        self.state = JobState(status=RUNNING, step="Starting")

    def update(self, **changes: Any) -> None:
        """Change fields of the state and write it."""
        with self._writing:
            changed = replace(self.state, **changes)
            if changed != self.state:
                self.state = changed
                write_state(self._folder, changed)

    def emit(self, record: logging.LogRecord) -> None:
        """Add a warning to the messages."""
        if record.levelno >= logging.WARNING:
            text = record.getMessage()
            messages = (*self.state.messages, text)[-_MAX_MESSAGES:]
            if text not in self.state.messages:
                self.update(messages=messages)

    def end(self) -> None:
        """End ``watch``."""
        self._ended.set()

    def watch(self) -> None:
        """Look at the progress bars until ``end`` is called."""
        while not self._ended.wait(_INTERVAL):
            # tqdm has no public list of its bars; an empty one only hides the progress.
            bars = sorted(getattr(tqdm, "_instances", ()), key=lambda bar: bar.pos)
            if not bars and self.state.total:
                self.update(done=0, total=0, seconds_left=None)
            for bar in bars[:1]:
                facts = bar.format_dict
                total, done, rate = facts["total"] or 0, facts["n"], facts["rate"]
                if not rate and facts["elapsed"]:
                    rate = done / facts["elapsed"]
                left = (total - done) / rate if total and rate else None
                self.update(done=int(done), total=int(total), seconds_left=left)


@contextlib.contextmanager
def _reported(reporter: _Reporter) -> Iterator[None]:
    """Report warnings and progress until the block ends, which SIGTERM interrupts like Ctrl-C."""
    logger = logging.getLogger("featkit")
    thread = threading.Thread(target=reporter.watch, daemon=True)
    before = signal.signal(signal.SIGTERM, _interrupt)
    logger.addHandler(reporter)
    thread.start()
    try:
        yield
    finally:
        reporter.end()
        thread.join()
        logger.removeHandler(reporter)
        signal.signal(signal.SIGTERM, before)


def train(settings: AppSettings, request: TrainingRequest, report: _Reporter) -> None:
    """Fit the heads of a request, and write their run directories and reports.

    Raises:
        FeatkitError: if images, network or disk do not permit it.
    """
    from featkit import api
    from featkit.reports.wording import headline
    from featkit.runs.names import run_title

    def step(text: str) -> None:
        report.update(step=text, done=0, total=0, seconds_left=None)

    fitted: list[str] = []

    def on_run(run: Any) -> None:
        fitted.append(run.id)
        # With the data: the same head may be fitted on images before and after cleaning.
        title = f"{run_title(run.report.provenance)}, {run.source.data}"
        result = f"{title}: {headline(run.report)}"
        report.update(results=(*report.state.results, result))
        if len(fitted) < len(request.heads):
            step(f"Fitting head {len(fitted) + 1} of {len(request.heads)}")

    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(api.fit).parameters.items()
        if name != "head"
    }
    options = {
        **defaults,
        "backbone": request.backbone,
        "weights": request.weights,
        "resize": request.resize,
        "tune": request.tune,
        "reject": request.reject,
        "on_error": "skip" if request.skip_unreadable else "fail",
        "device": settings.device,
        "cache": settings.cache,
        "out": settings.out,
        "progress": True,
    }
    paths: list[Path] = []
    for data in filter(None, (request.baseline, request.data)):
        step("Extracting features, then fitting")
        fitted.clear()
        found = api.fit_heads(request.heads, on_run=on_run, **{**options, "data": data})
        paths += found.paths
        report.update(runs=tuple(str(path.resolve()) for path in paths))
    for number, path in enumerate(paths, start=1):
        step(f"Writing report {number} of {len(paths)}")
        api.report(path, cache=settings.cache, device=settings.device, progress=True)


def main(folder: Path) -> int:
    """Train what the folder of a job asks for; return the exit code."""
    # Whoever looks whether this process lives holds the lock for a moment: wait for it.
    with locked(folder / LOCK_FILE, on_wait=lambda owner: None):
        if read_job(folder).state.status == FINISHED:  # by another process, which was waited for
            return 0
        return _run(folder, _Reporter(folder))


def _run(folder: Path, reporter: _Reporter) -> int:
    try:
        reporter.update(process=os.getpid())
        with _reported(reporter):
            train(current_settings(), read_job(folder).request, reporter)
    except KeyboardInterrupt:
        reporter.update(status=STOPPED, step="", error="")
        return 130
    except FeatkitError as error:
        reporter.update(status=FAILED, error=error_text(error))
        return 1
    except MemoryError:
        reporter.update(status=FAILED, error="out of memory: use fewer images or close programs")
        return 1
    except Exception as error:
        # Whatever it is, the page must not wait for ever; the log has the traceback.
        text = f"{type(error).__name__}: {error}; see log.txt in {folder}"
        reporter.update(status=FAILED, error=text)
        raise
    reporter.update(status=FINISHED, step="", done=0, total=0, seconds_left=None)
    return 0


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
