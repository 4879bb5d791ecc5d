"""What the CPU can do that 8-bit engines rely on. No torch."""

from __future__ import annotations

from pathlib import Path

#: x86 instructions that add products of 8 bits up in 32. Those before them stop at 16 bits, and clamp what is more.
_EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}


def clamps_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether sums of 8-bit products may be clamped on this CPU, so that a verification made elsewhere says little.

    An x86 without VNNI does so (onnxruntime's documentation, "Quantize ONNX models"). False where Linux does not tell.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)
    return flags is not None and not flags & _EXACT
