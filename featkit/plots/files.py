"""Figures as file contents."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as a PNG of 150 dots per inch, cropped to its content.

    The bytes are reproducible with the same version of matplotlib: the metadata hold no time and
    no version.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
