"""Backend `grouped`: tokens with equal rows are the queries of one attention over the keys they see. Exact, no mask.

A foreground token of AIA (paper eq. 7) sees its own entity, its caption and the contour, so most of the L x L pairs are
never computed. Weights other than 0 and 1 (paper eq. 6) are a bias for each key of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from seg2any.attention.kernels import kernel_dtype, quickest
from seg2any.attention.names import check_backend
from seg2any.attention.pattern import AttentionPattern
from seg2any.attention.tokens import Kind

# Global text, background and contour then see one stretch of tokens each, so these largest sets of keys need no copy.
ORDER = (Kind.REGION, Kind.GLOBAL, Kind.IMAGE, Kind.COND, Kind.TEXT_PAD, Kind.COND_PAD)


@dataclass(frozen=True)
class Group:
    """The tokens of one class, and the keys they see.

    keys: numbers of classes, ascending
    bias: float32 [K], log of the keys' weights; None = all 1
    """

    keys: tuple[int, ...]
    bias: torch.Tensor | None

    def mask(self, dtype: torch.dtype) -> torch.Tensor | None:
        """[1, 1, 1, K]: one row for all queries."""
        return None if self.bias is None else self.bias.to(dtype)[None, None, None]

    def of(self, x: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Its keys among x [n, L, heads, d] in the order of classes, whose parts are the classes; a view if it can."""
        first, last = self.keys[0], self.keys[-1]
        if last - first + 1 != len(self.keys):
            return torch.cat([parts[number] for number in self.keys], 1)
        start = sum(part.shape[1] for part in parts[:first])
        return x.narrow(1, start, sum(part.shape[1] for part in parts[first : last + 1]))


@dataclass(frozen=True)
class SameLayout:
    """Samples whose tokens are of equal classes, one by one.

    tokens, queries: int64 [n, L] and [n, tokens that ask], of the flattened batch of each, in the order of classes
    sizes, n_asking: tokens of every class, in each sample, and how many of them ask
    groups:          one for every class
    """

    tokens: torch.Tensor
    queries: torch.Tensor
    sizes: tuple[int, ...]
    n_asking: tuple[int, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Grouping:
    """All of a batch. `place`: int64 [B * queries], where the layouts' outputs, one after another, have each query."""

    layouts: tuple[SameLayout, ...]
    place: torch.Tensor


def grouping(pattern: AttentionPattern) -> Grouping:
    """The groups of a pattern, made once. Raises UserError for the method `place`."""
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
        asks = tokens < n_queries
        n_asking = np.add.reduceat(asks, sizes.cumsum() - sizes, dtype=int)
        flat = [
            torch.from_numpy(np.array(samples)[:, None] * length + chosen).to(device)
            for length, chosen in ((index.shape[1], tokens), (n_queries, tokens[asks]))
        ]
        layouts.append(SameLayout(*flat, tuple(sizes.tolist()), tuple(n_asking.tolist()), tuple(groups)))
    return Grouping(tuple(layouts), torch.cat([layout.queries.flatten() for layout in layouts]).argsort())


def _sorted_by_class(row: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """row int [L], the classes of one sample's tokens -> tokens [L], and of each class how many and its number."""
    present, counts = np.unique(row, return_counts=True)
    members = np.split(np.argsort(row, kind="stable"), counts.cumsum()[:-1])
    order = np.argsort([ORDER.index(each) for each in kind[present]], kind="stable")
    return np.concatenate([members[number] for number in order]), counts[order], present[order]


def _group(log_weights: np.ndarray, sizes: np.ndarray, device: torch.device) -> Group:
    """log_weights float32 [C]: of every class for the queries."""
    seen = np.flatnonzero(log_weights > -np.inf)
    weighted = log_weights[seen].any()
    bias = torch.from_numpy(log_weights[seen].repeat(sizes[seen])).to(device) if weighted else None
    return Group(tuple(seen.tolist()), bias)


def grouped(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """query [B, queries, heads, d], key and value [B, L, heads, d] -> [B, queries, heads, d].

    Raises UserError for the method `place`.
    """
    plan, dtype, shape = grouping(pattern), kernel_dtype(query), query.shape
    query, key, value = (x.to(dtype).flatten(0, 1) for x in (query, key, value))
    outputs = []
    for layout in plan.layouts:
        n, asking, order = len(layout.tokens), layout.queries.flatten(), layout.tokens.flatten()
        k, v = (x.index_select(0, order).unflatten(0, (n, -1)) for x in (key, value))
        queries = query.index_select(0, asking).unflatten(0, (n, -1)).split(layout.n_asking, 1)
        keys, values = (x.split(layout.sizes, 1) for x in (k, v))
        parts = [
            quickest(part, group.of(k, keys), group.of(v, values), group.mask(dtype))
            for part, group in zip(queries, layout.groups, strict=True)
            if part.shape[1]
        ]
        outputs.append(torch.cat(parts, 1).flatten(0, 1))
    return torch.cat(outputs).index_select(0, plan.place).view(shape)
