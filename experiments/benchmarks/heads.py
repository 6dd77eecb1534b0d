"""Compare the solver of the linear head with scikit-learn along a regularization path.

    python experiments/benchmarks/heads.py [--cache FILE] [--rows N] [--values 45] [--repeat 3]
    python experiments/benchmarks/heads.py --cold [--fits 9]
    python experiments/benchmarks/heads.py --tune --cache FILE
    python experiments/benchmarks/heads.py --single --cache FILE [--repeat 5]

The baseline is ``LogisticRegression(warm_start=True)``, fitted from the smallest C to the largest:
each fit starts from the solution of the one before it. Both solvers run at several tolerances, so
that they can be compared at the same quality, the excess of the objective (in float64) over the
lowest that any of them found: each is charged for the coarsest tolerance that is tight enough for
the C in question. They get the same float32 features, scaled as by the linear head, and
one thread each; times are CPU seconds, medians of interleaved repetitions.

``--cold`` adds fits that start from zero, evenly spread over the path and extrapolated to all of
it. ``--tune`` measures time and memory of `featkit fit --tune` for the five heads in one command,
``--single`` single fits of the linear head on small sets against scikit-learn at the same loss.
Without ``--cache`` the features are synthetic: 2,000 x 512 in 101 classes with a spectrum that
decays like that of ResNet-50.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from featkit.heads.linear import LinearHead
from featkit.heads.logistic import logistic_path
from featkit.heads.scaling import apply_scale, fit_scale

MAX_ITER = 20_000
FEATKIT_TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)
"""Relative to the objective: 1e-3 in a search, 1e-5 in the final fit."""

SKLEARN_TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
"""Of the largest component of the gradient; scikit-learn's default is 1e-4."""

EMPTY = (np.empty(0, np.intp), np.empty(0))


class Rows(NamedTuple):
    """Scaled training features ``(n, d)`` and class codes ``(n,)``."""

    x: NDArray[np.float32]
    codes: NDArray[np.intp]

    @property
    def n_classes(self) -> int:
        """Return the number of classes."""
        return int(self.codes.max()) + 1


class Weights(NamedTuple):
    """Weights ``(k, d)`` and intercepts ``(k,)`` for one C, and the iterations used."""

    C: float
    coef: NDArray[np.floating]
    intercept: NDArray[np.floating]
    n_iter: int


Solutions = list[Weights]


def synthetic(n: int = 2000, d: int = 512, k: int = 101) -> Rows:
    """Generate skewed features: classes differ along 100 axes, variances decay as a power law."""
    rng = np.random.default_rng(0)
    spread = np.arange(1, d + 1) ** -0.6
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0] * spread / np.sqrt((spread**2).mean() / d)
    codes = np.arange(n) % k
    means = rng.normal(size=(k, d)) * (np.arange(d) < 100) * 0.5
    latent = (means[codes] + rng.normal(size=(n, d))) @ axes.T / np.sqrt(d)
    return Rows(np.exp(2 * latent).astype(np.float32), codes)


def cached(file: Path, limit: int | None) -> Rows:
    """Read the training part of an embeddings file, or a random subset of ``limit`` rows."""
    with h5py.File(file) as content:
        train = np.flatnonzero(content["splits"][:] == b"train")
        if limit is not None and limit < len(train):
            train = np.sort(np.random.default_rng(0).choice(train, limit, replace=False))
        codes = np.unique(content["labels"][:][train], return_inverse=True)[1]
        return Rows(content["embeddings"][:][train], codes)


def scale(rows: Rows) -> Rows:
    """Scale features as the linear head does by default."""
    centre, spread = fit_scale(rows.x, "root")
    return Rows(apply_scale(rows.x, "root", centre, spread), rows.codes)


def featkit_path(rows: Rows, cs: NDArray[np.float64], tol: float) -> Solutions:
    """Solve all values of C by one call of ``logistic_path``."""
    solutions = logistic_path(
        rows.x, rows.codes, cs, n_classes=rows.n_classes, tol=tol, max_iter=MAX_ITER
    )
    return [Weights(each.C, each.coef, each.intercept, each.n_iter) for each in solutions]


def sklearn_path(rows: Rows, cs: NDArray[np.float64], tol: float, warm: bool = True) -> Solutions:
    """Fit scikit-learn for every C, each from the solution of the one before it if ``warm``."""
    model = LogisticRegression(tol=tol, max_iter=MAX_ITER, warm_start=warm)
    path = []
    for c in cs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=float(c)).fit(rows.x, rows.codes)
        path.append(
            Weights(float(c), model.coef_.copy(), model.intercept_.copy(), int(model.n_iter_[0]))
        )
    return path


def objective(rows: Rows, weights: Weights) -> float:
    """Return scikit-learn's objective divided by ``C n``, in float64."""
    scores = rows.x.astype(np.float64) @ weights.coef.T.astype(np.float64) + weights.intercept
    losses = logsumexp(scores, axis=1) - scores[np.arange(len(scores)), rows.codes]
    penalty = (weights.coef.astype(np.float64) ** 2).sum() / (2 * weights.C * len(scores))
    return float(losses.mean() + penalty)


@dataclass
class Measurement:
    """One solver at one tolerance.

    Attributes:
        solver: its name.
        tol: its tolerance.
        seconds: CPU seconds of each repetition.
        iterations: for each C ``(n_cs,)``.
        losses: objectives ``(n_cs,)``.
    """

    solver: str
    tol: float
    seconds: list[float]
    iterations: NDArray[np.intp]
    losses: NDArray[np.float64]


def compare_paths(rows: Rows, cs: NDArray[np.float64], repeat: int) -> None:
    """Measure both solvers at several tolerances, interleaved, and print time and quality."""
    measurements = [Measurement("featkit", tol, [], *EMPTY) for tol in FEATKIT_TOLERANCES]
    measurements += [Measurement("scikit-learn", tol, [], *EMPTY) for tol in SKLEARN_TOLERANCES]
    for _ in range(repeat):
        for each in measurements:
            solve = featkit_path if each.solver == "featkit" else sklearn_path
            start = time.process_time()
            path = solve(rows, cs, each.tol)
            each.seconds.append(time.process_time() - start)
            each.iterations = np.array([solution.n_iter for solution in path])
            each.losses = np.array([objective(rows, solution) for solution in path])
            print(f"  {each.solver}, tol {each.tol:.0e}: {each.seconds[-1]:.1f} s", flush=True)
    best = np.min([each.losses for each in measurements], axis=0)
    print("solver          tol  CPU s  iterations  excess: median  largest  at C")
    for each in measurements:
        excess = each.losses / best - 1
        worst = int(excess.argmax())
        print(
            f"{each.solver:12} {each.tol:6.0e} {np.median(each.seconds):6.1f} "
            f"{each.iterations.sum():11} {np.median(excess):15.1e} {excess[worst]:8.1e} "
            f"{cs[worst]:5.0e}"
        )
    for largest_c in (1e2, cs[-1]):
        for limit in (1e-3, 1e-6):
            compare_at_quality(measurements, best, cs <= largest_c, limit, largest_c)


def compare_at_quality(
    measurements: list[Measurement],
    best: NDArray[np.float64],
    included: NDArray[np.bool_],
    limit: float,
    largest_c: float,
) -> None:
    """Print the time of each solver with the coarsest tolerance that is tight enough for each C.

    The time of a fit is its share of the iterations of the path. Where no tolerance is tight
    enough, the tightest counts.
    """
    seconds, missed = {}, {}
    for solver in ("featkit", "scikit-learn"):
        own = [each for each in measurements if each.solver == solver]
        times = np.zeros(len(best))
        reached = np.zeros(len(best), bool)
        for each in own:  # from the coarsest tolerance to the tightest
            per_iteration = np.median(each.seconds) / each.iterations.sum()
            times = np.where(reached, times, each.iterations * per_iteration)
            reached |= each.losses / best - 1 <= limit
        seconds[solver] = times[included].sum()
        missed[solver] = int((~reached[included]).sum())
    print(
        f"excess <= {limit:.0e}, C <= {largest_c:.0e} ({included.sum()} values): "
        f"featkit {seconds['featkit']:.1f} s ({missed['featkit']} not reached), "
        f"scikit-learn {seconds['scikit-learn']:.1f} s ({missed['scikit-learn']} not reached), "
        f"ratio {seconds['scikit-learn'] / seconds['featkit']:.1f}"
    )


def compare_cold(rows: Rows, cs: NDArray[np.float64], fits: int) -> None:
    """Print the time of fits that start from zero, at tolerance 1e-6, extrapolated."""
    some = cs[np.unique(np.linspace(0, len(cs) - 1, fits).round().astype(int))]
    start = time.process_time()
    sklearn_path(rows, some, 1e-6, warm=False)
    seconds = time.process_time() - start
    total = seconds * len(cs) / len(some)
    print(
        f"scikit-learn, cold start, tol 1e-06: {seconds:.1f} s for {len(some)} of {len(cs)} fits, "
        f"{total:.1f} s for all"
    )


PEAK = """
import json, sys
from pathlib import Path
import numpy as np
from featkit.heads.logistic import logistic_path
def peak():  # that of getrusage includes the parent process
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
content = np.load(sys.argv[1])
rows, codes = content["rows"], content["codes"]
before = peak()
logistic_path(rows, codes, np.logspace(-6, 5, 12), n_classes=int(codes.max()) + 1, tol=1e-3)
print(json.dumps([before, peak()]))
"""


def peak_memory(rows: Rows) -> tuple[float, float]:
    """Measure peak memory of a fresh process in MiB, after loading and after solving a path."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.npz")
        np.savez(file, rows=rows.x, codes=rows.codes)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(file)], capture_output=True, text=True, check=True
        )
    before, after = json.loads(done.stdout)
    return before, after


HEADS = ("linear", "svm", "knn", "mlp", "prototypical")


def tune(cache: Path) -> None:
    """Print time, memory and accuracies of tuning the five heads in one command."""
    heads = [part for head in HEADS for part in ("--head", head)]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "featkit",
            "fit",
            "--tune",
            *heads,
            "--out",
            folder,
            "--cache",
            str(cache),
        ]
        seconds, peak = measure(command)
        print("head          fitting s  top-1 on test")
        for run in Path(folder).glob("*/*/"):
            card = json.loads((run / "card.json").read_text())
            results = json.loads((run / "results.json").read_text())
            low, high = results["interval95"]
            accuracy = f"{results['top1']:.2%} ({low:.2%} to {high:.2%}), n = {results['n']}"
            print(f"{card['head']['spec']:13} {card['cost']['fit_seconds']:9.1f}  {accuracy}")
    print(f"wall time {seconds[0]:.1f} s, CPU time {seconds[1]:.1f} s, peak memory {peak:.0f} MiB")


def compare_single_fits(file: Path, repeat: int) -> None:
    """Print CPU time and loss of single fits on small parts of the cache, scaling included."""
    every = cached(file, None)
    rng = np.random.default_rng(0)
    print("n     classes  featkit ms  scikit-learn ms  excess of the loss: featkit  scikit-learn")
    for classes, n in ((2, 200), (17, 952), (101, 2000)):
        some = rng.permutation(np.flatnonzero(every.codes < classes))[:n]
        rows = Rows(every.x[some], np.unique(every.codes[some], return_inverse=True)[1])
        times: dict[str, list[float]] = {"featkit": [], "scikit-learn": []}
        for _ in range(repeat):
            start = time.process_time()
            head = LinearHead().fit(rows.x, rows.codes)
            times["featkit"].append(time.process_time() - start)
            start = time.process_time()
            scaled = scale(rows)
            model = LogisticRegression(C=head.C, tol=1e-6, max_iter=MAX_ITER)
            model.fit(scaled.x, scaled.codes)
            times["scikit-learn"].append(time.process_time() - start)
        losses = []
        for each in (head, model):
            coef, intercept = np.atleast_2d(each.coef_), np.atleast_1d(each.intercept_)
            if len(coef) == 1:  # scores of the first class are 0
                coef, intercept = np.vstack([0 * coef, coef]), np.append(0, intercept)
            losses.append(objective(scaled, Weights(head.C, coef, intercept, 0)))
        best = min(losses)
        print(
            f"{len(some):<6}{classes:7}{1000 * np.median(times['featkit']):12.1f}"
            f"{1000 * np.median(times['scikit-learn']):17.1f}"
            f"{losses[0] / best - 1:29.1e}{losses[1] / best - 1:14.1e}",
            flush=True,
        )


def measure(command: list[str]) -> tuple[tuple[float, float], float]:
    """Run a command; return its wall and CPU seconds, and its peak resident memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return (time.perf_counter() - start, used.ru_utime + used.ru_stime), used.ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cache", type=Path, help="embeddings file, of which the training part is used"
    )
    parser.add_argument(
        "--rows", type=int, help="random subset of this many training rows of the file"
    )
    parser.add_argument("--values", type=int, default=45, help="values of C from 1e-6 to 1e5")
    parser.add_argument("--repeat", type=int, default=3, help="interleaved repetitions")
    parser.add_argument("--cold", action="store_true", help="add scikit-learn without warm starts")
    parser.add_argument("--fits", type=int, default=9, help="values of C to fit with --cold")
    parser.add_argument(
        "--tune", action="store_true", help="measure `featkit fit --tune` on the cache instead"
    )
    parser.add_argument(
        "--single", action="store_true", help="measure single fits on small sets instead"
    )
    options = parser.parse_args()
    if options.tune or options.single:
        if not options.cache:
            parser.error("--tune and --single need --cache FILE")
        if options.tune:
            tune(options.cache)
        else:
            with threadpool_limits(1):
                compare_single_fits(options.cache, options.repeat)
        return
    rows = scale(cached(options.cache, options.rows) if options.cache else synthetic())
    cs = np.logspace(-6, 5, options.values)
    kind = "real" if options.cache else "synthetic"
    print(
        f"{len(rows.x)} x {rows.x.shape[1]} float32, {rows.n_classes} classes, {kind} features, "
        f"{len(cs)} values of C"
    )
    with threadpool_limits(1):
        compare_paths(rows, cs, options.repeat)
        if options.cold:
            compare_cold(rows, cs, options.fits)
    before, after = peak_memory(rows)
    print(
        f"peak memory: {after:.0f} MiB, {before:.0f} MiB of it before the path, with the features"
    )


if __name__ == "__main__":
    main()
