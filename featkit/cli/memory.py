"""How this program's memory is managed: the business of a program, not of a library."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next batch instead of giving it back to the system.

    Activations are blocks of megabytes, which it would otherwise map anew, page by page, for every layer: 2 to 11 % of
    the time of a bf16 forward pass. Where there is no glibc, nothing happens.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
