"""Prune a network in steps, and retrain, evaluate and save it after each step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from featkit.backbones.saved import NETWORK_FILE, save_network
from featkit.compression.prune import PruningConfig, prune
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.evaluation import PairedComparison, Report
from featkit.runs.fit import Run
from featkit.runs.names import NAME_FIELD, network_name, readable, recorded_name
from featkit.storage import publish, safe_name
from featkit.studies.profile import NetworkSpec, ProfileConfig, compare_runs, evaluate_network
from featkit.studies.recover import Recovery

Rows = list[dict[str, float | str]]


@dataclass(frozen=True)
class PruningStep:
    """A network after one pruning step.

    Attributes:
        network: spec of the unpruned network, or name of the pruned one.
        label: readable description of the step.
        path: directory of the saved network; None for the unpruned one.
        facts: content of ``prune.json``: configuration, parameters, sparsity, MACs; empty for the
            unpruned network.
        report: of a head on its embeddings of the test images, if requested.
        difference: top-1 minus that of the unpruned network, on the same test images.
    """

    network: str
    label: str
    path: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    report: Report | None = None
    difference: PairedComparison | None = None


def prune_network(
    request: Request,
    config: PruningConfig,
    out: Path,
    *,
    cache: Path = Path("cache"),
    compute: Compute | None = None,
    recovery: Recovery | None = None,
    head: str | None = None,
    name: str = "",
    on_message: Callable[[str], None] = lambda _: None,
) -> Iterator[PruningStep]:
    """Yield the pruned networks in order, each saved to ``out/prune/<name>/``.

    With a head, the unpruned network is evaluated and yielded first.

    Args:
        request: the network, and the images if any are needed.
        config: what remains of the network.
        out: folder of the results.
        cache: folder of the cache files.
        compute: how images are read and embedded.
        recovery: retrains each network before the next step, see ``make_recovery``.
        head: spec of a head that is fitted on the embeddings of each network and evaluated on the
            test images.
        name: name of the pruned network for tables and figures; empty for a composed one.
        on_message: called with progress messages.

    Raises:
        SpecError: if the network cannot be pruned to the requested target.
        DataError: if there are no training images where they are needed.
    """
    compute = compute or Compute()
    evaluate = (
        partial(_evaluate, request=request, head=head, cache=cache, compute=compute)
        if head
        else None
    )
    unpruned: Run | None = None
    if evaluate:
        unpruned = evaluate(Request(data="", backbone=request.backbone, weights=request.weights))
        yield PruningStep(request.backbone, "unpruned", report=unpruned.report)
    train = None
    if recovery:
        config = replace(config, recovery=recovery.text)
        train = recovery.train
    steps = zip(
        config.steps, prune(request, config, compute, train, on_message=on_message), strict=True
    )
    for step_config, pruned in steps:
        description = pruned.description
        if recovery:
            trained_on = tuple(sorted({*description.trained_on, *recovery.trained_on}))
            description = replace(description, trained_on=trained_on)
        path = out / "prune" / safe_name(description.name)
        shown = "" if name else recorded_name(path)  # a repeated pruning keeps the name
        if not shown:
            several = len(config.steps) > 1
            shown = _pruned_name(request, step_config, name, several)
        facts = {**pruned.facts, NAME_FIELD: shown}
        publish(
            path,
            {
                NETWORK_FILE: partial(save_network, pruned.module, description),
                "prune.json": json.dumps(facts, indent=2),
            },
        )
        step = PruningStep(path.name, description.label, path, facts)
        if evaluate and unpruned:
            run = evaluate(Request(data="", backbone=str(path)))
            difference = compare_runs(run, unpruned, (path.name, "unpruned"))
            step = replace(step, report=run.report, difference=difference)
        yield step


def _pruned_name(request: Request, config: PruningConfig, name: str, several: bool) -> str:
    """Return the name of the network of one step: the given one, or a composed one."""
    if config.macs is None:
        pruned = f"{100 * config.sparsity[0]:g}% of weights pruned"
    else:
        pruned = f"pruned to {100 * config.macs:g}% of MACs"
    if name:
        return f"{name}, {pruned}" if several else name
    parts = [network_name(request.backbone, weights=request.weights), pruned]
    return ", ".join([*parts, *([readable(config.recovery)] if config.recovery else [])])


def _evaluate(
    network: Request, *, request: Request, head: str, cache: Path, compute: Compute
) -> Run:
    """Fit and evaluate the head on the images of ``request``, embedded by another network."""
    values = request.to_dict()
    images = {name: value for name, value in values.items() if name not in ("backbone", "weights")}
    config = ProfileConfig(head=head, given=images, cache=cache)
    spec = NetworkSpec(network.backbone, network, "auto")
    return evaluate_network(spec, config, compute, "--head")


def step_rows(steps: Sequence[PruningStep]) -> Rows:
    """Return the rows of ``steps.csv``, one per evaluated network."""
    rows: Rows = []
    for step in steps:
        if step.report is None:
            continue
        low, high = step.report.interval95
        row: dict[str, float | str] = {
            "network": Path(step.network).name,
            "name": step.facts.get(NAME_FIELD, "unpruned"),
            "sparsity": step.facts.get("sparsity", 0.0),
            "macs": step.facts.get("macs", ""),
            "n": step.report.n,
            "top1": step.report.top1,
            "low": low,
            "high": high,
            "difference": "",
            "difference_low": "",
            "difference_high": "",
        }
        if step.difference:
            row["difference"] = step.difference.difference
            row["difference_low"], row["difference_high"] = step.difference.interval95
        rows.append(row)
    return rows
