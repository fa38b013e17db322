"""Precisions by name, and which machines compute in bfloat16 at full speed.

Other CPUs emulate bfloat16, hundreds of times slower than fp32; older GPUs lose their fast 16-bit products with it.
torch is imported inside the functions, so that --help can list the precisions without waiting for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "fp16", "bf16")
# values of ONEDNN_MAX_CPU_ISA with which oneDNN emulates bfloat16
ONEDNN_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of one of `PRECISIONS`."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def has_fast_bfloat16(device: torch.device | str) -> bool:
    """Return True where a processor computes in bfloat16 itself, without emulation.

    These are NVIDIA GPUs from Ampere on (V100 and T4 emulate it), other accelerators, and CPUs with AVX512-BF16 or AMX
    on x86, or BF16 on Arm, unless ONEDNN_MAX_CPU_ISA keeps oneDNN from using them.
    """
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return True
    most = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    if most.upper() in ONEDNN_WITHOUT_BFLOAT16:
        return False
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def cpu_autocast() -> torch.autocast:
    """Return bfloat16 autocast on a CPU where that is faster, else autocast that does nothing."""
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16("cpu"))


def choose_dtype(precision: str | None, device: torch.device) -> torch.dtype:
    """Return the dtype of one of `PRECISIONS`; None: bf16, on a CPU fp32.

    GPUs that emulate bf16 get it, too: fp32 would take twice the memory, and FLUX's VAE overflows in fp16.
    """
    return dtype_of(precision or ("fp32" if device.type == "cpu" else "bf16"))
