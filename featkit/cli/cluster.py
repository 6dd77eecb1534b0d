"""``featkit cluster check``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featkit.cli.options import Command, cache_option, json_option, option
from featkit.cli.output import note, print_json, print_text, table
from featkit.errors import RunError

if TYPE_CHECKING:
    from featkit.ablation.executors.cluster import WorkerState

EPILOG = """\b
Examples:
  featkit cluster check local:2
  featkit cluster check tcp://head-node:8786 --data photos --backbone resnet50
  featkit cluster check scheduler.json --cache /shared/cache

\b
A cluster for --cluster of extract, ablate, longtail, robustness and fewshot:
  dask scheduler --scheduler-file scheduler.json
  dask worker --scheduler-file scheduler.json --nthreads 1 --nworkers 8
Anyone who can connect to a scheduler can run any program on its workers: use a private network, or
tls:// with certificates (see the documentation of Dask).
"""


@click.group(epilog=EPILOG)
def cluster() -> None:
    """Check the workers of a Dask cluster."""


@cluster.command("check", cls=Command)
@click.argument("cluster", metavar="local[:N]|ADDRESS|FILE")
@option("--data", group="Data", metavar="SPEC", help="Data set that the workers must see.")
@option("--backbone", group="Backbone", metavar="SPEC", help="Network that they must have.")
@option("--weights", group="Backbone", metavar="SPEC", help="Weights that they must have.")
@cache_option
@json_option
def check(cluster: str, cache: Path, as_json: bool, **given: str | None) -> None:
    """Report versions, devices, shared folders and weights of each worker.

    Exit code 1 if a worker cannot be used.
    """
    from featkit import api
    from featkit.embeddings.request import Request

    chosen = {name: value for name, value in given.items() if value is not None}
    request = Request.from_dict(chosen) if chosen else None
    workers = api.check_cluster(cluster, cache=cache, request=request)
    if as_json:
        _print_workers_as_json(workers)
    else:
        _print_workers(workers)
    unusable = [worker for worker in workers if worker.problem]
    if unusable:
        raise RunError(
            f"{len(unusable)} of {len(workers)} workers cannot be used: see their state above"
        )
    note(f"all {len(workers)} workers can be used")


def _print_workers_as_json(workers: Sequence[WorkerState]) -> None:
    rows = []
    for worker in workers:
        rows.append({"worker": worker.address, **worker.machine, "problem": worker.problem or None})
    print_json(rows)


def _print_workers(workers: Sequence[WorkerState]) -> None:
    columns = ["host", "python", "device", "threads"]
    lines = []
    for worker in workers:
        values = [worker.machine.get(name, "") for name in columns]
        lines.append([worker.address, *values, worker.problem or "ok"])
    print_text(table(["worker", *columns, "state"], lines, right=("threads",)))
