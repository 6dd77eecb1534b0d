"""Pages stay well-formed whatever their texts are, need no network, and are reproducible."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markupsafe import Markup

from featkit.errors import visible
from featkit.reports.ablation import AblationView
from featkit.reports.components import (
    ScatterPoint,
    Table,
    TableCell,
    interval_cell,
    number_cell,
    scatter_chart,
)
from featkit.reports.render import _environment, render

HOSTILE = [
    "<script>alert(1)</script>",
    '"onload=alert(1) x="',
    "</script><b>",
    "]]>",
    "&lt;",
    "' onclick='x",
    "\x00\u202e",
    "{{ 7 * 7 }}{% raw %}",
]
VOID = {"meta"}


class Reader(HTMLParser):
    """Collects elements, attributes and texts; fails if elements are not nested properly."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(document)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def attributes(self, element: str) -> list[dict[str, str | None]]:
        return [values for name, values in self.elements if name == element]


def macro(name: str, *args: Any) -> str:
    """Render one macro of components.html."""
    module: Any = _environment().get_template("components.html").module
    return str(getattr(module, name)(*args))


def page(text: str) -> str:
    """Render a page that has the text wherever a page can have one."""
    rows = [
        [TableCell(text, title=text, is_header=True, detail=text), TableCell(text, text)],
        [TableCell("a"), number_cell("2", 2.0)],
    ]
    table = Table(text, [text, "b"], rows)
    points = [ScatterPoint(1, 0.5, (0.4, 0.6), text, text), ScatterPoint(20, 0.7, (0.6, 0.8), text)]
    view = AblationView(
        title=text,
        lead=text,
        selections=[text],
        differences=[text],
        n_effects=1,
        n_significant=1,
        main_effects={text: table},
        compares_data=True,
        metric=text,
        long_tail={text: table},
        robustness={text: table},
        heat_maps={text: table, "other": table},
        time_chart=scatter_chart(points, x_label=text, y_label=text),
        pareto_front=[text],
        effect_tests=table,
        selection_tests=table,
        n_selection_tests=1,
        cells=table,
        problems=table,
        methods=[text],
        commands=[text],
        versions={text: text},
    )
    return render("ablation.html", view=view)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(text: str) -> None:
    """The page of a hostile text has the elements and attributes of a harmless one."""
    hostile, harmless = Reader(page(text)), Reader(page("harmless"))
    assert [(name, list(values)) for name, values in hostile.elements] == [
        (name, list(values)) for name, values in harmless.elements
    ]
    assert len(hostile.attributes("script")) == 1


@given(st.text(max_size=40))
def test_text_is_shown_literally_and_invisible_characters_as_escapes(text: str) -> None:
    template = _environment().from_string('<p title="{{ text }}">{{ text }}</p>')
    reader = Reader(template.render(text=text))
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
    assert "".join(reader.texts) == shown == visible(text)
    assert reader.elements == [("p", {"title": shown})]


def test_markup_is_not_escaped_twice() -> None:
    template = _environment().from_string("{{ markup }}{{ text }}")
    assert template.render(markup=Markup("<b>a&amp;b</b>"), text="<") == "<b>a&amp;b</b>&lt;"


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("ablation.html")


def test_a_page_needs_no_network() -> None:
    """It links to its own anchors only; its policy names its own style and script by digest."""
    document = page("x")
    reader = Reader(document)
    for name, values in reader.elements:
        assert name not in ("link", "img", "iframe", "object", "base")
        assert "src" not in values
        assert (values.get("href") or "#").startswith("#")
        assert not any(key.startswith("on") or key == "style" for key in values)
    assert not re.search(r"https?:|url\(|@import", document)
    (policy,) = [
        values["content"] for values in reader.attributes("meta") if values.get("http-equiv")
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    for name in ("style", "script"):
        match = re.search(f"<{name}>(.*?)</{name}>", document, re.DOTALL)
        assert match is not None
        assert base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode() in policy


def test_every_link_of_the_navigation_has_a_section() -> None:
    reader = Reader(page("x"))
    links = [values["href"] for values in reader.attributes("a")]
    assert links == [f"#{values['id']}" for values in reader.attributes("h2")]
    assert len(links) == 10


def test_a_table_has_headers_and_sort_values() -> None:
    """Without scripts it is a plain table."""
    rows = [[TableCell("x", is_header=True), number_cell("1%", 0.01)]]
    reader = Reader(macro("table", Table("all", ["a", "b"], rows)))
    assert ("th", {"scope": "col", "class": "number"}) in reader.elements
    assert ("th", {"scope": "row", "class": "name"}) in reader.elements
    assert ("td", {"class": "number", "data-sort": "0.01"}) in reader.elements
    box = {"class": "scroll", "role": "region", "aria-label": "all", "tabindex": "0"}
    assert ("div", box) in reader.elements
    assert reader.attributes("table") == [{"class": "sortable"}]
    plain = Reader(macro("table", Table("none", ["a"], [], sortable=False)))
    assert plain.attributes("table") == [{}]


def test_empty_cells_sort_as_empty_and_zero_as_a_number() -> None:
    rows = [[number_cell("", ""), number_cell("0", 0)]]
    reader = Reader(macro("table", Table("all", ["a", "b"], rows)))
    assert [values["data-sort"] for values in reader.attributes("td")] == ["", "0"]


def test_all_panels_are_visible_without_scripts() -> None:
    """Only the select box, which needs a script, is hidden."""
    table = Table("t", ["a"], [[TableCell("1")]])
    reader = Reader(macro("switch", "Axes", {"a": table, "b": table}))
    hidden = [values for _, values in reader.elements if "hidden" in values]
    panels = [values["data-panel"] for _, values in reader.elements if "data-panel" in values]
    assert hidden == [{"class": "switch", "hidden": None}]
    assert panels == ["a", "b"]


def test_interval_bars_are_drawn_to_scale() -> None:
    """In percent of the range, clipped at its ends."""
    cell = interval_cell(0.5, (0.25, 2.0), (0.0, 1.0), zero=True)
    reader = Reader(macro("interval_bar", cell.bar))
    assert reader.attributes("circle") == [{"cx": "50.00%", "cy": "10", "r": "4", "class": "mark"}]
    ends = [(values["x1"], values["x2"]) for values in reader.attributes("line")]
    assert ends == [("0.00%", "0.00%"), ("25.00%", "100.00%")]
    hollow = interval_cell(0.5, (0.4, 0.6), (0.0, 1.0), significant=False)
    assert 'class="mark hollow"' in macro("interval_bar", hollow.bar)


def test_the_same_page_has_the_same_bytes() -> None:
    assert page("x") == page("x")


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_enough_contrast_in_both_themes() -> None:
    """At least 4.5 (WCAG 2.2, AA) for every text colour on every background it is used on."""
    style = re.search(r"<style>(.*?)</style>", page("x"), re.DOTALL)
    assert style is not None
    blocks = style[1].split("@media screen")[:2]
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in blocks)
    for theme in (light, dark):
        texts, backgrounds = ("text", "secondary", "accent", "error"), ("background", "surface")
        pairs = [(text, background) for text in texts for background in backgrounds]
        pairs += [("low", f"h{step}") for step in range(5)]
        pairs += [("high", f"h{step}") for step in (6, 7, 8)]
        colours = [(theme[text], theme[background]) for text, background in pairs]
        colours.append(("#10151b", theme["h5"]))
        for text, background in colours:
            darker, lighter = sorted((luminance(text), luminance(background)))
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, background)
