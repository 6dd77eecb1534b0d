"""A page that is one file: it opens from disk, reaches for nothing, and shows all it has without scripts as well."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from featkit.reports.markup import Html, join, tag

_WIDTHS = ("name", "text", "number", "drawn")
"""Kinds of entries that a heading lines up with."""


@dataclass(frozen=True)
class TableCell:
    """What stands in one place of a table.

    Attributes:
        shown: text, or markup.
        sort: what the table is sorted by in its place: a number or a text; ``shown`` if None.
        kind: class of the place: ``name``, ``text``, ``number``, ``drawn`` or a colour such as ``h3``.
        title: said when pointed at.
        head: whether it names its row.
    """

    shown: str
    sort: float | str | None = None
    kind: str = "name"
    title: str | None = None
    head: bool = False


def page(title: str, lead: str, sections: Mapping[str, Html]) -> str:
    """Return a whole HTML document.

    Scripts and styles other than its own, and every connection, are forbidden by its content security policy.

    Args:
        title: of the page.
        lead: a line below it.
        sections: content by heading.
    """
    style, script = (files("featkit.reports").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(style)),
    )
    anchors = {heading: f"part-{place}" for place, heading in enumerate(sections, start=1)}
    parts = [tag("section", tag("h2", heading, id=anchors[heading]), content) for heading, content in sections.items()]
    nav = tag("nav", *[tag("a", heading, href=f"#{anchor}") for heading, anchor in anchors.items()])
    header = tag("header", tag("h1", title), tag("p", lead, class_="lead"), nav)
    body = tag("body", header, tag("main", *parts), tag("script", Html(script)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def table(columns: Sequence[str], rows: Sequence[Sequence[TableCell]], *, caption: str, sortable: bool = True) -> Html:
    """Return a table in a box that scrolls by itself; where scripts run, its headers sort it.

    Args:
        columns: headings.
        rows: as many entries each as there are columns.
        caption: what it is, for those who cannot see it.
        sortable: whether it may be sorted.
    """
    kinds = [entry.kind if entry.kind in _WIDTHS else None for entry in rows[0]] if rows else [None] * len(columns)
    head = tag("tr", *[tag("th", name, scope="col", class_=kind) for name, kind in zip(columns, kinds, strict=True)])
    body = tag("tbody", *[tag("tr", *map(_entry, row)) for row in rows])
    drawn = tag("table", tag("thead", head), body, class_="sortable" if sortable else None)
    return tag("div", drawn, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _entry(entry: TableCell) -> Html:
    name, scope = ("th", "row") if entry.head else ("td", None)
    return tag(name, entry.shown, class_=entry.kind, data_sort=entry.sort, title=entry.title, scope=scope)


def switch(label: str, panels: Mapping[str, Html]) -> Html:
    """Return panels of which a select box shows one; all of them, each under its name, where no script runs."""
    options = [tag("option", name, value=name) for name in panels]
    chosen = tag("label", f"{label} ", tag("select", *options))
    drawn = [tag("div", tag("h3", name), panel, data_panel=name) for name, panel in panels.items()]
    return tag("div", tag("p", chosen, class_="switch", hidden=True), *drawn)


def paragraphs(*texts: str) -> Html:
    """Return each text as a paragraph."""
    return join(*[tag("p", text) for text in texts])


def bullets(texts: Sequence[str], *, ordered: bool = False) -> Html:
    """Return the texts as a list."""
    return tag("ol" if ordered else "ul", *[tag("li", text) for text in texts])
