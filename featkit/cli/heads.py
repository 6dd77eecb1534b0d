"""`featkit heads`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featkit.cli.options import command
from featkit.cli.output import print_line, print_text

EPILOG = """\b
Examples:
  featkit heads
  featkit fit --head svm:C=9,kernel=rbf
"""


@command(epilog=EPILOG)
def heads() -> None:
    """List heads and class-imbalance corrections, including plug-ins, with their options."""
    from featkit.heads import list_corrections, list_heads

    for head in list_heads():
        print_line(f"{head.name}{'' if head.builtin else ' (plug-in)'}: {head.summary}")
        print_line("    " + _options_text(head.options))
    print_text("\nClass-imbalance corrections (--balance):")
    for correction in list_corrections():
        names = ", ".join([correction.name, *correction.aliases])
        print_line(f"{names}: {correction.summary.replace('``', '')}")
        if correction.options:
            print_line("    " + _options_text(correction.options))


def _options_text(options: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={'none' if value is None else value}" for name, value in options.items()
    )
