"""Compute backend `grouped`: exact attention without a mask, one token class at a time.

In AIA (paper eq. 7) a foreground token sees its own entity, that entity's caption and the contour, so most of the L x L
pairs are never computed. Weights other than 0 and 1 (paper eq. 6) become a bias for each key.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from seg2any.attention.kernels import kernel_dtype, quickest
from seg2any.attention.names import check_backend
from seg2any.attention.pattern import AttentionPattern
from seg2any.attention.tokens import Kind

# In this order the keys of global text, background and contour, the largest sets, are contiguous and need no copy.
ORDER = (Kind.REGION, Kind.GLOBAL, Kind.IMAGE, Kind.COND, Kind.TEXT_PAD, Kind.COND_PAD)


@dataclass(frozen=True)
class Group:
    """The keys that the queries of one class see.

    keys: numbers of the classes that are seen, ascending
    bias: float32 [K], log weight of every key; None = all weights are 1
    """

    keys: tuple[int, ...]
    bias: torch.Tensor | None

    def mask(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the bias as a mask [1, 1, 1, K], one row for all queries."""
        return None if self.bias is None else self.bias.to(dtype)[None, None, None]

    def select(self, x: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Select the group's keys from x [n, L, heads, d], sorted by class, and its split `parts`.

        Returns [n, K, heads, d], a view of x if the keys are contiguous.
        """
        first, last = self.keys[0], self.keys[-1]
        if last - first + 1 != len(self.keys):
            return torch.cat([parts[number] for number in self.keys], 1)
        start = sum(part.shape[1] for part in parts[:first])
        return x.narrow(1, start, sum(part.shape[1] for part in parts[first : last + 1]))


@dataclass(frozen=True)
class SameLayout:
    """Samples with equal sequences of classes, which share one set of kernel calls.

    tokens:      int64 [n, L], row in the flattened batch [B * L] of every token, sorted by class
    queries:     int64 [n, queries], row in the flattened queries [B * queries] of every query, sorted by class
    sizes:       number of tokens of every class in one sample
    query_sizes: number of queries of every class in one sample
    groups:      one for every class
    """

    tokens: torch.Tensor
    queries: torch.Tensor
    sizes: tuple[int, ...]
    query_sizes: tuple[int, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Grouping:
    """The groups of a whole batch.

    row_of_query: int64 [B * queries], row of every query in the concatenated outputs of the layouts
    """

    layouts: tuple[SameLayout, ...]
    row_of_query: torch.Tensor


def grouping(pattern: AttentionPattern) -> Grouping:
    """Return the groups of a pattern, computed once. Raises UserError for mask method `place`."""
    return pattern.cached("grouping", lambda: _grouping(pattern))


def _grouping(pattern: AttentionPattern) -> Grouping:
    check_backend("grouped", pattern.settings.attention_mask_method)
    index, device = pattern.classes.index.cpu().numpy(), pattern.classes.index.device
    n_queries = pattern.query_index.shape[1]
    samples_of: dict[bytes, list[int]] = {}
    for sample, row in enumerate(index):
        samples_of.setdefault(row.tobytes(), []).append(sample)
    kind, log_weights = pattern.classes.kind.cpu().numpy(), pattern.log_weights.cpu().numpy()
    layouts = []
    for samples in samples_of.values():
        tokens, sizes, present = _sorted_by_class(index[samples[0]], kind)
        groups = [_group(row, sizes, device) for row in log_weights[np.ix_(present, present)]]
        is_query = tokens < n_queries
        query_sizes = np.add.reduceat(is_query, sizes.cumsum() - sizes, dtype=int)
        flat = [
            torch.from_numpy(np.array(samples)[:, None] * length + chosen).to(device)
            for length, chosen in ((index.shape[1], tokens), (n_queries, tokens[is_query]))
        ]
        layouts.append(SameLayout(*flat, tuple(sizes.tolist()), tuple(query_sizes.tolist()), tuple(groups)))
    return Grouping(tuple(layouts), torch.cat([layout.queries.flatten() for layout in layouts]).argsort())


def _sorted_by_class(row: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort the classes of one sample's tokens, int [L]; return tokens, sizes and numbers.

    tokens int [L], sorted by class; sizes and numbers int [C], of the classes that are present
    """
    present, counts = np.unique(row, return_counts=True)
    members = np.split(np.argsort(row, kind="stable"), counts.cumsum()[:-1])
    order = np.argsort([ORDER.index(each) for each in kind[present]], kind="stable")
    return np.concatenate([members[number] for number in order]), counts[order], present[order]


def _group(log_weights: np.ndarray, sizes: np.ndarray, device: torch.device) -> Group:
    """Build the group of one class from the log weights, float32 [C], that it gives to all."""
    seen = np.flatnonzero(log_weights > -np.inf)
    weighted = log_weights[seen].any()
    bias = torch.from_numpy(log_weights[seen].repeat(sizes[seen])).to(device) if weighted else None
    return Group(tuple(seen.tolist()), bias)


def grouped(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """Compute attention with one kernel call for each class of queries.

    query [B, queries, heads, d], key and value [B, L, heads, d] -> [B, queries, heads, d]
    Raises UserError for mask method `place`.
    """
    plan, dtype, shape = grouping(pattern), kernel_dtype(query), query.shape
    query, key, value = (x.to(dtype).flatten(0, 1) for x in (query, key, value))
    outputs = []
    for layout in plan.layouts:
        n, query_rows, order = len(layout.tokens), layout.queries.flatten(), layout.tokens.flatten()
        k, v = (x.index_select(0, order).unflatten(0, (n, -1)) for x in (key, value))
        queries = query.index_select(0, query_rows).unflatten(0, (n, -1)).split(layout.query_sizes, 1)
        keys, values = (x.split(layout.sizes, 1) for x in (k, v))
        parts = [
            quickest(part, group.select(k, keys), group.select(v, values), group.mask(dtype))
            for part, group in zip(queries, layout.groups, strict=True)
            if part.shape[1]
        ]
        outputs.append(torch.cat(parts, 1).flatten(0, 1))
    return torch.cat(outputs).index_select(0, plan.row_of_query).view(shape)
