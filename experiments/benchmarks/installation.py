"""Install the wheel and each extra in a new environment, and use what it adds.

    python experiments/benchmarks/installation.py --extras all [--out installation.json]

Builds the wheel and the source distribution, and installs the wheel with one extra after the other
in environments of their own, which are removed again: seconds on the clock and of CPU time, size of
the environment, and whether a command that needs the extra works in it, outside of the checkout.
Each environment downloads its packages, gigabytes with torch for GPUs: without ``--extras`` nothing
is installed. ``--uv`` installs with uv instead of pip, which keeps what it has downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

NONE = "none"
"""Stands for the wheel without an extra."""

DIGITS = "--data digits --weights random --resize 32 --limit train=60,test=20 --cache cache"

HEIF = """
import numpy, pathlib, pillow_heif
from PIL import Image
pillow_heif.register_heif_opener()
for name, value in (("dark", 40), ("light", 200)):
    folder = pathlib.Path("photos", name)
    folder.mkdir(parents=True)
    for number in range(4):
        pixels = numpy.full((64, 64, 3), value + number, numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.heic")
"""

APP = """
import subprocess, time, urllib.request
server = subprocess.Popen(["featkit", "app", "--port", "8691", "--no-browser"])
try:
    for attempt in range(120):
        try:
            print(urllib.request.urlopen("http://127.0.0.1:8691/_stcore/health", timeout=1).read())
            break
        except OSError:
            assert server.poll() is None
            time.sleep(0.5)
    else:
        raise SystemExit("the app does not answer")
finally:
    server.terminate()
    server.wait()
"""

REMOTE = """
import fsspec, pathlib, featkit
from PIL import Image
lines = ["path,label"]
for number in range(12):
    url = f"memory://{number}.png"
    with fsspec.open(url, "wb") as file:
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(file, "PNG")
    lines.append(f"{url},{number % 2}")
pathlib.Path("list.csv").write_text("\\n".join(lines))
print(len(featkit.extract("list.csv", weights="random", resize=32)))
import s3fs
"""

PHOTOS = "--data photos --weights random --resize 32 --cache cache"

CHECKS: dict[str, list[list[str]]] = {
    NONE: [["sh", str(REPOSITORY / "experiments" / "demo.sh")]],
    "timm": [f"featkit extract --backbone timm:resnet10t {DIGITS}".split()],
    "int8": [f"featkit extract --precision int8 {DIGITS}".split()],
    "openvino": [f"featkit extract --precision int8-openvino {DIGITS}".split()],
    "tensorflow": [f"featkit extract --backbone keras:resnet18 {DIGITS}".split()],
    "app": [["python", "-c", APP]],
    "cluster": [f"featkit extract --cluster local:2 {DIGITS}".split()],
    "heif": [["python", "-c", HEIF], f"featkit extract {PHOTOS}".split()],
    "remote": [["python", "-c", REMOTE]],
    "longtail": [f"featkit longtail --balance smote --head linear --if 2 {DIGITS}".split()],
    "projection": [
        f"featkit fit --head prototypical {DIGITS}".split(),
        ["featkit", "plot", "projection", "latest", "--method", "umap", "--out", "umap.png"],
        ["featkit", "plot", "projection", "latest", "--method", "opentsne", "--out", "tsne.png"],
    ],
    "parquet": [
        f"featkit extract {DIGITS}".split(),
        ["sh", "-c", "featkit cache export cache/digits-*.h5 digits.parquet"],
    ],
    "zstd": [f"featkit extract --store zstd {DIGITS}".split()],
    "docs": [f"mkdocs build --strict --site-dir site -f {REPOSITORY / 'mkdocs.yml'}".split()],
    "test": [["pytest", "-q", str(REPOSITORY / "tests" / "test_errors.py")]],
}
"""Commands that need the extra; they run in an empty folder, away from the checkout."""


def main() -> None:
    """Install what was asked for and print one line for each extra."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extras", nargs="+", default=[], help=f"all, or some of {list(CHECKS)}")
    parser.add_argument("--out", type=Path, help="JSON file for the figures; it is extended")
    parser.add_argument("--uv", action="store_true", help="install with uv instead of pip")
    options = parser.parse_args()
    extras = list(CHECKS) if options.extras == ["all"] else options.extras
    if not extras:
        print("nothing is installed: give --extras all, or the names of extras")
        return
    unknown = sorted(set(extras) - set(CHECKS))
    if unknown:
        parser.error(f"there are no extras {unknown}: the extras are {list(CHECKS)}")
    found = {}
    if options.out and options.out.exists():
        found = json.loads(options.out.read_text(encoding="utf-8"))
    print(f"{'extra':12}{'seconds':>9}{'CPU s':>8}{'MB':>8}  works")
    with tempfile.TemporaryDirectory() as folder:
        tools = Path(folder, "tools")
        wheel = build(Path(folder), tools)
        for extra in extras:
            installer = [executables(tools) / "uv"] if options.uv else []
            measured = install(extra, wheel, Path(folder), installer)
            found[extra] = measured
            works = "yes" if measured["works"] else "NO"
            print(
                f"{extra:12}{measured['seconds']:>9.0f}{measured['cpu_seconds']:>8.0f}"
                f"{measured['megabytes']:>8.0f}  {works}",
                flush=True,
            )
            if options.out:
                options.out.write_text(json.dumps(found, indent=2), encoding="utf-8")
    if not all(found[extra]["works"] for extra in extras):
        sys.exit(1)


def build(folder: Path, tools: Path) -> Path:
    """Build source distribution and wheel from a copy of the tracked files; return the wheel.

    Args:
        folder: for the copy and for what is built.
        tools: environment to make, for the packages that build and install.
    """
    source = folder / "source"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(source)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tools)], check=True)
    python = executables(tools) / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "build", "uv"], check=True)
    command = [python, "-m", "build", "--outdir", str(folder / "dist"), str(source)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def install(extra: str, wheel: Path, folder: Path, uv: list[Path]) -> dict[str, object]:
    """Install the wheel with an extra in a new environment, run its check, and remove both.

    Args:
        extra: name of the extra.
        wheel: the file.
        folder: for the environment, and for the folder in which the check runs.
        uv: the program uv; empty to install with pip.
    """
    environment, empty = folder / "environment", folder / "empty"
    target = str(wheel) if extra == NONE else f"{wheel}[{extra}]"
    programs = executables(environment)
    start, used = time.perf_counter(), cpu_seconds()
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [*uv, "pip"] if uv else [programs / "python", "-m", "pip"]
    place = ["--python", programs / "python"] if uv else []
    subprocess.run([*pip, "install", "--quiet", *place, target], check=True)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - used
    megabytes = folder_bytes(environment) / 1e6
    empty.mkdir()
    works = check(extra, empty, programs)
    shutil.rmtree(environment)
    shutil.rmtree(empty)
    return {"seconds": seconds, "cpu_seconds": cpu, "megabytes": megabytes, "works": works}


def check(extra: str, empty: Path, programs: Path) -> bool:
    """Return whether the commands of an extra succeed; print the output of one that does not."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["PATH"] = f"{programs}{os.pathsep}{variables['PATH']}"
    variables["FEATKIT_HOME"] = str(empty / "home")
    for command in CHECKS[extra]:
        done = subprocess.run(command, cwd=empty, env=variables, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{extra}: {' '.join(command)[:200]}\n{done.stdout}\n{done.stderr}", flush=True)
            return False
    return True


def executables(environment: Path) -> Path:
    """Return the folder with the programs of an environment."""
    return environment / ("Scripts" if os.name == "nt" else "bin")


def cpu_seconds() -> float:
    """Return the CPU time of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            total += path.stat().st_size
    return total


if __name__ == "__main__":
    main()
