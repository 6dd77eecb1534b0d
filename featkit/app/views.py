"""Text, HTML fragments and tables of the pages; no Streamlit.

Names of files and classes are untrusted: ``plain`` escapes them in Markdown, and the HTML fragments
escape them by ``markupsafe``.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from PIL import Image

from featkit.errors import FeatkitError, visible
from featkit.images.base import Pixels

if TYPE_CHECKING:  # these import torch, which the process of a training must not wait for
    from featkit.app.models import Evidence
    from featkit.runs.classifier import Answer

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_JPEG_QUALITY = 80

STYLE = """
<style>
.stMainBlockContainer { padding-top: 3.5rem; }
.stMainBlockContainer h1 { font-size: 1.9rem; padding-bottom: 0; }
.fk-model { font-size: .9rem; line-height: 1.35; }
.fk-model h4 { font-size: .9rem; font-weight: 600; margin: 0; padding: 0; overflow-wrap: anywhere; }
.fk-answer { font-size: 1.25rem; font-weight: 600; overflow-wrap: anywhere; }
.fk-muted { opacity: .75; font-size: .8rem; }
.fk-bars { list-style: none; margin: .35rem 0 !important; padding: 0 !important; }
.fk-bars li { position: relative; display: flex; justify-content: space-between; gap: .5rem;
  padding: .1rem .4rem !important; margin: .15rem 0 !important; border-radius: .25rem;
  overflow: hidden; }
.fk-bars li > i { position: absolute; inset: 0 auto 0 0; background: #4c8dd6; opacity: .35; }
.fk-bars li > span { position: relative; overflow-wrap: anywhere; margin: 0; }
.fk-bars li > span:last-child { font-variant-numeric: tabular-nums; white-space: nowrap; }
.fk-picture { display: block; width: 100%; max-width: 20rem; border-radius: .4rem; }
.fk-tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(5.2rem, 1fr));
  gap: .5rem; margin: .35rem 0; }
.fk-tiles figure { margin: 0; min-width: 0; }
.fk-tiles img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: .3rem; }
.fk-tiles figcaption { font-size: .72rem; line-height: 1.2; overflow-wrap: anywhere; }
</style>
"""
"""Style sheet of the fragments; colours work on light and on dark backgrounds."""


def plain(text: object) -> str:
    """Return text that Streamlit's Markdown shows as it is, in one line."""
    return _PUNCTUATION.sub(r"\\\1", visible(str(text)))


def error_text(error: FeatkitError) -> str:
    """Return the message of an error without advice that names options of the command line."""
    return error.text([fix for fix in error.fixes if "--" not in fix])


def percent(value: float) -> str:
    """Return a fraction in percent with one decimal."""
    return f"{100 * value:.1f} %"


def jpeg_uri(pixels: Pixels, *, quality: int = _JPEG_QUALITY) -> str:
    """Return an image as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_html(pixels: Pixels, alt: str) -> str:
    """Return an image as HTML."""
    return str(
        Markup('<img class="fk-picture" src="{}" alt="{}">').format(jpeg_uri(pixels), visible(alt))
    )


def answer_html(title: str, answer: Answer, true: str | None = None) -> str:
    """Return the prediction of a model as HTML: its answer, bars of the top classes, the time.

    With several labels per image, those that reach their threshold have a check mark.

    Args:
        title: name of the model.
        answer: the prediction.
        true: the class of the image, where it is known.
    """
    prediction = answer.prediction
    given = prediction.labels or ()
    bars = Markup("").join(
        _bar(f"✓ {name}" if name in given else name, value) for name, value in prediction.top
    )
    verdict = Markup("")
    if prediction.rejected:
        verdict = Markup('<div class="fk-muted">below the rejection threshold</div>')
    if true is not None:
        what = "its class is" if prediction.labels is None else "its labels are"
        mark = "✓ right" if prediction.answer == true else f"✗ {what} {visible(true)}"
        verdict += Markup('<div class="fk-muted">{}</div>').format(mark)
    return str(
        Markup(
            '<div class="fk-model"><h4>{title}</h4><div class="fk-answer">{answer}</div>{verdict}'
            '<ul class="fk-bars" aria-label="probabilities">{bars}</ul>'
            '<div class="fk-muted">{time:.0f} ms</div></div>'
        ).format(
            title=visible(title),
            answer=visible(prediction.answer),
            verdict=verdict,
            bars=bars,
            time=answer.milliseconds,
        )
    )


def _bar(name: str, value: float) -> Markup:
    return Markup('<li><i style="width:{:.1f}%"></i><span>{}</span><span>{}</span></li>').format(
        100 * value, visible(name), percent(value)
    )


def evidence_html(evidence: Evidence, label: str) -> str:
    """Return the heat map and the similar training images of a prediction as HTML."""
    parts = []
    if evidence.heat_map is not None:
        alt = f"Heat map: where the image speaks for {label}"
        parts.append(Markup(picture_html(evidence.heat_map, alt)))
        parts.append(
            Markup('<div class="fk-muted">Bright parts speak for {}.</div>').format(visible(label))
        )
    if evidence.similar:
        parts.append(Markup('<div class="fk-muted">Most similar training images</div>'))
        tiles = []
        for each in evidence.similar:
            tiles.append((each.image, f"{each.label}, cosine {each.cosine:.2f}"))
        parts.append(Markup(tiles_html(tiles)))
    for note in evidence.notes:
        parts.append(Markup('<div class="fk-muted">{}</div>').format(visible(note)))
    return str(Markup('<div class="fk-model">{}</div>').format(Markup("").join(parts)))


def tiles_html(tiles: Iterable[tuple[Pixels | None, str]]) -> str:
    """Return a gallery of images with captions as HTML; an image may be missing."""
    encoded = []
    for pixels, caption in tiles:
        encoded.append(("" if pixels is None else jpeg_uri(pixels), caption))
    return uri_tiles_html(encoded)


def uri_tiles_html(tiles: Iterable[tuple[str, str]]) -> str:
    """Return a gallery of data URIs with captions as HTML; a URI may be empty."""
    figures = []
    for uri, caption in tiles:
        text = visible(caption)
        picture = Markup('<img src="{}" alt="{}">').format(uri, text) if uri else ""
        figures.append(
            Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(picture, text)
        )
    return str(Markup('<div class="fk-tiles">{}</div>').format(Markup("").join(figures)))


def time_text(seconds: float | None) -> str:
    """Return a time in words, such as ``2 min 5 s``; empty if it is not known."""
    if seconds is None or not np.isfinite(seconds):
        return ""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
)


def sandboxed_html(page: str) -> str:
    """Return a page that shows another HTML page without access to the app or to the network.

    A report may come with a run from somebody else. Its scripts run in a frame of an origin of its
    own, which inherits a policy that permits no connection.
    """
    return str(
        Markup(
            "<!DOCTYPE html><html><head>"
            '<meta http-equiv="Content-Security-Policy" content="{policy}">'
            "<style>html, body, iframe {{ margin: 0; width: 100%; height: 100%; border: 0; "
            "display: block }}</style></head><body>"
            '<iframe title="Report" sandbox="allow-scripts allow-downloads" srcdoc="{page}">'
            "</iframe></body></html>"
        ).format(policy=_REPORT_POLICY, page=page)
    )
