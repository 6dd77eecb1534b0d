"""The path of penalties of the linear head: one solver call beside one scikit-learn fit for each C, in one run.

    python experiments/benchmarks/heads.py [--cache FILE] [--values 45] [--fits 45] [--max-iter 20000]
    python experiments/benchmarks/heads.py --tune --cache FILE

Without ``--cache`` the vectors are synthetic: 6,000 x 2,048 in 101 classes with a spectrum that falls like that of
ResNet-50. Both solvers get the same float32 rows, scaled as the linear head scales them, and as many cores.

With ``--tune``: seconds and memory of `featkit fit --tune` for the five heads, in one command.
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
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from featkit.heads.logistic import Solution, logistic_path
from featkit.heads.scaling import apply_scale, fit_scale

Rows = tuple[NDArray[np.float32], NDArray[np.intp]]


def synthetic(n: int = 6000, d: int = 2048, k: int = 101) -> Rows:
    """Return positive, skewed rows: classes differ along 100 random axes, variances fall as a power over all axes."""
    rng = np.random.default_rng(0)
    spread = np.arange(1, d + 1) ** -0.6
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0] * spread / np.sqrt((spread**2).mean() / d)
    codes = np.arange(n) % k
    means = rng.normal(size=(k, d)) * (np.arange(d) < 100) * 0.5
    latent = (means[codes] + rng.normal(size=(n, d))) @ axes.T / np.sqrt(d)
    return np.exp(2 * latent).astype(np.float32), codes


def cached(file: Path) -> Rows:
    """Return the training rows of an embeddings file."""
    with h5py.File(file) as content:
        rows = content["splits"][:] == b"train"
        return content["embeddings"][:][rows], np.unique(content["labels"][:][rows], return_inverse=True)[1]


def objective(rows: Rows, c: float, coef: NDArray[np.floating], intercept: NDArray[np.floating]) -> float:
    """Return scikit-learn's objective over C and n, in float64."""
    x, codes = rows
    scores = x.astype(np.float64) @ coef.T.astype(np.float64) + intercept
    top = scores.max(axis=1, keepdims=True)
    losses = np.log(np.exp(scores - top).sum(axis=1)) + top[:, 0] - scores[np.arange(len(x)), codes]
    return float(losses.mean() + (coef.astype(np.float64) ** 2).sum() / (2 * c * len(x)))


def theirs(rows: Rows, c: float, max_iter: int) -> tuple[LogisticRegression, float]:
    """Return scikit-learn's fit at tolerance 1e-6, and its seconds."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=c, tol=1e-6, max_iter=max_iter).fit(*rows)
    return fitted, time.perf_counter() - start


def compare(rows: Rows, ours: Solution, max_iter: int) -> float:
    """Print one line for one C; return the seconds that scikit-learn took."""
    x, _ = rows
    fitted, seconds = theirs(rows, ours.C, max_iter)
    best = objective(rows, ours.C, fitted.coef_, fitted.intercept_)
    loss = objective(rows, ours.C, ours.coef, ours.intercept)
    same = (fitted.predict(x) == (x @ ours.coef.T + ours.intercept).argmax(axis=1)).mean()
    steps = f"{ours.n_iter:5} {fitted.n_iter_[0]:6}"
    print(f"{ours.C:9.2e} {steps} {seconds:8.1f} {loss:.6e} {loss / best - 1:+9.1e} {same:8.4%}", flush=True)
    return seconds


PEAK = """
import json, sys
from pathlib import Path
import numpy as np
from featkit.heads.logistic import logistic_path
def peak():  # getrusage's is inherited from the parent
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
content = np.load(sys.argv[1])
rows, codes = content["rows"], content["codes"]
before = peak()
logistic_path(rows, codes, np.logspace(-6, 5, 12), n_classes=int(codes.max()) + 1, tol=1e-3)
print(json.dumps([before, peak()]))
"""


def peak_memory(rows: Rows) -> tuple[float, float]:
    """Return the peak resident memory of a fresh process in MiB, once the rows are loaded and after a path."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.npz")
        np.savez(file, rows=rows[0], codes=rows[1])
        done = subprocess.run([sys.executable, "-c", PEAK, str(file)], capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    return before, after


HEADS = ("linear", "svm", "knn", "mlp", "prototypical")


def tune(cache: Path) -> None:
    """Print what tuning the five heads in one command takes and finds."""
    heads = [part for head in HEADS for part in ("--head", head)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "featkit", "fit", "--tune", *heads, "--out", folder, "--cache", str(cache)]
        seconds, peak = spent(command)
        print("head          fitting s  top-1 on test")
        for run in Path(folder).glob("*/*/"):
            card, found = (json.loads((run / name).read_text()) for name in ("card.json", "results.json"))
            low, high = found["interval95"]
            shown = f"{found['top1']:.2%} ({low:.2%} to {high:.2%}), n = {found['n']}"
            print(f"{card['head']['spec']:13} {card['cost']['fit_seconds']:9.1f}  {shown}")
    print(f"in all {seconds[0]:.1f} s on the clock, {seconds[1]:.1f} s of all cores, peak memory {peak:.0f} MiB")


def spent(command: list[str]) -> tuple[NDArray[np.float64], float]:
    """Run a command; return its seconds on the clock and of all cores, and its peak resident memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return np.array([time.perf_counter() - start, used.ru_utime + used.ru_stime]), used.ru_maxrss / 1024


def load(cache: Path | None) -> Rows:
    """Return the rows asked for."""
    return cached(cache) if cache else synthetic()


def scaled(rows: Rows) -> Rows:
    """Return the rows as the linear head scales them by default."""
    return apply_scale(rows[0], "root", *fit_scale(rows[0], "root")), rows[1]


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cache", type=Path, help="embeddings file, of which the training rows are used")
    options.add_argument("--values", type=int, default=45, help="values of C from 1e-6 to 1e5")
    options.add_argument("--fits", type=int, default=45, help="of these, evenly spread, to fit with scikit-learn too")
    options.add_argument("--max-iter", type=int, default=20_000, help="of scikit-learn")
    options.add_argument("--tune", action="store_true", help="time `featkit fit --tune` on the cache instead")
    chosen = options.parse_args()
    if chosen.tune:
        if not chosen.cache:
            options.error("--tune needs --cache FILE")
        return tune(chosen.cache)
    rows = scaled(load(chosen.cache))
    k = int(rows[1].max()) + 1
    cs = np.logspace(-6, 5, chosen.values)
    print(
        f"{len(rows[0])} x {rows[0].shape[1]} float32, {k} classes, {'real' if chosen.cache else 'synthetic'} vectors"
    )
    start = time.perf_counter()
    path = logistic_path(*rows, cs, n_classes=k)
    ours = time.perf_counter() - start
    print(f"featkit: {len(path)} values in {ours:.1f} s, {sum(fitted.n_iter for fitted in path)} steps", flush=True)
    print("        C steps theirs  seconds         loss  relative predictions equal")
    places = np.unique(np.linspace(0, len(path) - 1, chosen.fits).round().astype(int))
    seconds = sum(compare(rows, path[place], chosen.max_iter) for place in places)
    if len(places) < len(path):
        print(f"scikit-learn: {seconds:.1f} s for {len(places)} of {len(path)} values; extrapolated to all of them:")
        seconds *= len(path) / len(places)
    print(f"scikit-learn: {seconds:.1f} s, {seconds / ours:.1f} times as long as featkit")
    before, after = peak_memory(rows)
    print(f"peak memory: {after:.0f} MiB, {before:.0f} MiB of it before the path, with the rows")


if __name__ == "__main__":
    main()
