"""Figures as bytes."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as a PNG of 150 dots per inch, cut to what is drawn.

    The same figure gives the same bytes with the same matplotlib: no time and no version is written into them.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
