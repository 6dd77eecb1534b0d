"""Pages hold together whatever the texts in them, reach for nothing, and are always the same."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.reports.charts import ScatterPoint, interval_bar, scatter, shade
from featkit.reports.markup import Html, join, tag
from featkit.reports.page import TableCell, bullets, page, paragraphs, switch, table

HOSTILE = ["<script>alert(1)</script>", '"onload=alert(1) x="', "</script><b>", "]]>", "&lt;", "' onclick='x", "\x00‮"]
VOID = {"meta"}


class Reader(HTMLParser):
    """Reads tags, attributes and texts, and fails where tags do not nest."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(document)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def sample(text: str) -> str:
    """A page that has the text wherever a page can have one."""
    rows = [
        [TableCell(text, title=text, head=True), TableCell(text, text)],
        [TableCell("a"), TableCell("2", 2.0, "number")],
    ]
    points = [ScatterPoint(1, 0.5, (0.4, 0.6), text, text), ScatterPoint(20, 0.7, (0.6, 0.8), text)]
    parts = [
        table([text, "b"], rows, caption=text),
        switch(text, {text: paragraphs(text), "other": bullets([text])}),
        scatter(points, x_label=text, y_label=text),
    ]
    return page(text, text, {text: join(*parts)})


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(text: str) -> None:
    """The page of a hostile text has the tags and the attributes of a harmless one."""
    hostile, harmless = (Reader(sample(name)) for name in (text, "harmless"))
    assert [(name, list(values)) for name, values in hostile.found] == [
        (name, list(values)) for name, values in harmless.found
    ]
    assert len([name for name, _ in hostile.found if name == "script"]) == 1


@given(st.text(max_size=40))
def test_text_is_shown_as_it_is_and_what_cannot_be_seen_as_an_escape(text: str) -> None:
    """In contents and in attributes."""
    (read,) = [Reader(tag("p", text, title=text))]
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    assert "".join(read.texts) == shown
    assert read.found == [("p", {"title": shown})]


def test_markup_is_not_escaped_twice_and_zero_is_a_value() -> None:
    """Only None and False leave an attribute out."""
    assert tag("p", tag("b", "a&b"), x=0, hidden=True, title=None, open=False) == '<p x="0" hidden><b>a&amp;b</b></p>'
    assert isinstance(join("<", Html("<br>")), Html)


def test_a_page_reaches_for_nothing() -> None:
    """No address but anchors of its own; its policy names its own style and script, by digest."""
    document = sample("x")
    read = Reader(document)
    for name, values in read.found:
        assert name not in ("link", "img", "iframe", "object", "base")
        assert "src" not in values
        assert values.get("href", "#").startswith("#")
        assert not any(key.startswith("on") or key == "style" for key in values)
    assert not re.search(r"https?:|url\(|@import", document)
    (policy,) = [values["content"] for _, values in read.found if values.get("http-equiv")]
    assert policy.startswith("default-src 'none'")
    for name in ("style", "script"):
        content = re.search(f"<{name}>(.*?)</{name}>", document, re.DOTALL)[1]
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy


def test_tables_say_what_they_are_sorted_by() -> None:
    """Without scripts they are plain tables with headings of columns and rows."""
    read = Reader(table(["a", "b"], [[TableCell("x", head=True), TableCell("1 %", 0.01, "number")]], caption="all"))
    assert ("th", {"scope": "row", "class": "name"}) in read.found
    assert ("td", {"class": "number", "data-sort": "0.01"}) in read.found
    assert ("div", {"class": "scroll", "role": "region", "aria-label": "all", "tabindex": "0"}) in read.found
    assert "sortable" not in table(["a"], [], caption="none", sortable=False)


def test_panels_can_all_be_seen_without_scripts() -> None:
    """Only the select box, which does nothing then, is hidden."""
    read = Reader(switch("Axes", {"a": paragraphs("1"), "b": paragraphs("2")}))
    assert [values for _, values in read.found if "hidden" in values] == [{"class": "switch", "hidden": None}]
    assert [values["data-panel"] for _, values in read.found if "data-panel" in values] == ["a", "b"]


def test_bars_are_where_their_values_are() -> None:
    """In percent of the range, cut at its ends."""
    drawn = Reader(interval_bar(0.5, (0.25, 2.0), (0.0, 1.0), zero=True)).found
    assert [values for name, values in drawn if name == "circle"] == [
        {"cx": "50.00%", "cy": "10", "r": "4", "class": "mark"}
    ]
    assert [(values["x1"], values["x2"]) for name, values in drawn if name == "line"] == [
        ("0.00%", "0.00%"),
        ("25.00%", "100.00%"),
    ]
    assert 'class="mark doubt"' in interval_bar(0.5, (0.4, 0.6), (0.0, 1.0), doubt=True)


@pytest.mark.parametrize("times", [(0.001, 900), (1, 1), (0.5, 5), (3, 3.1)])
@pytest.mark.parametrize("shares", [(0.0, 1.0), (0.9, 0.9), (0.991, 0.999)])
def test_any_points_lie_within_the_plot(times: tuple[float, float], shares: tuple[float, float]) -> None:
    """As do their intervals."""
    points = [ScatterPoint(x, y, (y, y), "p", "1") for x in times for y in shares]
    read = Reader(scatter(points, x_label="seconds", y_label="top-1 (%)"))
    for name, values in read.found:
        if name == "circle":
            assert 9.9 <= float(values["cx"][:-1]) <= 97.1
            assert 2.9 <= float(values["cy"][:-1]) <= 90.1


def test_an_accuracy_has_no_level_above_a_hundred() -> None:
    """Where its interval is wide, and ends near there."""
    drawn = scatter([ScatterPoint(1, 0.9, (0.873, 0.948), "p", "1")], x_label="seconds", y_label="top-1 (%)")
    levels = [int(level) for level in re.findall(r'dx="-6"[^>]*>([0-9]+)<', drawn)]
    assert levels == [80, 85, 90, 95, 100]


def test_colours_rise_with_values() -> None:
    """From the first to the last."""
    shades = [shade(value, (0.2, 0.8)) for value in (0.2, 0.5, 0.8)]
    assert shades == ["h0", "h4", "h8"]


def test_the_same_page_is_the_same_bytes() -> None:
    """Nothing of it depends on time or chance."""
    assert sample("x") == sample("x")


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_texts_can_be_read_in_both_themes() -> None:
    """Contrast of at least 4.5 (WCAG 2.2, AA) for every colour of text on every ground it stands on."""
    style = re.search(r"<style>(.*?)</style>", sample("x"), re.DOTALL)[1]
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in style.split("@media screen")[:2])
    for theme in (light, dark):
        pairs = [(text, ground) for text in ("ink", "soft", "mark", "bad") for ground in ("paper", "panel")]
        pairs += [("low", f"h{step}") for step in range(5)] + [("high", f"h{step}") for step in (6, 7, 8)]
        colours = [(theme[text], theme[ground]) for text, ground in pairs] + [("#10151b", theme["h5"])]
        for text, ground in colours:
            high, low = sorted((luminance(text), luminance(ground)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
