"""Text and HTML of the pages: untrusted names are shown as they are."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from featkit.app.models import Evidence
from featkit.app.views import (
    answer_html,
    error_text,
    evidence_html,
    plain,
    sandboxed_html,
    tiles_html,
    time_text,
)
from featkit.errors import DataError
from featkit.runs.classifier import Answer
from featkit.runs.predict import Prediction
from featkit.studies.inspect import SimilarImage

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """Collect the tags and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def tags(text):
    return [tag for tag, _ in Tags(text).found]


def answer(top=((HOSTILE, 0.75), ("b", 0.25)), rejected=False):
    return Answer(Prediction("a.png", top, rejected), None, 12.4)


@pytest.mark.parametrize(
    "text", ["*a* _b_ `c` [d](e) <i>f</i> $g$ :smile: :red[h] #i |j| ~k~", "a\nb\x1b[31m\u202e"]
)
def test_plain_text_has_no_markdown_left(text):
    shown = plain(text)
    assert re.search(r"(?<!\\)[*_`\[\]<>$:#|~]", shown) is None
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_an_answer_shows_bars_in_percent_and_escapes_names():
    found = answer_html(HOSTILE, answer())
    assert "script" not in tags(found)
    assert "img" not in tags(found)
    assert "75.0 %" in found
    assert "width:75.0%" in found
    assert "12 ms" in found


def test_an_answer_says_whether_it_is_right_where_the_class_is_known():
    assert "right" in answer_html("m", answer(), true=HOSTILE)
    assert "its class is b" in answer_html("m", answer(), true="b")
    assert "right" not in answer_html("m", answer())


def test_a_rejected_image_is_unknown():
    found = answer_html("m", answer(rejected=True))
    assert ">unknown<" in found
    assert "rejection threshold" in found


def test_evidence_has_alternative_texts_and_escapes_names():
    pixels = np.zeros((8, 8, 3), np.uint8)
    similar = (SimilarImage("a.png", HOSTILE, 0.5, pixels), SimilarImage("b.png", "b", 0.4, None))
    found = evidence_html(Evidence(pixels, similar, (HOSTILE,)), HOSTILE)
    images = [attributes for tag, attributes in Tags(found).found if tag == "img"]
    assert len(images) == 2
    for attributes in images:
        assert set(attributes) <= {"class", "src", "alt"}
        assert attributes["src"].startswith("data:image/jpeg;base64,")
        assert HOSTILE in attributes["alt"]


def test_tiles_without_an_image_keep_their_caption():
    assert "<figcaption>gone</figcaption>" in tiles_html([(None, "gone")])


def test_a_report_runs_in_a_sandbox_that_cannot_leave():
    found = sandboxed_html('<html><body onload="x">&amp;</body></html>')
    (frame,) = [attributes for tag, attributes in Tags(found).found if tag == "iframe"]
    assert "allow-same-origin" not in frame["sandbox"]
    assert frame["srcdoc"] == '<html><body onload="x">&amp;</body></html>'
    policies = [attributes for tag, attributes in Tags(found).found if tag == "meta"]
    assert policies[0]["content"].startswith("default-src 'none'")


def test_messages_give_no_advice_about_options_of_the_command_line():
    error = DataError("a.png is broken", fixes=["remove it", "skip it with --on-error skip"])
    assert error_text(error) == "a.png is broken: remove it"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        (0.2, "0 s"),
        (59.4, "59 s"),
        (125, "2 min 5 s"),
        (7300, "2 h 1 min"),
    ],
)
def test_times_are_given_in_words(seconds, text):
    assert time_text(seconds) == text


def test_labels_that_reach_their_threshold_have_a_check_mark():
    top = (("car", 0.9), (HOSTILE, 0.7), ("bus", 0.2))
    prediction = Prediction("a.png", top, labels=("car", HOSTILE))
    html = answer_html("model", Answer(prediction, None, 1.0), true="car")
    text = re.sub("<[^>]*>", " ", html)
    assert text.count("✓") == 2
    assert "✓ car" in text
    assert "its labels are car" in text
    assert "script" not in tags(html)
