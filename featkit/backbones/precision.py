"""Precisions, and which the hardware supports; torch is imported only where there is an NVIDIA GPU."""

from __future__ import annotations

from pathlib import Path

from featkit.registry import unknown

INT8 = ("int8", "int8-openvino")
"""Eight bits, run by ONNX Runtime or by OpenVINO: the same network, rounded a little differently on the way."""

PRECISIONS = ("fp32", "bf16", *INT8)
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_CPU_INFO = Path("/proc/cpuinfo")
_NVIDIA = Path("/dev/nvidiactl")


def resolve_precision(text: str, device: str = "auto") -> str:
    """Return one of ``PRECISIONS``; ``auto`` is bf16 where the device has it in hardware, else fp32.

    Raises:
        SpecError: if the text is none of these.
    """
    if text in PRECISIONS:
        return text
    if text != "auto":
        raise unknown("precision", text, ["auto", *PRECISIONS])
    return "bf16" if _has_bf16(device) else "fp32"


def _has_bf16(device: str) -> bool:
    if device in ("auto", "cuda") and _NVIDIA.exists():
        import torch

        if torch.cuda.is_available():
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device in ("auto", "cpu") and bool(_BF16_FLAGS & _cpu_flags())


def _cpu_flags() -> set[str]:
    """Return what Linux says of the first processor: ``flags`` on x86, ``Features`` on ARM; empty elsewhere."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    found = (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features")))
    return set(next(found, []))
