"""Ctrl-C, SIGTERM, and exhausted memory: one line, the exit code of a shell, and what was kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from featkit.cli import main
from featkit.cli.interruption import Terminated, signals_raised

posix = pytest.mark.skipif(os.name != "posix", reason="sends signals")


def run_raising(error, command, monkeypatch):
    def fail(**options):
        raise error

    monkeypatch.setattr(main.get_command(click.Context(main), command), "callback", fail)
    return CliRunner().invoke(main, [command])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("command", "option"), [("fit", ""), ("finetune", " with --resume")])
def test_an_interrupted_command_says_what_is_kept(number, command, option, monkeypatch):
    error = KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
    reason = "interrupted" if number == signal.SIGINT else "terminated"
    done = run_raising(error, command, monkeypatch)
    assert done.exit_code == 128 + number
    assert done.stderr.splitlines() == [
        f"Error: {reason}; what was finished is kept: run the same command again to continue"
    ]
    error.add_note("2 cells are kept in runs\n")
    done = run_raising(error, command, monkeypatch)
    assert done.exit_code == 128 + number
    assert done.stderr.splitlines() == [
        f"Error: {reason}; 2 cells are kept in runs\\n: run the same command again{option} "
        "to continue"
    ]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 10.0 GiB"), "out of memory (Unable to allocate 10.0 GiB)"),
        (MemoryError(), "out of memory: "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (RuntimeError("CUDA out of memory.\nTried to allocate"), "out of memory"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    ],
)
def test_exhausted_memory_is_an_error_of_one_line(error, message, monkeypatch):
    done = run_raising(error, "heads", monkeypatch)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert message in line
    assert "--batch-size" not in line  # an option that this command does not have


def test_other_errors_of_torch_are_not_taken_for_exhausted_memory(monkeypatch):
    done = run_raising(RuntimeError("shape mismatch"), "heads", monkeypatch)
    assert isinstance(done.exception, RuntimeError)


def test_an_interruption_before_the_command_starts_is_reported_too(monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Group, "parse_args", interrupt)
    done = CliRunner().invoke(main, ["heads"])
    assert (done.exit_code, "interrupted" in done.stderr) == (130, True)


@posix
def test_signals_that_a_program_handles_or_ignores_are_left_alone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_raised():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def started(*arguments, cwd):
    """Start the command line in a process group of its own, so that a signal reaches it alone."""
    command = [sys.executable, "-m", "featkit", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        command, cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_extraction_in_one_line_and_keeps_the_features(tmp_path, number, code):
    options = ["extract", "--data", "digits", "--weights", "random", "--cache", "c"]
    with started(*options, "--batch-size", "8", cwd=tmp_path) as process:
        journals = tmp_path.glob
        # More than the first record, about 17 kB, so that this one is complete.
        wait_for(lambda: any(f.stat().st_size > 20_000 for f in journals("c/*.partial")), process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "images are kept in c" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert [path.suffix for path in (tmp_path / "c").iterdir()] == [".partial"]


@posix
@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.5, pytest.param(6, marks=pytest.mark.long)])
def test_sigterm_ends_the_workers_of_a_grid(tmp_path, delay):
    options = ["ablate", "--data", "digits", "--weights", "random", "--resize", "32"]
    heads = ["--head", "mlp", "--head", "svm"]
    with started(*options, *heads, "--jobs", "2", cwd=tmp_path) as process:
        wait_for(lambda: list(tmp_path.glob("cache/*.h5")), process)
        time.sleep(delay)  # the workers are starting, or fitting
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - start < 20
    assert process.returncode == 143, stderr
    assert "finished cells are kept in" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
