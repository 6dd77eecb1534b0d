"""``featkit doctor``."""

from __future__ import annotations

from pathlib import Path

from featkit.cli.options import cache_option, command, json_option
from featkit.cli.output import print_json, print_text, table

EPILOG = """\b
Examples:
  featkit doctor
  featkit doctor --cache /data/cache --json
"""


@command(epilog=EPILOG)
@cache_option
@json_option
def doctor(cache: Path, as_json: bool) -> None:
    """Show versions, devices, weights and cache of this machine.

    Also whether int8 is safe on its processor. Add the output to a report of a problem.
    """
    from dataclasses import asdict

    from featkit.studies.doctor import examine

    found = examine(cache)
    if as_json:
        print_json([asdict(finding) for finding in found])
        return
    rows = []
    for finding in found:
        rows.append([finding.topic, "" if finding.good else "!", finding.text])
    print_text(table(["topic", " ", "found"], rows))
