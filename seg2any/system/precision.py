"""Precisions by name, and which machines compute in bfloat16 at full speed.

Other machines emulate bfloat16, hundreds of times slower than fp32. torch is imported inside the functions, so that
--help can list the precisions without waiting for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "fp16", "bf16")


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of one of `PRECISIONS`."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def has_fast_bfloat16(device: torch.device | str) -> bool:
    """Return True on accelerators, and on CPUs with bfloat16 instructions.

    These are AVX512-BF16 and AMX on x86, BF16 on Arm.
    """
    import torch

    if torch.device(device).type != "cpu":
        return True
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def cpu_autocast() -> torch.autocast:
    """Return bfloat16 autocast on a CPU where that is faster, else autocast that does nothing."""
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16("cpu"))


def choose_dtype(precision: str | None, device: torch.device) -> torch.dtype:
    """Return the dtype of one of `PRECISIONS`; None: bf16, on a CPU fp32."""
    return dtype_of(precision or ("fp32" if device.type == "cpu" else "bf16"))
