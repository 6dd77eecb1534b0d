"""Extension of griffe: parameters that a docstring describes together become one item each.

featkit writes ``device, cache, progress: as for ``extract``.``; the parser knows one name per item.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_GROUP = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:,\s+\w+)+):\s+(?P<text>.*)$", re.MULTILINE)


class GroupedParameters(griffe.Extension):
    """Split items of several names before docstrings are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a function or a class."""
        if obj.docstring is not None:
            obj.docstring.value = _GROUP.sub(_split, obj.docstring.value)


def _split(match: re.Match[str]) -> str:
    names = re.split(r",\s+", match["names"])
    return "\n".join(f"{match['indent']}{name}: {match['text']}" for name in names)
