"""Name the processor's class, and the attention kernel that is quickest there.

The quickest kernel is a fact about a machine. The choice follows from what the processor reports and never from a
clock, so that a resumed run on the same machine computes the same numbers.
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch

from seg2any.system.precision import has_fast_bfloat16


class Processor(Enum):
    """Class of a processor, by what decides how fast torch's fused attention kernel is."""

    GPU = "a GPU or another accelerator"
    QUICK_FUSED = "an Intel CPU with bfloat16 units, which the fused kernel uses"
    SLOW_FUSED = "a CPU with bfloat16 units, which only matrix products use"
    FLOAT32 = "a CPU that computes in float32"
    SCALAR = "an x86 CPU without vector units that torch uses"


@dataclass(frozen=True)
class Costs:
    """The quickest kernel, and what `grouped` costs beside one call of it with a mask.

    All costs are in pairs of one query and one key without a mask.

    kernel  fused or products, see `seg2any.attention.kernels`
    masked  of a pair in a call with a mask
    call    of a call of `grouped`, whatever its size
    copied  of a key with its value that `grouped` copies
    """

    kernel: str
    masked: float
    call: int
    copied: int


CPUINFO = Path("/proc/cpuinfo")
FUSED, PRODUCTS = "fused", "products"

# SLOW_FUSED was measured on an AMD EPYC with AVX512-BF16. The others were derived: QUICK_FUSED from figures of a Xeon
# with AMX, FLOAT32 and SCALAR from the EPYC with kernels restricted, GPU from an H100's rates for flash and efficient
# attention and 40 us for the smallest call. In doubt they favour one call with a mask.
COSTS = {
    (Processor.GPU, "16 bit"): Costs(FUSED, 2.4, 1_600_000, 360),
    (Processor.GPU, "32 bit"): Costs(FUSED, 1.0, 200_000, 40),
    (Processor.QUICK_FUSED, "16 bit"): Costs(FUSED, 1.0, 20_000, 120),
    (Processor.QUICK_FUSED, "32 bit"): Costs(FUSED, 1.0, 2_000, 40),
    (Processor.SLOW_FUSED, "16 bit"): Costs(PRODUCTS, 1.0, 8_000, 40),
    (Processor.SLOW_FUSED, "32 bit"): Costs(FUSED, 1.0, 2_000, 40),
    (Processor.FLOAT32, "16 bit"): Costs(FUSED, 1.0, 2_000, 40),
    (Processor.FLOAT32, "32 bit"): Costs(FUSED, 1.0, 2_000, 40),
    (Processor.SCALAR, "16 bit"): Costs(PRODUCTS, 1.0, 8_000, 40),
    (Processor.SCALAR, "32 bit"): Costs(PRODUCTS, 1.0, 8_000, 40),
}


@functools.cache
def processor_of(device: str) -> Processor:
    """Return the class of a kind of device, such as "cpu" or "cuda"."""
    if device != "cpu":
        return Processor.GPU
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if is_x86 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX"):
        return Processor.SCALAR
    if not has_fast_bfloat16("cpu"):
        return Processor.FLOAT32
    return Processor.QUICK_FUSED if is_x86 and _vendor() == "GenuineIntel" else Processor.SLOW_FUSED


def costs_of(device: torch.device, dtype: torch.dtype) -> Costs:
    """Return the quickest kernel for a precision, and its costs."""
    return COSTS[processor_of(device.type), "16 bit" if dtype.itemsize == 2 else "32 bit"]


def kernels_of(device: torch.device | str) -> str:
    """Describe which attention kernels a device gets, for recipes and reports."""
    device = torch.device(device)
    names = {bits: COSTS[processor_of(device.type), bits].kernel for bits in ("16 bit", "32 bit")}
    used = ", ".join(f"{name} in {bits}" for bits, name in names.items())
    return f"{used}, on {processor_of(device.type).value}"


def _vendor() -> str:
    """Return what the processor says of its maker, such as GenuineIntel or AuthenticAMD."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id"))
    except (OSError, StopIteration):
        words = platform.processor()  # Windows: "Intel64 Family 6 ..., GenuineIntel"
        return words.rsplit(", ", 1)[-1]
