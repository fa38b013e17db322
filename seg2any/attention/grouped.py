"""Compute backend `grouped`: exact attention without a mask, one token class at a time.

In AIA (paper eq. 7) a foreground token sees its own entity, that entity's caption and the contour, so most of the L x L
pairs are never computed. Weights other than 0 and 1 (paper eq. 6) become a bias for each key.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from seg2any.attention.kernels import kernel_dtype, quickest
from seg2any.attention.names import check_backend
from seg2any.attention.pattern import AttentionPattern, send
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
        """Select the group's keys from x [n, heads, L, d], sorted by class, and its split `parts`.

        Returns [n, heads, K, d], a view of x if the keys are contiguous.
        """
        first, last = self.keys[0], self.keys[-1]
        if last - first + 1 != len(self.keys):
            return torch.cat([parts[number] for number in self.keys], 2)
        start = sum(part.shape[2] for part in parts[:first])
        return x.narrow(2, start, sum(part.shape[2] for part in parts[first : last + 1]))


@dataclass(frozen=True)
class SameLayout:
    """Samples with equal sequences of classes, which share one set of kernel calls.

    samples:      numbers of the samples
    keys:         int64 [L], the tokens sorted by class
    queries:      int64 [queries], the queries sorted by class
    row_of_query: int64 [queries], the row of every query in `queries`
    sizes:        number of tokens of every class in one sample
    query_sizes:  number of queries of every class in one sample
    groups:       one for every class
    """

    samples: tuple[int, ...]
    keys: torch.Tensor
    queries: torch.Tensor
    row_of_query: torch.Tensor
    sizes: tuple[int, ...]
    query_sizes: tuple[int, ...]
    groups: tuple[Group, ...]

    def sort(self, x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Select the samples of x [B, L, heads, d] and sort their tokens: [n, heads, tokens, d]."""
        if len(self.samples) < len(x):
            x = torch.cat([x[sample : sample + 1] for sample in self.samples])
        return x.transpose(1, 2).index_select(2, order)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Compute the attention of the samples, chosen from all: [B, L, heads, d] -> [n, queries, heads, d]."""
        query, kernel = self.sort(query, self.queries), quickest(query)
        key, value = (self.sort(x, self.keys) for x in (key, value))
        keys, values = (x.split(self.sizes, 2) for x in (key, value))
        outputs = [
            kernel(part, group.select(key, keys), group.select(value, values), group.mask(query.dtype))
            for part, group in zip(query.split(self.query_sizes, 2), self.groups, strict=True)
            if part.shape[2]
        ]
        return torch.cat(outputs, 2).transpose(1, 2).index_select(1, self.row_of_query)


def grouping(pattern: AttentionPattern, device: torch.device | str = "cpu") -> tuple[SameLayout, ...]:
    """Return the groups of a batch on a device, computed once. Raises UserError for mask method `place`."""
    return pattern.cached(("grouping", str(device)), lambda: tuple(_grouping(pattern, device)))


def _grouping(pattern: AttentionPattern, device: torch.device | str) -> Iterator[SameLayout]:
    check_backend("grouped", pattern.settings.attention_mask_method)
    index, n_queries = pattern.classes.index.numpy(), pattern.query_index.shape[1]
    samples_of: dict[bytes, list[int]] = {}
    for sample, row in enumerate(index):
        samples_of.setdefault(row.tobytes(), []).append(sample)
    kind, log_weights = pattern.classes.kind.numpy(), pattern.log_weights.numpy()
    for samples in samples_of.values():
        tokens, sizes, present = _sorted_by_class(index[samples[0]], kind)
        groups = [_group(row, sizes, device) for row in log_weights[np.ix_(present, present)]]
        is_query = tokens < n_queries
        queries = tokens[is_query]
        query_sizes = np.add.reduceat(is_query, sizes.cumsum() - sizes, dtype=int)
        orders = (send(torch.from_numpy(order), device) for order in (tokens, queries, queries.argsort()))
        yield SameLayout(tuple(samples), *orders, tuple(sizes.tolist()), tuple(query_sizes.tolist()), tuple(groups))


def _sorted_by_class(row: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort the classes of one sample's tokens, int [L]; return tokens, sizes and numbers.

    tokens int [L], sorted by class; sizes and numbers int [C], of the classes that are present
    """
    present, counts = np.unique(row, return_counts=True)
    members = np.split(np.argsort(row, kind="stable"), counts.cumsum()[:-1])
    order = np.argsort([ORDER.index(each) for each in kind[present]], kind="stable")
    return np.concatenate([members[number] for number in order]), counts[order], present[order]


def _group(log_weights: np.ndarray, sizes: np.ndarray, device: torch.device | str) -> Group:
    """Build the group of one class from the log weights, float32 [C], that it gives to all."""
    seen = np.flatnonzero(log_weights > -np.inf)
    weighted = log_weights[seen].any()
    bias = send(torch.from_numpy(log_weights[seen].repeat(sizes[seen])), device) if weighted else None
    return Group(tuple(seen.tolist()), bias)


def grouped(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """Compute attention with one kernel call for each class of queries.

    query [B, queries, heads, d], key and value [B, L, heads, d] -> [B, queries, heads, d]
    Raises UserError for mask method `place`.
    """
    layouts, dtype = grouping(pattern, query.device), kernel_dtype(query)
    query, key, value = (x.to(dtype) for x in (query, key, value))
    outputs = [layout.attend(query, key, value) for layout in layouts]
    if len(outputs) == 1:
        return outputs[0]
    samples = [sample for layout in layouts for sample in layout.samples]
    of_sample = dict(zip(samples, itertools.chain(*(output.split(1) for output in outputs)), strict=True))
    return torch.cat([of_sample[sample] for sample in range(len(query))])
