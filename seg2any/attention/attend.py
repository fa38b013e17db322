"""The one attention call of the repository. Backends are interchangeable and each is tested against `dense`.

A backend belongs here only if it honours the whole additive mask. Kernels that reduce a mask to key padding, or drop
it, would silently turn regional attention into plain attention, so they are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from seg2any.errors import UserError

Backend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

UNSAFE = {
    "varlen": "it reduces the mask to key padding, so the regions vanish",
    "flash": "flash kernels take no mask, so the regions vanish",
    "aiter": "it takes no mask, so the regions vanish",
    "sage": "it drops the mask, so the regions vanish",
    "xformers": "it wants another mask layout, and no test compares it with the dense oracle",
    "flex": "it wants a block mask instead of an additive one, and no test compares it with the dense oracle",
    "cudnn": "it falls back or fails on some additive masks, and no test compares it with the dense oracle",
}


def attention_weights(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + mask) in float32. q [B, Lq, heads, d], k [B, Lk, heads, d] -> [B, heads, Lq, Lk]."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query.float(), key.float()) * query.shape[-1] ** -0.5
    return (scores if mask is None else scores + mask.float()).softmax(-1)


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The oracle: the textbook formula in float32, without autocast."""
    with torch.autocast(query.device.type, enabled=False):
        return torch.einsum("bhqk,bkhd->bqhd", attention_weights(query, key, mask), value.float()).to(value.dtype)


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """torch's fused kernel; it reads the one mask for all heads."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def matmul(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The formula in the model's own precision, [B, heads, L, L] in memory. On CPUs with bfloat16 matrix units and at a
    few hundred tokens its backward pass takes a third of `sdpa`'s."""
    query, key, value = (x.transpose(1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))
    scores = query @ key.mT
    return ((scores if mask is None else scores + mask).softmax(-1).to(value.dtype) @ value).transpose(1, 2)


BACKENDS: dict[str, Backend] = {"sdpa": sdpa, "dense": dense, "matmul": matmul}


def backend(name: str) -> Backend:
    """The backend of that name; `UserError` with the reason for those that would lose the regions."""
    if name in BACKENDS:
        return BACKENDS[name]
    reason = next((f": {why}" for part, why in UNSAFE.items() if part in name.lower()), "")
    raise UserError(f"attention_backend {name!r} cannot be used{reason}; use one of {', '.join(BACKENDS)}")


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    attention_backend: str = "sdpa",
) -> torch.Tensor:
    """query, key, value [B, L, heads, d], additive mask broadcastable to [B, heads, L, L] -> [B, L, heads, d]."""
    return backend(attention_backend)(query, key, value, mask)
