"""``featkit app``."""

from __future__ import annotations

from pathlib import Path

import click

from featkit.cli.options import UserPath, cache_option, command, device_option, option, out_option

EPILOG = """\b
Examples:
  featkit app latest
  featkit app experiments/runs/photos/0123456789ab model.onnx
  featkit app --data photos --data pets/labels.csv
  featkit app --port 9000 --no-browser

\b
The pages read nothing but the paths that are named here, the run directories and images of these
runs, and the folders --cache and --out. Needs the extra app: pip install 'featkit[app]'
"""


@command(epilog=EPILOG)
@click.argument("runs", nargs=-1, type=UserPath(), metavar="[RUN]...")
@option(
    "--data",
    group="Data",
    metavar="SPEC",
    multiple=True,
    help="Images for the pages Train, Clean and Map: a folder, a CSV file or the name of a data "
    "set. Repeatable.",
    show_default="digits",
)
@option(
    "--studies",
    group="Data",
    type=UserPath(file_okay=False),
    multiple=True,
    metavar="DIR",
    help="Folder with results of ablate, longtail or robustness, for the page Studies. Repeatable.",
    show_default="experiments",
)
@device_option
@cache_option
@out_option
@option(
    "--port",
    group="Output",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="Port on 127.0.0.1.",
    show_default="the first free one from 8501",
)
@option("--browser/--no-browser", group="Output", default=True, help="Open a web browser.")
def app(
    runs: tuple[Path, ...],
    *,
    data: tuple[str, ...],
    studies: tuple[Path, ...],
    device: str,
    cache: Path,
    out: Path,
    port: int | None,
    browser: bool,
) -> None:
    """Open the web app: try models, train, clean labels, explore, read studies.

    RUN is a run (its name, `latest`, its id or its directory), a file written by `featkit export`,
    or a folder of both; runs in --out can always be chosen. The server listens on 127.0.0.1 only
    and opens no outside connection.
    """
    from featkit.app.server import serve
    from featkit.app.settings import AppSettings
    from featkit.runs.registry import find_run

    runs = tuple(path if path.exists() else find_run(path) for path in runs)
    default_studies = Path("experiments")
    if not studies and default_studies.is_dir():
        studies = (default_studies,)
    settings = AppSettings(
        runs=runs, data=data, studies=studies, cache=cache, out=out, device=device
    )
    serve(settings, port=port, open_browser=browser)
