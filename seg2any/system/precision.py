"""Which machines compute in bfloat16 at full speed. Elsewhere torch emulates it, hundreds of times slower than fp32."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device | str) -> bool:
    """True on accelerators, and on CPUs with bfloat16 instructions (AVX512-BF16 or AMX on x86, BF16 on Arm)."""
    if torch.device(device).type != "cpu":
        return True
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def cpu_autocast() -> torch.autocast:
    """bfloat16 autocast on this CPU where that is faster, else none."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16("cpu"))
