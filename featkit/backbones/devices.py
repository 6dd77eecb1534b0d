"""Devices, precisions and threads of a forward pass. Imports torch only when it is needed."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from featkit.errors import SpecError
from featkit.registry import unknown

log = logging.getLogger("featkit")

INT8 = ("int8", "int8-openvino")
"""Precisions of quantized networks. OpenVINO rounds slightly differently from ONNX Runtime."""

PRECISIONS = ("fp32", "bf16", *INT8)
DEVICES = ("auto", "cpu", "cuda", "mps")

CHECK_VARIABLE = "FEATKIT_INT8_CHECK"
"""Environment variable: ``warn`` turns refusals of inaccurate int8 networks into warnings."""

_BF16_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_CPU_INFO = Path("/proc/cpuinfo")
_GPU_FILES = ("nvidiactl", "nvhost-ctrl", "nvmap", "dxg", "kfd")
"""Files in /dev of drivers that give torch a GPU: NVIDIA's cards, its boards (two), Windows under
Linux, AMD's cards."""
_INT8_CPU_FLAGS = (
    "amx_int8",
    "avx512_vnni",
    "avx_vnni",
    "avx512f",
    "avx2",
    "i8mm",
    "asimddp",
    "asimd",
)
"""Instruction sets that decide how int8 is computed, best first for x86, then for ARM."""


def refuse_int8(message: str) -> None:
    """Raise an error, or log it as a warning if ``FEATKIT_INT8_CHECK`` is ``warn``.

    Raises:
        SpecError: with the message and how to continue; or if the variable has another value.
    """
    value = os.environ.get(CHECK_VARIABLE, "")
    if value not in ("", "warn", "refuse"):
        raise SpecError(f"{CHECK_VARIABLE} is {value!r}: set it to warn or refuse, or unset it")
    if value != "warn":
        raise SpecError(f"{message}, or set {CHECK_VARIABLE}=warn to continue")
    log.warning("%s", message)


def resolve_precision(precision: str, device: str = "auto") -> str:
    """Return one of ``PRECISIONS``; ``auto`` becomes bf16 if the hardware supports it, else fp32.

    Raises:
        SpecError: if the precision is unknown.
    """
    if precision in PRECISIONS:
        return precision
    if precision != "auto":
        raise unknown("precision", precision, ["auto", *PRECISIONS])
    return "bf16" if _has_bf16(device) else "fp32"


def warn_of_slow_bf16(device: str) -> None:
    """Log a warning if a device computes bfloat16 without instructions for it.

    Nothing is known, and nothing logged, of CPUs whose instruction sets the system does not list.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.
    """
    is_known = device == "cuda" or (device == "cpu" and bool(cpu_flags()))
    if is_known and not _has_bf16(device):
        log.warning(
            "this %s has no instructions for bf16, which is up to 8 times slower than fp32: use "
            "--precision fp32 or auto",
            "GPU" if device == "cuda" else "processor",
            extra={"once": True},
        )


def pick_device(device: str = "auto") -> str:
    """Return ``cuda``, ``mps`` or ``cpu``; ``auto`` becomes the first of them that is available.

    Raises:
        SpecError: if the device is unknown or not available.
    """
    if device not in DEVICES:
        raise unknown("device", device, list(DEVICES))
    if device == "cpu" or (device == "auto" and not _may_have_gpu()):
        return "cpu"
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    best = "cuda" if available["cuda"] else "mps" if available["mps"] else "cpu"
    if device == "auto":
        return best
    if not available[device]:
        raise SpecError(f"device {device} is not available: use --device {best} or auto")
    return device


def device_for(precisions: Iterable[str], device: str = "auto") -> str:
    """Return the device that networks of these precisions run on, as ``pick_device`` does.

    int8 runs on a CPU: if there is nothing else to run, ``auto`` becomes ``cpu``, and torch is not
    imported.

    Raises:
        SpecError: if the device is unknown or not available.
    """
    if device == "auto" and all(precision in INT8 for precision in precisions):
        return "cpu"
    return pick_device(device)


def instruction_set() -> str:
    """Return the machine type and its best instruction set for int8: ``x86_64 avx512_vnni``.

    Recorded where int8 networks are made and used: x86 processors without VNNI add products of
    8-bit numbers in 16 bits.
    """
    machine = platform.machine().lower()
    flags = cpu_flags()
    for flag in _INT8_CPU_FLAGS:
        if flag in flags:
            return f"{machine} {flag}"
    import torch

    return f"{machine} {torch.backends.cpu.get_cpu_capability().lower()}"


@contextmanager
def one_thread_per_worker() -> Iterator[Callable[[], None]]:
    """Let every worker thread run torch on one core, because the other workers use the other cores.

    Enter it after the networks are built: if none of them imported torch, nothing is done.

    Yields:
        A function that each worker thread calls first. The number of torch's threads is restored
        afterwards.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield _do_nothing
        return
    before = torch.get_num_threads()
    try:
        yield lambda: torch.set_num_threads(1)
    finally:
        torch.set_num_threads(before)


def _do_nothing() -> None:
    pass


def _has_bf16(device: str) -> bool:
    if device in ("auto", "cuda") and _has_nvidia_driver():
        import torch

        if torch.cuda.is_available():
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device in ("auto", "cpu") and bool(_BF16_CPU_FLAGS & cpu_flags())


def _has_nvidia_driver() -> bool:
    """Return whether there may be an NVIDIA GPU; without one, a cache hit does not import torch."""
    if os.name == "nt":
        return Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll").exists()
    return Path("/dev/nvidiactl").exists()


def _may_have_gpu() -> bool:
    """Return whether torch could have a GPU here; without one, it need not be imported."""
    system = platform.system()
    if system == "Linux":
        return any(Path("/dev", name).exists() for name in _GPU_FILES)
    return system == "Darwin" or _has_nvidia_driver()


def cpu_flags() -> set[str]:
    """Return the instruction sets of the first CPU as Linux lists them; empty on other systems.

    The line is called ``flags`` on x86 and ``Features`` on ARM.
    """
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    for line in lines:
        if line.lower().startswith(("flags", "features")):
            return set(line.partition(":")[2].split())
    return set()
