"""Figures as file contents."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from featkit.errors import SpecError

FORMATS = (".png", ".svg", ".pdf")
"""Endings of the files that ``figure_bytes`` can make."""

_MARGIN = 0.03
"""Space above and below a figure that keeps its width, in inches."""

# Embedded TrueType fonts, which publishers require, and SVG element ids that do not change.
_SETTINGS: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "featkit"}
_METADATA: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as a PNG of 150 dots per inch, cropped to its content.

    The bytes are reproducible with the same version of matplotlib: the metadata hold no time and
    no version.
    """
    return figure_bytes(figure, Path("figure.png"))


def figure_bytes(figure: Figure, path: Path, *, dpi: int = 150, crop: bool = True) -> bytes:
    """Return the figure as PNG, SVG or PDF, by the ending of a path; see ``png_bytes``.

    Args:
        figure: to draw.
        path: where the bytes will be written; only its ending is used.
        dpi: dots per inch of a PNG, and of pixels in the other formats.
        crop: whether the figure is cropped to its content; else only its height is, and it keeps
            its exact width.

    Raises:
        SpecError: if the ending is none of ``FORMATS``.
    """
    suffix = path.suffix.lower()
    check_format(path)
    buffer = BytesIO()
    with mpl.rc_context(_SETTINGS):
        figure.savefig(
            buffer,
            format=suffix[1:],
            dpi=dpi,
            bbox_inches="tight" if crop else _full_width(figure),
            metadata=_METADATA[suffix],
        )
    return buffer.getvalue()


def _full_width(figure: Figure) -> Bbox:
    """Return a box in inches that is as wide as the figure, and as high as its content.

    The layout of the figure is fixed from then on.
    """
    # Each drawing carries out the layout. Axes of fixed proportions have their place after two;
    # further ones would move what stands beside them.
    for _ in range(2):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    content = figure.get_tightbbox()
    width = float(figure.get_figwidth())
    left = min(0.0, float(content.x0) - _MARGIN)
    if content.x1 > left + width:
        left = float(content.x1) + _MARGIN - width
    return Bbox([(left, content.y0 - _MARGIN), (left + width, content.y1 + _MARGIN)])


def check_format(path: Path) -> None:
    """Raise SpecError unless the path ends in one of ``FORMATS``."""
    if path.suffix.lower() not in FORMATS:
        raise SpecError(f"{path} is no figure file: end its name in {', '.join(FORMATS)}")
