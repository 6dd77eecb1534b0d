"""Render Jinja2 templates to self-contained HTML pages.

A page is one file: style and script are part of it, named by digest in its content security policy,
which forbids every other script, style and connection.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from featkit.errors import visible


def render(template: str, **context: Any) -> str:
    """Return the page of a template in ``reports/templates``.

    Every text in ``context`` is escaped: HTML characters by Jinja2, invisible characters by
    ``featkit.errors.visible``.

    Args:
        template: file name, such as ``ablation.html``; it extends ``base.html``.
        context: values the template needs; a missing one is an error.
    """
    return _environment().get_template(template).render(**context)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("featkit", "reports/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for kind, name in (("style", "report.css"), ("script", "report.js")):
        assert environment.loader is not None
        # Browsers hash the text after turning every line end into a line feed.
        source = environment.loader.get_source(environment, name)[0].replace("\r\n", "\n")
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        # Files of featkit, not data: they are not escaped.
        environment.globals[kind] = Markup(source)
        environment.globals[f"{kind}_hash"] = f"'sha256-{digest}'"
    return environment


def _finalize(value: Any) -> Any:
    """Make the output of every expression visible; markup from a template is not changed."""
    return value if isinstance(value, Markup) else visible(str(value))
