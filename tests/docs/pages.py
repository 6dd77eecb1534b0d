"""Run the code blocks of the pages in docs/, and write what they print below them.

    python -m tests.docs.pages docs/quickstart.md ...    # run and update the output of these pages

A page is run from top to bottom in a folder of its own:

- ``sh``: the lines are run in turn, and show what they print to standard output and error.
- ``python``: the block is executed; all blocks of a page share their variables.
- any block with ``title="NAME"`` is written to the file NAME and not run.
- ``title="example data"``: a ``sh`` block that is run on photos, tables, weights and runs that
  ``tests/docs/sample.py`` writes, by ``tests/docs/test_commands.py``.
- ``title="not run: REASON"``: neither.
- ``text``, directly after a block that is run: what that block prints. ``<!-- first 5 -->`` or
  ``<!-- last 5 -->`` before it keep that many lines.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from featkit.cli import main

DOCS = Path(__file__).parents[2] / "docs"
NOT_RUN = "not run: "
EXAMPLE_DATA = "example data"
SHOWN_FOLDER = "/home/me"
"""Shown in place of the temporary folder in which a page is run."""
_FENCE = re.compile(
    r"(?:<!-- (?P<part>first|last) (?P<lines>\d+) -->\n)?"
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]*)")?\n(?P<code>.*?)^```$',
    flags=re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Attributes:
        language: ``sh``, ``python``, ``text``, ``toml``, ...
        title: text of ``title="..."``, or empty.
        code: content.
        start, end: position of the content in the page.
        keep: ``(first or last, number of lines)`` of an output that is shortened, or None.
        gap: text between the block before it and this one.
    """

    language: str
    title: str
    code: str
    start: int
    end: int
    keep: tuple[str, int] | None
    gap: str

    @property
    def runs(self) -> bool:
        """Whether the block is run."""
        return self.language in {"sh", "python"} and not self.title

    @property
    def needs_data(self) -> bool:
        """Whether the block is run on example data."""
        return self.title == EXAMPLE_DATA

    @property
    def reason(self) -> str:
        """Why the block is not run; empty if there is no such reason."""
        return self.title.removeprefix(NOT_RUN) if self.title.startswith(NOT_RUN) else ""


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found, end = [], 0
    for match in _FENCE.finditer(text):
        keep = (match["part"], int(match["lines"])) if match["part"] else None
        block = Block(
            match["language"],
            match["title"] or "",
            match["code"],
            match.start("code"),
            match.end("code"),
            keep,
            text[end : match.start()],
        )
        found.append(block)
        end = match.end()
    return found


def commands(code: str) -> list[str]:
    """Return the commands of a shell block, with continued lines joined."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def run_page(
    path: Path, folder: Path, *, in_process: bool = True
) -> Iterator[tuple[Block, str, Block | None]]:
    """Run the blocks of a page in a folder, which must be the working directory.

    Args:
        path: the page.
        folder: the working directory.
        in_process: whether `featkit` commands run in this process, which is several seconds faster
            for each, but their peak memory is then that of all of them.

    Yields:
        Each block that was run, what it printed, and the block with the documented output, or None.

    Raises:
        AssertionError: if a command fails.
    """
    found = blocks(path.read_text(encoding="utf-8"))
    variables: dict[str, Any] = {}
    for block, following in zip(found, [*found[1:], None], strict=True):
        if block.reason or block.needs_data:
            continue
        if block.title:
            Path(folder, block.title).write_text(block.code, encoding="utf-8")
        elif block.runs:
            where = f"{path.name}, line {line_of(path, block)}"
            if block.language == "sh":
                lines = commands(block.code)
                printed = "".join(run_command(line, where, in_process) for line in lines)
            else:
                printed = run_python(block.code, where, variables)
            documented = following
            if following is None or following.language != "text" or following.gap.strip():
                documented = None
            yield block, printed, documented


def line_of(path: Path, block: Block) -> int:
    """Return the number of the first line of a block."""
    return path.read_text(encoding="utf-8").count("\n", 0, block.start) + 1


def run_python(code: str, where: str, variables: dict[str, Any]) -> str:
    """Run code that shares variables with what ran before; return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, where, "exec"), variables)
    return printed.getvalue()


def run_command(line: str, where: str, in_process: bool = True) -> str:
    """Run a command line, in this process if it is featkit's; return what it prints.

    Raises:
        AssertionError: if it fails.
    """
    words = shlex.split(line, comments=True)
    if words[0] == "featkit" and in_process:
        target = words[-1] if words[-2] == ">" else None
        words = words[:-2] if target else words
        result = CliRunner().invoke(main, list(chain.from_iterable(map(_expanded, words[1:]))))
        assert result.exit_code == 0, f"{where}: {line}\n{result.output}\n{result.exception!r}"
        if target is None:
            return result.output
        Path(target).write_text(result.stdout, encoding="utf-8")
        return result.stderr
    python = shlex.quote(sys.executable)
    line = re.sub(r"^featkit ", f"{python} -m featkit ", re.sub(r"^python ", f"{python} ", line))
    ended = subprocess.run(
        ["bash", "-c", line],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 0, f"{where}: {line}\n{ended.stdout}"
    return ended.stdout


def _expanded(word: str) -> list[str]:
    """Return the files that a word with a star stands for, as a shell does; else the word."""
    return sorted(map(str, Path().glob(word))) or [word] if "*" in word else [word]


def shortened(printed: str, keep: tuple[str, int] | None) -> str:
    """Return the part of an output that a page shows, without spaces at the ends of lines."""
    lines = [line.rstrip() for line in printed.strip("\n").splitlines()]
    if keep and len(lines) > keep[1]:
        lines = ["...", *lines[-keep[1] :]] if keep[0] == "last" else [*lines[: keep[1]], "..."]
    return "\n".join(lines) + "\n"


def update(path: Path, folder: Path) -> None:
    """Run a page and write what its blocks print below them."""
    text, moved = path.read_text(encoding="utf-8"), 0
    for _, printed, documented in list(run_page(path, folder, in_process=False)):
        if documented is None:
            continue
        new = shortened(printed.replace(str(folder.resolve()), SHOWN_FOLDER), documented.keep)
        text = text[: documented.start + moved] + new + text[documented.end + moved :]
        moved += len(new) - len(documented.code)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.environ.pop("FEATKIT_WEIGHTS", None)
    for name in sys.argv[1:]:
        page = Path(name).resolve()
        with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
            os.environ["FEATKIT_HOME"] = str(Path(scratch, "home"))
            update(page, Path(scratch))
