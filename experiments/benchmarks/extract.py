"""Measure images per second from image files to a cache file and compare them with other libraries.

    FEATKIT_TEST_DATA=... FEATKIT_WEIGHTS=... python experiments/benchmarks/extract.py

The baseline is the usual torchvision loop over a ``DataLoader``. All methods run in turn in each
repetition, and medians are printed. "Limit" is the rate of cores that do nothing but read, decode,
resize and compute: cores / (core-seconds of these stages per image). timm and embetter are measured
if they are installed, and so are loops that an expert would write by hand around ONNX Runtime and
OpenVINO; thingsvision, which pins old versions of its dependencies, with
``--thingsvision`` and the Python of an environment that has it. Without ``FEATKIT_TEST_DATA`` and
``FEATKIT_WEIGHTS`` nothing is measured.

Photos as phones take them (12 megapixels, JPEG quality 88, made from the pets in a temporary
folder, 2 MB each) against the same loop, 500 of them:

    ... extract.py --data phone --images 500 --networks resnet18 --ways fp32 --no-peers --no-memory
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader

from featkit import Compute
from featkit.backbones.devices import INT8, instruction_set, one_thread_per_worker
from featkit.backbones.engines import open_engine
from featkit.cli.main import keep_freed_memory
from featkit.embeddings.extract import run_extractions
from featkit.embeddings.plan import content_keys, plan_extraction
from featkit.embeddings.request import Request
from featkit.images.base import KeyedLoad, Pixels
from featkit.images.decode import decode
from featkit.images.files import images_from_files
from featkit.storage import available_cores

Method = Callable[[], float]
"""Extracts features of all images once and returns the seconds per image."""


@dataclass(frozen=True)
class DataSet:
    """Images to measure with.

    Attributes:
        name: of the data set.
        files: the images.
        root: folder of two classes that links to them, as torchvision needs it.
    """

    name: str
    files: list[Path]
    root: Path


def timed(extract: Callable[[], object], count: int) -> Method:
    """Return a method that times ``extract``, which extracts features of ``count`` images."""

    def run() -> float:
        start = time.perf_counter()
        extract()
        return (time.perf_counter() - start) / count

    return run


def torchvision_loop(network: str, data: DataSet) -> Method:
    """Return the usual torchvision loop; the network is built beforehand."""
    transform = torchvision.models.get_model_weights(network).IMAGENET1K_V1.transforms()
    images = torchvision.datasets.ImageFolder(str(data.root), transform=transform)
    module = torchvision.models.get_model(network)
    state = torch.load(Path(os.environ["FEATKIT_WEIGHTS"], f"{network}.pth"), weights_only=True)
    module.load_state_dict(state)
    module.fc = torch.nn.Identity()
    module.eval()

    def extract() -> object:
        loader = DataLoader(images, batch_size=32, num_workers=2)
        with torch.no_grad():
            return torch.cat([module(batch) for batch, _ in loader])

    return timed(extract, len(data.files))


def featkit_extraction(network: str, variant: str, files: list[Path], cache: Path) -> Method:
    """Return featkit's extraction, from reading the first file to the published cache file.

    The network is built and, for int8, calibrated beforehand. Of a compiled network only the images
    after the first 64 count, because it is compiled with the first batches.

    Args:
        network: spec of the backbone.
        variant: precision, followed by ``compiled`` for a compiled network, or by ``onnxruntime``
            for a float32 network in ONNX Runtime.
        files: the images.
        cache: folder of the cache file, which is deleted before each run.
    """
    precision = variant.split()[0]
    images = images_from_files(files)
    request = Request(data="", backbone=network, precision=precision)
    is_compiled = variant.endswith("compiled")
    compute = Compute(device="cpu", compiled=is_compiled, engine=engine_of(variant))
    first = 64 if is_compiled else 0
    started: list[float] = []

    def timed_load(load: KeyedLoad) -> KeyedLoad:
        """Return the load that notes when the first image that counts is read."""

        def with_key(row: int) -> tuple[Pixels, str]:
            if row == first:
                started.append(time.perf_counter())
            return load.with_key(row)

        return KeyedLoad(load.load, with_key, lambda edge: timed_load(load.scaled(edge)))

    def run() -> float:
        for file in cache.glob("*.h5"):
            file.unlink()
        run_extractions([request], replace(images, load=timed_load(images.load)), cache, compute)
        return (time.perf_counter() - started[-1]) / (len(files) - first)

    run()
    return run


def engine_of(variant: str) -> str:
    """Return the engine of a float32 network, see ``featkit_extraction``."""
    return "onnxruntime" if variant.endswith("onnxruntime") else "torch"


def timm_loop(network: str, files: list[Path]) -> Method:
    """Return the loop of timm's documentation: its network and transform, a ``DataLoader``."""
    import timm

    module = timm.create_model(f"{network}.tv_in1k", pretrained=False, num_classes=0).eval()
    config = timm.data.resolve_data_config({}, model=module)
    transform = timm.data.create_transform(**config)

    class ImageFiles(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, row: int) -> torch.Tensor:
            return transform(Image.open(files[row]).convert("RGB"))

    def extract() -> object:
        loader = DataLoader(ImageFiles(), batch_size=32, num_workers=2)
        with torch.inference_mode():
            return torch.cat([module(batch) for batch in loader])

    return timed(extract, len(files))


def embetter_pipeline(network: str, files: list[Path]) -> Method:
    """Return embetter's pipeline: its loader, and its encoder with a network of timm."""
    import timm
    from embetter.vision import ImageLoader, TimmEncoder

    # TimmEncoder always downloads weights: create an untrained network, which is as fast, instead.
    create = timm.create_model
    timm.create_model = lambda name, pretrained, **more: create(name, pretrained=False, **more)
    encoder, loader = TimmEncoder(network), ImageLoader(convert="RGB")
    timm.create_model = create
    names = [str(file) for file in files]
    return timed(lambda: encoder.transform(loader.transform(names)), len(files))


THINGSVISION = """
import sys, time, torch
from thingsvision import get_extractor
from thingsvision.utils.data import DataLoader, ImageDataset
network, root = sys.argv[1:]
extractor = get_extractor(
    model_name=network, source="torchvision", device="cpu", pretrained=False
)
images = ImageDataset(
    root=root, out_path=root + "-out", backend="pt", transforms=extractor.get_transformations()
)
for line in sys.stdin:
    start = time.perf_counter()
    batches = DataLoader(dataset=images, batch_size=32, backend="pt")
    extractor.extract_features(
        batches=batches, module_name="avgpool", flatten_acts=True, output_type="ndarray"
    )
    print(time.perf_counter() - start, flush=True)
"""


def thingsvision_process(python: str, network: str, data: DataSet) -> Method:
    """Return thingsvision in its own process, which imports and builds the network beforehand."""
    command = [python, "-c", THINGSVISION, network, str(data.root)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )

    def run() -> float:
        process.stdin.write("run\n")
        process.stdin.flush()
        for line in process.stdout:
            # thingsvision prints messages, too: only the time is a number.
            if line.strip().replace(".", "", 1).isdigit():
                return float(line) / len(data.files)
        raise RuntimeError("thingsvision stopped")

    run()
    return run


EXPERT_BATCH = 16


def load_as_by_hand(file: Path) -> Pixels:
    """Return the uint8 pixels ``(224, 224, 3)`` of an image as torchvision's transforms do."""
    image = Image.open(file).convert("RGB")
    scale = 256 / min(image.size)
    size = max(256, int(image.width * scale)), max(256, int(image.height * scale))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def normalise(batch: Pixels) -> np.ndarray:
    """Return float32 ``(n, 3, 224, 224)`` as networks of torchvision expect it."""
    mean = np.array((0.485, 0.456, 0.406), np.float32)
    std = np.array((0.229, 0.224, 0.225), np.float32)
    scaled = (batch / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def run_model(engine: str, model: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Return the forward pass of an ONNX file on all cores."""
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = available_cores()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda batch: session.run(None, {name: batch})[0]
    import openvino

    core = openvino.Core()
    network = core.read_model(model)
    shape = network.inputs[0].partial_shape
    network.reshape([EXPERT_BATCH, *(shape[axis].get_length() for axis in range(1, 4))])
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": available_cores()}
    compiled = core.compile_model(network, "CPU", settings)

    def run(batch: np.ndarray) -> np.ndarray:
        full = np.resize(batch, (EXPERT_BATCH, *batch.shape[1:]))  # the last batch may be smaller
        return compiled(full)[0][: len(batch)]

    return run


def float32_network(network: str) -> bytes:
    """Return the ONNX file of torchvision's network with the weights of ``FEATKIT_WEIGHTS``."""
    module = torchvision.models.get_model(network)
    state = torch.load(Path(os.environ["FEATKIT_WEIGHTS"], f"{network}.pth"), weights_only=True)
    module.load_state_dict(state)
    module.fc = torch.nn.Identity()
    count = torch.export.Dim("count", min=1, max=1024)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, 3, 224, 224),),
            path,
            dynamo=True,
            dynamic_shapes=({0: count},),
            external_data=False,
            verbose=False,
        )
        return path.read_bytes()


def expert_loop(
    engine: str,
    model: bytes,
    prepare: Callable[[Pixels], np.ndarray],
    data: DataSet,
    cache: Path,
) -> Method:
    """Return what an expert writes by hand: threads decode, one network runs on all cores."""
    run = run_model(engine, model)

    def extract() -> None:
        features, batch = [], []
        with ThreadPoolExecutor(available_cores()) as pool:
            for pixels in pool.map(load_as_by_hand, data.files):
                batch.append(pixels)
                if len(batch) == EXPERT_BATCH:
                    features.append(run(prepare(np.stack(batch))))
                    batch = []
        if batch:
            features.append(run(prepare(np.stack(batch))))
        np.save(cache / "expert.npy", np.concatenate(features))

    return timed(extract, len(data.files))


def expert_loops(
    network: str, data: DataSet, cache: Path, ways: Sequence[str]
) -> dict[str, Method]:
    """Return the loops by hand in the installed engines, in float32 and int8.

    The int8 network is the one that ``featkit_extraction`` has calibrated.
    """
    methods: dict[str, Method] = {}
    engines = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
    model = float32_network(network) if engines and "fp32" in ways else b""
    for engine in engines:
        if model:
            methods[f"by hand, {engine} fp32"] = expert_loop(engine, model, normalise, data, cache)
        precision = {"onnxruntime": "int8", "openvino": "int8-openvino"}[engine]
        if precision in ways:
            images = images_from_files(data.files)
            request = Request(data="", backbone=network, precision=precision)
            keys = content_keys(images, Compute())
            plan = plan_extraction(request, images, keys, cache / precision)
            quantized = plan.backbone.read_quantized()
            methods[f"by hand, {engine} int8"] = expert_loop(
                engine, quantized, np.ascontiguousarray, data, cache
            )
    return methods


def other_libraries(network: str, data: DataSet, python: str | None) -> dict[str, Method]:
    """Return the installed libraries, on the same images and a network of the same architecture."""
    methods: dict[str, Method] = {}
    if importlib.util.find_spec("timm"):
        methods["timm"] = timm_loop(network, data.files)
    if importlib.util.find_spec("embetter"):
        methods["embetter"] = embetter_pipeline(network, data.files)
    if python:
        methods["thingsvision"] = thingsvision_process(python, network, data)
    return methods


def measure_stages(network: str, variant: str, files: list[Path], cache: Path) -> dict[str, float]:
    """Return core-seconds per image of each stage, measured on one core with up to 64 images.

    An int8 network is the one that ``featkit_extraction`` has calibrated.

    Args:
        network: spec of the backbone.
        variant: see ``featkit_extraction``.
        files: the images.
        cache: folder of the cache file.
    """
    precision = variant.split()[0]
    images = images_from_files(files)
    request = Request(data="", backbone=network, precision=precision)
    backbone = plan_extraction(request, images, content_keys(images, Compute()), cache).backbone
    preprocess = backbone.preprocess.for_precision(precision)
    engine = open_engine(backbone, precision=precision, engine=engine_of(variant))
    files = files[:64]
    times = [time.perf_counter()]

    data = [file.read_bytes() for file in files]
    times.append(time.perf_counter())
    edge = backbone.preprocess.edge
    decoded = []
    for content, file in zip(data, files, strict=True):
        decoded.append(decode(content, str(file), edge=edge))
    times.append(time.perf_counter())
    pixels = np.stack([preprocess(image) for image in decoded])
    times.append(time.perf_counter())
    seconds = dict(zip(("read", "decode", "resize"), np.diff(times).tolist(), strict=True))

    with one_thread_per_worker() as use_one_thread:
        use_one_thread()
        engine(pixels[:16])  # the first call allocates memory
        start = time.perf_counter()
        batches = [engine(pixels[first : first + 16]) for first in range(0, len(pixels), 16)]
        features = np.concatenate(batches)
        seconds["forward"] = time.perf_counter() - start

    start = time.perf_counter()
    np.save(cache / "write.npy", features)
    seconds["write"] = time.perf_counter() - start
    return {stage: total / len(files) for stage, total in seconds.items()}


def compare(network: str, data: DataSet, cache: Path, arguments: argparse.Namespace) -> None:
    """Print the median rate of each method; each repetition runs all methods in turn."""
    methods = {"torchvision": torchvision_loop(network, data)}
    if not arguments.no_peers:
        methods |= other_libraries(network, data, arguments.thingsvision)
    for variant in arguments.ways:
        folder = cache / variant
        methods[f"featkit {variant}"] = featkit_extraction(network, variant, data.files, folder)
    if not arguments.no_peers:
        methods |= expert_loops(network, data, cache, arguments.ways)

    seconds: dict[str, list[float]] = {name: [] for name in methods}
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for _ in range(arguments.repeats):
        for name, run in methods.items():
            seconds[name].append(run())
            if name.startswith("featkit"):
                variant = name.removeprefix("featkit ")
                measured = measure_stages(network, variant, data.files, cache / variant)
                stages[name].append(measured)

    baseline = statistics.median(seconds["torchvision"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{data.name:10} {network:9} {name:26} {1 / median:7.1f} images/s "
            f"{baseline / median:6.2f}x {format_stages(stages[name], 1 / median)}",
            flush=True,
        )


def format_stages(measured: list[dict[str, float]], rate: float) -> str:
    """Return a rate as percentage of the limit, and milliseconds of one core per stage."""
    if not measured:
        return ""
    medians: dict[str, float] = {}
    for stage in measured[0]:
        medians[stage] = statistics.median([each[stage] for each in measured])
    # Writing is left out: it overlaps with the computation of the next batches.
    computing = sum(medians[stage] for stage in ("read", "decode", "resize", "forward"))
    limit = available_cores() / computing
    parts = [f"{stage} {1000 * seconds:.1f}" for stage, seconds in medians.items()]
    return f" {rate / limit:4.0%}  {' '.join(parts)}"


def time_cache_hit(files: list[Path], cache: Path) -> float:
    """Return the seconds of an extraction whose cache file exists."""
    images = images_from_files(files)
    request = Request(data="", weights="random", resize="32", precision="fp32")
    run_extractions([request], images, cache, Compute(device="cpu"))
    start = time.perf_counter()
    (done,) = run_extractions([request], images, cache, Compute(device="cpu"))
    seconds = time.perf_counter() - start
    if not done.hit:
        raise RuntimeError("the cache file was not found")
    return seconds


PEAK = """
import sys
from dataclasses import replace
from pathlib import Path
from featkit import Compute
from featkit.cli.main import keep_freed_memory
from featkit.embeddings.extract import run_extractions
from featkit.embeddings.request import Request
from featkit.images.files import images_from_files
keep_freed_memory()
files = Path(sys.argv[1]).read_text().splitlines()
images = images_from_files(files)
# Files occur several times: different ids and keys make them different images.
images = replace(images, ids=tuple(map(str, range(len(files)))), key=lambda row: f"{row:064x}")
request = Request(data="", weights="random", precision="bf16", resize="64")
run_extractions([request], images, Path(sys.argv[2]), Compute(device="cpu"))
# ru_maxrss of getrusage would include the parent process.
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
"""


def peak_memory(files: list[Path], count: int, folder: Path) -> float:
    """Return the peak resident memory in MiB of a new process that embeds ``count`` images."""
    names = folder / "names.txt"
    names.write_text("\n".join(str(file.absolute()) for file in islice(cycle(files), count)))
    command = [sys.executable, "-c", PEAK, str(names), str(folder / f"peak{count}")]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


PHONE, PHONE_PIXELS = "phone", (4032, 3024)


def phone_photos(count: int, folder: Path) -> DataSet:
    """Make photos of 12 megapixels from the pets, JPEG quality 88, in two class folders."""
    pets = sorted(Path(os.environ["FEATKIT_TEST_DATA"], "pets").rglob("*.jpg"))
    files = []
    for number in range(count):
        # Evenly spaced, so that a few photos are of many breeds too.
        source = pets[number * len(pets) // count]
        file = folder / str(number % 2) / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as image:
            photo = image.convert("RGB").resize(PHONE_PIXELS, Image.Resampling.BICUBIC)
            photo.save(file, quality=88)
        files.append(file)
    return DataSet(PHONE, files, folder)


def processor() -> str:
    """Return the name of the processor and its instruction set."""
    name = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        lines = described.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
        name = names[0].strip() if names else name
    return f"{name} ({instruction_set()})"


def select_images(name: str, count: int, folder: Path) -> DataSet:
    """Select images of a data set, evenly spaced, and link to them from a folder of two classes."""
    if name == PHONE:
        return phone_photos(count, folder / name)
    available = sorted(Path(os.environ["FEATKIT_TEST_DATA"], name).rglob("*.jpg"))
    files = available[:: max(1, len(available) // count)][:count]
    for number, file in enumerate(files):
        link = folder / name / str(number % 2) / f"{number}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.absolute())
    return DataSet(name, files, folder / name)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, default=256, help="images of each data set [%(default)s]"
    )
    parser.add_argument("--repeats", type=int, default=5, help="repetitions [%(default)s]")
    parser.add_argument(
        "--networks", nargs="+", default=["resnet18", "resnet50"], help="[%(default)s]"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=["caltech101", "pets"],
        help="folders in $FEATKIT_TEST_DATA; phone: photos of 12 megapixels, made from the pets "
        "[%(default)s]",
    )
    parser.add_argument(
        "--ways",
        nargs="+",
        default=["fp32", "fp32 onnxruntime", "bf16", "bf16 compiled", *INT8],
        help="precisions of featkit, 'PRECISION compiled' for a compiled network, "
        "'fp32 onnxruntime' for float32 in ONNX Runtime [%(default)s]",
    )
    parser.add_argument(
        "--thingsvision", metavar="PYTHON", help="Python of an environment with thingsvision"
    )
    parser.add_argument("--no-memory", action="store_true", help="skip peak memory and cache hit")
    parser.add_argument(
        "--no-peers", action="store_true", help="skip timm, embetter and the loops by hand"
    )
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    if not {"FEATKIT_TEST_DATA", "FEATKIT_WEIGHTS"} <= os.environ.keys():
        print("FEATKIT_TEST_DATA and FEATKIT_WEIGHTS are not set: nothing is measured")
        return
    keep_freed_memory()  # as the command line program does
    print(processor())
    print(
        f"{arguments.images} images, {available_cores()} cores, medians of {arguments.repeats}: "
        "images/s, ratio to torchvision,\n"
        "percentage of the limit, milliseconds of one core per image for each stage"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in arguments.data:
            data = select_images(name, arguments.images, folder)
            for network in arguments.networks:
                compare(network, data, folder / "cache" / name / network, arguments)
        if arguments.no_memory:
            return
        files = sorted(Path(os.environ["FEATKIT_TEST_DATA"], "caltech101").rglob("*.jpg"))
        seconds = time_cache_hit(files, folder / "hit")
        print(f"cache hit for {len(files)} images: {seconds:.2f} s")
        few = peak_memory(files, 1_000, folder)
        many = peak_memory(files, 10_000, folder)
        print(
            f"peak memory: {few:.0f} MiB for 1,000 images, {many:.0f} MiB for 10,000 "
            f"({many / few - 1:+.1%})"
        )


if __name__ == "__main__":
    main()
