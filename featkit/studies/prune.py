"""What a network is worth while it is pruned, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.plots.curve import Line, plot_curve
from featkit.plots.files import png_bytes
from featkit.runs.fit import Run
from featkit.storage import csv_text
from featkit.studies.profile import Candidate, ProfileConfig, difference, judge

Rows = list[dict[str, float | str]]

_COLUMNS = (
    "network",
    "sparsity",
    "macs",
    "n",
    "top1",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
)


class PruningSteps:
    """Networks on the way from the one that is pruned, each judged by a head on the same test images.

    Args:
        request: the network that is pruned, and the images.
        head: spec of the head.
        cache: folder of the files of vectors.
        compute: how images are read.

    Attributes:
        first: what the unpruned network is worth, for people.
        title: the head and the images, for people.
        rows: a line for each network, by the names of the columns of ``steps.csv``.
    """

    def __init__(self, request: Request, head: str, cache: Path, compute: Compute) -> None:
        own = Request(data="", backbone=request.backbone, weights=request.weights)
        images = {name: value for name, value in request.to_dict().items() if name not in ("backbone", "weights")}
        self._protocol, self._compute = ProfileConfig(head=head, given=images, cache=cache), compute
        self._before = self._judge(own)
        self.title = f"{head} on {Path(request.data).name}, n = {self._before.report.n}"
        self.rows: Rows = []
        self.first = self._add(request.backbone, self._before, {"sparsity": 0.0})

    def add(self, network: str, sparsity: float, macs: int) -> str:
        """Judge a network, and return what it is worth, for people."""
        return self._add(network, self._judge(Request(data="", backbone=network)), {"sparsity": sparsity, "macs": macs})

    def files(self) -> dict[str, str | bytes]:
        """Return ``steps.csv`` and ``steps.png``."""
        return {"steps.csv": csv_text(self.rows), "steps.png": steps_png({"pruned": self.rows}, self.title)}

    def _judge(self, network: Request) -> Run:
        return judge(Candidate(network.backbone, network, "auto"), self._protocol, self._compute)

    def _add(self, network: str, run: Run, facts: Mapping[str, float]) -> str:
        report = run.report
        low, high = report.interval95
        row: dict[str, float | str] = {
            **dict.fromkeys(_COLUMNS, ""),
            "network": Path(network).name,
            **facts,
            "n": report.n,
            "top1": report.top1,
            "low": low,
            "high": high,
        }
        head = self._protocol.head
        said = f"{head}: top-1 {100 * report.top1:.1f} % ({100 * low:.1f} to {100 * high:.1f}), n = {report.n}"
        if run is not self._before:
            paired = difference(run, self._before, (network, "unpruned"))
            least, most = paired.interval95
            row |= {"difference": paired.difference, "difference_low": least, "difference_high": most}
            said += f"; to the unpruned {100 * paired.difference:+.1f} points ({100 * least:+.1f} to {100 * most:+.1f})"
        self.rows.append(row)
        return said


def steps_png(steps: Mapping[str, Rows], title: str) -> bytes:
    """Return a figure of top-1, with its interval, over the share of the weights that is zero; a line for each name."""
    return png_bytes(
        plot_curve(
            [_line(name, rows) for name, rows in steps.items()],
            title=title,
            x_label="weights that are zero, %",
            y_label="top-1",
            scale="linear",
        )
    )


def _line(name: str, rows: Rows) -> Line:
    x, y, low, high = (np.array([float(row[key]) for row in rows]) for key in ("sparsity", "top1", "low", "high"))
    return Line(name, (100 * x).round(1), y, np.stack([low, high], axis=1))
