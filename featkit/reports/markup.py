"""HTML and SVG that cannot be broken by the texts in it: all markup is made by one function that escapes."""

from __future__ import annotations

import html

_VOID = frozenset({"meta"})


class Html(str):
    """Markup made by ``tag``; any other text is escaped where it becomes part of a page."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | float | bool | None) -> Html:
    """Return an element; children that are not ``Html``, and all attributes, are escaped.

    Args:
        name: of the element.
        children: texts and elements.
        attributes: ``class_`` is written ``class``, ``data_sort`` is ``data-sort``; True is a bare name, None and False
            are left out.
    """
    written = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    closed = "" if name in _VOID else f"{join(*children)}</{name}>"
    return Html(f"<{name}{written}>{closed}")


def join(*children: str) -> Html:
    """Return texts and elements one after the other, texts escaped."""
    return Html("".join(child if isinstance(child, Html) else html.escape(readable(child)) for child in children))


def readable(text: str) -> str:
    r"""Return the text with what cannot be seen, such as marks that turn the direction, as escapes like ``\u202e``."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _attribute(key: str, value: str | float | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(readable(str(value)))}"'
