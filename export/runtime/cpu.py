"""What Linux tells of the CPU, and what 8-bit engines rely on. No torch."""

from __future__ import annotations

from pathlib import Path

#: x86 instructions that add products of 8 bits up in 32. Those before them stop at 16 bits, and clamp what is more.
_EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}


CPUINFO = Path("/proc/cpuinfo")


def told(key: str, cpuinfo: Path = CPUINFO) -> str | None:
    """What Linux says of the first core: its `model name`, its `flags`; None where it says nothing."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def clamps_int8(cpuinfo: Path = CPUINFO) -> bool:
    """Whether sums of 8-bit products may be clamped on this CPU, so that a verification made elsewhere says little.

    An x86 without VNNI does so (onnxruntime's documentation, "Quantize ONNX models"). False where Linux does not tell.
    """
    flags = told("flags", cpuinfo)
    return flags is not None and not _EXACT.intersection(flags.split())
