"""Compute semantic alignment attention exactly, by unmasked calls whose outputs are merged.

Queries of one kind share some keys; others belong to their region only. Each of these parts is one unmasked call, and
the log-sum-exp of the outputs merges them. Large calls run one by one, small calls in one call of variable length.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.gpu.measure import Run
from seg2any.attention.pattern import AttentionPattern
from seg2any.attention.tokens import Kind

LARGE = 2e5  # number of queries times number of keys above which a call runs by itself
Call = tuple[torch.Tensor, torch.Tensor]  # indices of queries and of keys


def joined(
    on: Run, inputs: list[torch.Tensor], pattern: AttentionPattern
) -> tuple[Callable[[], torch.Tensor], Callable[[], object], dict[str, int]]:
    """Return two functions, the merged attention and one unmasked call, and numbers of calls.

    inputs  query, key and value [1, L, heads, head_dim]
    """
    calls = [tuple(rows.to(on.device) for rows in call) for call in _calls(pattern)]
    large = [call for call in calls if len(call[0]) * len(call[1]) > LARGE] if on.is_full else calls
    small = [call for call in calls if all(call is not each for each in large)]
    parts = _varlen(on, inputs, small) if on.device == "cuda" and small else _one_by_one(on, inputs, small)
    q = inputs[0]

    def attend() -> torch.Tensor:
        out = torch.zeros(q.shape[1:], device=on.device)
        lse = torch.full(q.shape[1:3], -math.inf, device=on.device)
        for at, part, its in (*_one_by_one(on, inputs, large)(), *parts()):
            old, new = lse[at], torch.logaddexp(lse[at], its)
            out[at] = out[at] * (old - new).exp()[..., None] + part.float() * (its - new).exp()[..., None]
            lse[at] = new
        return out.to(on.dtype)[None]

    return attend, lambda: _flash(on, *inputs), {"large": len(large), "small": len(small)}


def _calls(pattern: AttentionPattern) -> list[Call]:
    """Split the tokens into pairs of queries and keys, by class, that need no mask."""
    index, kind, weights = pattern.classes.index[0], pattern.classes.kind, pattern.log_weights
    rows = [(index == c).nonzero()[:, 0] for c in range(len(kind))]
    calls, present = [], [c for c in range(len(kind)) if len(rows[c])]
    for each in Kind:
        mine = [c for c in present if kind[c] == each]
        common = [j for j in present if mine and all(weights[c, j] == 0 for c in mine)]
        if common:
            calls.append((torch.cat([rows[c] for c in mine]), torch.cat([rows[j] for j in common])))
        for c in mine:
            rest = [j for j in present if j not in common and weights[c, j] == 0]
            if rest:
                calls.append((rows[c], torch.cat([rows[j] for j in rest])))
    return calls


def _flash(on: Run, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend without a mask: output [1, heads, Q, head_dim] and log-sum-exp [1, heads, Q]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if on.device == "cuda":
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    q, k, v = (x.contiguous() for x in (q, k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse if lse.shape == out.shape[:3] else lse.transpose(1, 2)


def _one_by_one(on: Run, inputs: list[torch.Tensor], calls: list[Call]) -> Callable[[], list]:
    """Return a function that runs each call as one kernel.

    It returns (query indices, output, log-sum-exp) of each call.
    """
    q, k, v = inputs

    def parts() -> list:
        found = []
        for at, keys in calls:
            part, its = _flash(on, q[:, at], k[:, keys], v[:, keys])
            found.append((at, part[0].transpose(0, 1), its[0].T))
        return found

    return parts


def _varlen(on: Run, inputs: list[torch.Tensor], calls: list[Call]) -> Callable[[], list]:
    """Return a function that runs all calls as one kernel; no query may occur twice."""
    q, k, v = inputs
    sizes = torch.tensor([[len(a), len(b)] for a, b in calls], device=on.device)
    starts = F.pad(sizes.cumsum(0), (0, 0, 1, 0)).int().T.contiguous()
    most = sizes.amax(0).tolist()
    at, seen = (torch.cat([call[i] for call in calls]) for i in (0, 1))

    def parts() -> list:
        part, its = torch.ops.aten._flash_attention_forward(
            q[0, at], k[0, seen], v[0, seen], starts[0], starts[1], *most, 0.0, False, False
        )[:2]
        return [(at, part, its.T)]

    return parts
