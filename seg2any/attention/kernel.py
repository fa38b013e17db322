"""torch's fused attention, in the shapes and the precision of this repository."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def kernel_dtype(query: torch.Tensor) -> torch.dtype:
    """What torch's kernels compute in: that of autocast where it is on."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def masked_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """query [B, Lq, heads, d], key and value [B, Lk, heads, d] -> [B, Lq, heads, d].

    mask: additive, in `kernel_dtype(query)`, broadcastable to [B, heads, Lq, Lk]; None = every query every key
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
