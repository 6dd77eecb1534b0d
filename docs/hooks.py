"""Hooks of mkdocs: the page of all commands, links to files of the repository, and a last check.

mkdocs runs this file; it needs click and featkit's sources, but no torch.
"""

from __future__ import annotations

import inspect
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from featkit.cli.main import SECTIONS, main  # noqa: E402

CLI_PAGE = "reference/cli.md"
_OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+[\w/.-]+)(#[\w-]+)?\)")
_FOR_TESTS = re.compile(r'(?<=\w) title="(?:not run: [^"]*|example data)"$', re.MULTILINE)
"""Titles of code blocks that say whether and how the tests run them."""
_PICTURES = {".png", ".jpg", ".svg"}


def on_files(files: Files, config: Any) -> Files:
    """Add the page of all commands, and the pictures of the repository that pages show."""
    files.append(File.generated(config, CLI_PAGE, content=cli_page()))
    docs = Path(config.docs_dir)
    pictures = set()
    for page in files.documentation_pages():
        if page.src_uri != CLI_PAGE:
            text = page.content_string
            found = _OUTSIDE.findall(text)
            pictures |= {_resolved(docs, page.src_uri, target) for _, _, target, _ in found}
    for picture in sorted(pictures):
        if picture.suffix in _PICTURES and docs not in picture.parents:
            name = _picture_uri(picture)
            files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite links to files outside of docs/, and leave out what is meant for the tests."""
    docs = Path(config.docs_dir)
    markdown = _FOR_TESTS.sub("", markdown)

    def rewrite(match: re.Match[str]) -> str:
        bang, text, target, _ = match.groups()
        path = _resolved(docs, page.file.src_uri, target)
        if docs in path.parents:
            return match[0]
        if not path.exists():
            raise PluginError(f"{page.file.src_uri} links to {target}, which does not exist")
        if bang:
            up = "../" * page.file.src_uri.count("/")
            return f"![{text}]({up}{_picture_uri(path)})"
        where = path.relative_to(ROOT).as_posix()
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{where})"
        return f"`{where}`" if text.strip("`") == where else f"{text} (`{where}`)"

    return _OUTSIDE.sub(rewrite, markdown)


def _resolved(docs: Path, page: str, target: str) -> Path:
    return Path(docs, page).parent.joinpath(target).resolve()


def _picture_uri(path: Path) -> str:
    return "assets/" + path.relative_to(ROOT).as_posix().replace("/", "-")


def cli_page() -> str:
    """Return the reference of all commands in Markdown, from their parameters."""
    lines = [
        "# Command line",
        "",
        "Made from the commands when the site is built; `featkit COMMAND --help-all` prints the "
        "same. Every command also has `--help`, `--quiet` and `--verbose`. Exit codes: 0 success, "
        "1 error (one line), 2 wrong usage, 130 interrupted by Ctrl-C, 143 ended by SIGTERM.",
        "",
    ]
    context = click.Context(main, info_name="featkit")
    for section, names in SECTIONS.items():
        lines += [f"**{section}:** " + ", ".join(f"[{name}](#featkit-{name})" for name in names)]
        lines += [""]
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        if command is None:
            raise PluginError(f"featkit lists {name}, which does not exist")
        lines += _command_lines(command, name, context)
    return "\n".join(lines)


def _command_lines(command: click.Command, name: str, parent: click.Context) -> list[str]:
    context = click.Context(command, info_name=name, parent=parent)
    if isinstance(command, click.Group):
        lines = [f"## featkit {name}", "", _text(command.help), ""]
        for each in command.list_commands(context):
            inner = command.get_command(context, each)
            lines += _command_lines(inner, f"{name} {each}", parent) if inner else []
        return lines
    depth = "###" if " " in name else "##"
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"{depth} featkit {name}", "", _text(command.help), ""]
    lines += ["```text", f"featkit {name} {usage}", "```", ""]
    groups: dict[str, list[str]] = {}
    for option in command.params:
        record = option.get_help_record(context)
        group = getattr(option, "group", "Options")
        if record and record[1] and group != "Help":
            groups.setdefault(group, []).append(_option_line(*record))
    for group, options in groups.items():
        lines += [f"**{group}**", "", *options, ""]
    examples = _examples(command.epilog)
    if examples:
        lines += ["**Examples**", "", "```sh", *examples, "```", ""]
    return lines


def _option_line(names: str, text: str) -> str:
    """Return an item of a list: option names as code, and the help with its default."""
    text, _, default = text.rpartition("  [") if text.endswith("]") else (text, "", "")
    described = (
        f" *Default: {_escaped(default[:-1].removeprefix('default: '))}.*" if default else ""
    )
    return f"- `{names}`: {_escaped(text)}{described}"


def _examples(epilog: str | None) -> list[str]:
    lines = [line.strip() for line in (epilog or "").splitlines()]
    return [line for line in lines if line.startswith(("featkit ", "eval "))]


def _text(text: str | None) -> str:
    return _escaped(inspect.cleandoc((text or "").replace("\b\n", "")))


def _escaped(text: str) -> str:
    """Escape what Markdown would interpret, outside of code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_<>\[\]|])", r"\\\1", part) for part in parts
    )


class _Resources(HTMLParser):
    """Collect what a page loads: scripts, style sheets, pictures and frames."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember the address of a resource; those of links are not loaded."""
        values = dict(attrs)
        name = "href" if tag == "link" and values.get("rel") != "canonical" else "src"
        self.loaded.append(values.get(name) or "")


def on_post_build(config: Any) -> None:
    """Refuse a site that loads something from another server."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        resources = _Resources()
        resources.feed(page.read_text(encoding="utf-8"))
        foreign = [each for each in resources.loaded if re.match(r"(?:https?:)?//", each)]
        if foreign:
            raise PluginError(f"{page} loads {foreign[0]} from another server")
