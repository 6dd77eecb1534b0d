"""Measure feature extraction, from image files to a cache file, and compare it with other libraries.

    FEATKIT_TEST_DATA=... FEATKIT_WEIGHTS=... python experiments/benchmarks/extract.py [--images 256] [--repeats 5]

Each repeat runs all programs once; medians are printed. The upper limit in images/s is cores / (core-seconds of
reading, decoding, resizing and the forward pass, per image). timm and embetter are included if they are installed.
thingsvision needs an environment of its own: ``--thingsvision`` is the Python of that environment. Nothing is measured
without real images and weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch.utils.data import DataLoader

from featkit import Compute
from featkit.backbones.devices import INT8, one_thread_per_worker
from featkit.backbones.engines import open_engine
from featkit.cli.main import keep_freed_memory
from featkit.embeddings.extract import run_extractions
from featkit.embeddings.plan import content_keys, plan_extraction
from featkit.embeddings.request import Request
from featkit.images.base import Pixels
from featkit.images.decode import decode
from featkit.images.files import images_from_files
from featkit.storage import available_cores

Timed = Callable[[], object]


def plain_loop(network: str, root: Path) -> Timed:
    """Return a plain torchvision loop; the network is built before timing."""
    transform = torchvision.models.get_model_weights(network).IMAGENET1K_V1.transforms()
    images = torchvision.datasets.ImageFolder(str(root), transform=transform)
    module = torchvision.models.get_model(network)
    state = torch.load(Path(os.environ["FEATKIT_WEIGHTS"], f"{network}.pth"), weights_only=True)
    module.load_state_dict(state)
    module.fc = torch.nn.Identity()
    module.eval()

    def run() -> object:
        with torch.no_grad():
            return torch.cat(
                [module(batch) for batch, _ in DataLoader(images, batch_size=32, num_workers=2)]
            )

    return run


def ours(network: str, way: str, files: list[Path], scratch: Path) -> Timed:
    """Return an extraction with featkit, timed from reading the first file to the published cache file.

    As for the plain loop, the network is built (and for int8 calibrated) before timing. With compilation, the first
    64 images are not timed.
    """
    (precision, *compiled), images = way.split(), images_from_files(files)
    request = Request(data="", backbone=network, precision=precision)
    compute = Compute(device="cpu", compiled=bool(compiled))
    first = 64 if compiled else 0
    started: list[float] = []

    def load(row: int) -> Pixels:
        if row == first:
            started.append(time.perf_counter())
        return images.load(row)

    def run() -> float:
        for file in scratch.glob("*.h5"):
            file.unlink()
        run_extractions([request], replace(images, load=load), scratch, compute)
        return (time.perf_counter() - started[-1]) / (len(files) - first)

    run()
    return run


def timm_loop(network: str, files: list[Path]) -> Timed:
    """Return the loop of timm's documentation: network and transform of timm, and a DataLoader."""
    import timm
    from PIL import Image

    module = timm.create_model(f"{network}.tv_in1k", pretrained=False, num_classes=0).eval()
    config = timm.data.resolve_data_config({}, model=module)
    transform = timm.data.create_transform(**config)
    images = [str(file) for file in files]

    class ImageFiles(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, row: int) -> torch.Tensor:
            return transform(Image.open(images[row]).convert("RGB"))

    def run() -> object:
        with torch.inference_mode():
            return torch.cat(
                [module(batch) for batch in DataLoader(ImageFiles(), batch_size=32, num_workers=2)]
            )

    return run


def embetter_loop(network: str, files: list[Path]) -> Timed:
    """Return embetter's pipeline: its image loader and its encoder with a timm network."""
    import timm
    from embetter.vision import ImageLoader, TimmEncoder

    create = timm.create_model
    timm.create_model = lambda name, pretrained, **more: create(name, pretrained=False, **more)
    encoder, loader = TimmEncoder(network), ImageLoader(convert="RGB")
    timm.create_model = create
    return lambda: encoder.transform(loader.transform([str(file) for file in files]))


THINGSVISION = """
import sys, time, torch
from thingsvision import get_extractor
from thingsvision.utils.data import DataLoader, ImageDataset
network, root = sys.argv[1:]
extractor = get_extractor(model_name=network, source="torchvision", device="cpu", pretrained=False)
images = ImageDataset(root=root, out_path=root + "-out", backend="pt", transforms=extractor.get_transformations())
for line in sys.stdin:
    start = time.perf_counter()
    batches = DataLoader(dataset=images, batch_size=32, backend="pt")
    extractor.extract_features(batches=batches, module_name="avgpool", flatten_acts=True, output_type="ndarray")
    print(time.perf_counter() - start, flush=True)
"""


def thingsvision_loop(python: str, network: str, root: Path, count: int) -> Timed:
    """Return thingsvision in a separate process, which builds the network before timing."""
    command = [python, "-c", THINGSVISION, network, str(root)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )

    def run() -> object:
        process.stdin.write("go\n")
        process.stdin.flush()
        for line in process.stdout:  # thingsvision prints messages as well
            if line.strip().replace(".", "", 1).isdigit():
                return float(line) / count
        raise RuntimeError("thingsvision stopped")

    run()
    return run


def other_libraries(
    network: str, files: list[Path], root: Path, python: str | None
) -> dict[str, Timed]:
    """Return the installed libraries, on the same images and a network of the same architecture."""
    found = {}
    for name, make in (("timm", timm_loop), ("embetter", embetter_loop)):
        if importlib.util.find_spec(name):
            found[name] = make(network, files)
    return {
        **found,
        **(
            {"thingsvision": thingsvision_loop(python, network, root, len(files))} if python else {}
        ),
    }


def core_seconds(
    network: str, precision: str, files: list[Path], scratch: Path
) -> dict[str, float]:
    """Return core-seconds per image of each stage, measured on one core.

    int8 uses the network that ``ours`` has calibrated.
    """
    images, files = images_from_files(files), files[:64]
    request = Request(data="", backbone=network, precision=precision)
    keys = content_keys(images, Compute())
    backbone = plan_extraction(request, images, keys, scratch).backbone
    prepare = backbone.preprocess.for_precision(precision)
    spent, seconds = {}, time.perf_counter()
    data = [file.read_bytes() for file in files]
    spent["read"], seconds = time.perf_counter() - seconds, time.perf_counter()
    decoded = [decode(name, str(file)) for name, file in zip(data, files, strict=True)]
    spent["decode"], seconds = time.perf_counter() - seconds, time.perf_counter()
    pixels = np.stack([prepare(image) for image in decoded])
    spent["resize"] = time.perf_counter() - seconds
    engine = open_engine(backbone, precision=precision)
    with one_thread_per_worker() as one_thread:
        one_thread()
        engine(pixels[:16])
        seconds = time.perf_counter()
        features = np.concatenate(
            [engine(pixels[first : first + 16]) for first in range(0, len(pixels), 16)]
        )
        spent["forward"], seconds = time.perf_counter() - seconds, time.perf_counter()
    np.save(scratch / "write.npy", features)
    spent["write"] = time.perf_counter() - seconds
    return {stage: taken / len(files) for stage, taken in spent.items()}


def compare(
    network: str, data: tuple[str, list[Path], Path], scratch: Path, chosen: argparse.Namespace
) -> None:
    """Print one line for each program: medians over the repeats, interleaved."""
    name, files, root = data
    ways = {
        "plain loop": plain_loop(network, root),
        **({} if chosen.no_peers else other_libraries(network, files, root, chosen.thingsvision)),
    }
    ways |= {f"featkit {way}": ours(network, way, files, scratch / way) for way in chosen.ways}
    stages: dict[str, list[dict[str, float]]] = {way: [] for way in chosen.ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(chosen.repeats):
        for way, run in ways.items():
            start = time.perf_counter()
            own = run()
            seconds[way].append(
                own if isinstance(own, float) else (time.perf_counter() - start) / len(files)
            )
            if way.startswith("featkit"):
                way = way.removeprefix("featkit ")
                stages[way].append(core_seconds(network, way.split()[0], files, scratch / way))
    plain = statistics.median(seconds["plain loop"])
    for way, taken in seconds.items():
        median = statistics.median(taken)
        line = f"{name:10} {network:9} {way:20} {1 / median:7.1f} images/s {plain / median:6.2f}x"
        print(line, _stages(stages.get(way.removeprefix("featkit "), []), 1 / median), flush=True)


def _stages(measured: list[dict[str, float]], rate: float) -> str:
    """Return the fraction of the upper limit, and the milliseconds of one core for each stage."""
    if not measured:
        return ""
    medians = {stage: statistics.median(each[stage] for each in measured) for stage in measured[0]}
    limit = available_cores() / sum(
        medians[stage] for stage in ("read", "decode", "resize", "forward")
    )
    return f" {rate / limit:4.0%}  " + " ".join(
        f"{stage} {1000 * taken:.1f}" for stage, taken in medians.items()
    )


def warm_hit(files: list[Path], scratch: Path) -> float:
    """Return the seconds of a cache hit for these images."""
    images = images_from_files(files)
    request = Request(data="", weights="random", resize="32", precision="fp32")
    run_extractions([request], images, scratch, Compute(device="cpu"))
    start = time.perf_counter()
    (done,) = run_extractions([request], images, scratch, Compute(device="cpu"))
    assert done.hit
    return time.perf_counter() - start


PEAK = """
import sys
from pathlib import Path
from featkit import Compute
from featkit.cli.main import keep_freed_memory
from featkit.embeddings.extract import run_extractions
from featkit.embeddings.request import Request
from featkit.images.files import images_from_files
from dataclasses import replace
keep_freed_memory()
files = Path(sys.argv[1]).read_text().splitlines()
images = images_from_files(files)
images = replace(images, ids=tuple(map(str, range(len(files)))), key=lambda row: f"{row:064x}")
request = Request(data="", weights="random", precision="bf16", resize="64")
run_extractions([request], images, Path(sys.argv[2]), Compute(device="cpu"))
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024)  # ru_maxrss would include the peak of the parent process
"""


def peak_memory(files: list[Path], count: int, scratch: Path) -> float:
    """Return the peak resident memory, in MiB, of a new process that embeds ``count`` images."""
    names = scratch / "names.txt"
    names.write_text("\n".join(str(file.absolute()) for file in islice(cycle(files), count)))
    command = [sys.executable, "-c", PEAK, str(names), str(scratch / f"peak{count}")]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _linked(name: str, count: int, folder: Path) -> tuple[list[Path], Path]:
    """Return a sample of images of a data set, and a folder of two classes with links to them."""
    everything = sorted(Path(os.environ["FEATKIT_TEST_DATA"], name).rglob("*.jpg"))
    files = everything[:: max(1, len(everything) // count)][:count]
    for number, file in enumerate(files):
        link = folder / name / str(number % 2) / f"{number}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.absolute())
    return files, folder / name


def main() -> None:
    """Measure all programs on each data set and network, and peak memory."""
    keep_freed_memory()  # as the command line does
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--images", type=int, default=256)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    options.add_argument("--data", nargs="+", default=["caltech101", "pets"])
    options.add_argument("--ways", nargs="+", default=["fp32", "bf16", "bf16 compiled", *INT8])
    options.add_argument(
        "--thingsvision", metavar="PYTHON", help="Python interpreter with thingsvision"
    )
    options.add_argument("--no-memory", action="store_true")
    options.add_argument("--no-peers", action="store_true")
    chosen = options.parse_args()
    if not {"FEATKIT_TEST_DATA", "FEATKIT_WEIGHTS"} <= os.environ.keys():
        print("FEATKIT_TEST_DATA and FEATKIT_WEIGHTS are not set: nothing is measured")
        return
    everything = sorted(Path(os.environ["FEATKIT_TEST_DATA"], "caltech101").rglob("*.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"{chosen.images} images, {available_cores()} cores, medians of {chosen.repeats}: images/s, ratio to the plain loop,"
        )
        print("fraction of the upper limit, milliseconds of one core for each stage of an image")
        for name in chosen.data:
            data = (name, *_linked(name, chosen.images, Path(folder)))
            for network in chosen.networks:
                compare(network, data, Path(folder, "cache", name, network), chosen)
        print(
            f"warm hit on {len(everything)} images: {warm_hit(everything, Path(folder, 'warm')):.2f} s"
        )
        if not chosen.no_memory:
            few, many = (peak_memory(everything, count, Path(folder)) for count in (1_000, 10_000))
            print(
                f"peak memory: {few:.0f} MiB at 1,000 images, {many:.0f} MiB at 10,000 ({many / few - 1:+.1%})"
            )


if __name__ == "__main__":
    main()
