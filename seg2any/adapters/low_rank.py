"""Add the low-rank products of adapters, factor B A x, to outputs of linear layers, as few kernels as possible.

A product goes into the output by one `addmm`, without a tensor of its own. Products that share their input, those of
query, key and value or of two adapters on the same rows, share one product with all their A, whose stack is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Term:
    """The product factor B A of an adapter on a layer: A [r, D_in], B [D_out, r]."""

    down: nn.Linear
    up: nn.Linear
    dropout: nn.Module
    factor: float

    @property
    def is_plain(self) -> bool:
        """Whether the weights say everything: no dropout, and no hooks, by which offloading moves weights."""
        return not (self.dropout.training and isinstance(self.dropout, nn.Dropout)) and all(
            type(half) is nn.Linear and not ("forward" in vars(half) or half._forward_hooks or half._forward_pre_hooks)
            for half in (self.down, self.up)
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Compute factor B A x in the dtype of x, scaled where a row has r instead of D_out numbers."""
        inner = _half(self.down, self.dropout(x))
        return _half(self.up, inner if self.factor == 1 else inner * self.factor)


def _half(half: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Multiply x by A or B; trained ones stay in fp32 and lend a copy in the dtype of x."""
    if half.weight.dtype == x.dtype:
        return half(x)  # as a module: offloading moves its weights by hooks
    return F.linear(x, half.weight.to(x.dtype))


def add_products(outs: Sequence[torch.Tensor], x: torch.Tensor, terms: Sequence[Sequence[Term]]) -> None:
    """Add to each output [B, n, D_out] its terms' products with x [B, n, D_in], in place and without gradients.

    Stacks of weights are kept until a weight, factor, device or dtype changes. Only writing through `weight.data` in
    place leaves no trace; `forget` the layers then.
    """
    flat = [term for of_layer in terms for term in of_layer]
    if not flat:
        return
    dtypes = {out.dtype for out in outs} | {x.dtype}
    if len(dtypes) > 1 or not all(term.is_plain for term in flat):
        for out, of_layer in zip(outs, terms, strict=True):
            for term in of_layer:
                out.add_(term(x))
    elif len(flat) == 1 or torch.compiler.is_compiling():
        for out, of_layer in zip(outs, terms, strict=True):
            for term in of_layer:
                _add(out, _times(x, term.down.weight), term.up.weight, term.factor)
    else:
        stack = _stack(terms, x.dtype)
        inner = _times(x, stack.down)
        for out, of_layer, up in zip(outs, inner.split(stack.ranks, -1), stack.ups, strict=True):
            if up is not None:
                _add(out, of_layer, *up)


def _times(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply rows [B, n, D] by weight [r, D]; rows of a longer tensor are not copied."""
    weight = weight.to(x.dtype).T
    if len(x) == 1 or x.is_contiguous():
        return torch.mm(x.flatten(0, 1), weight).unflatten(0, x.shape[:2])
    return torch.bmm(x, weight.expand(len(x), -1, -1))


def _add(out: torch.Tensor, inner: torch.Tensor, weight: torch.Tensor, factor: float) -> None:
    """Add factor x inner [B, n, r] x weight^T, weight [D, r], to out [B, n, D]."""
    weight = weight.to(out.dtype).T
    if len(out) == 1 or (out.is_contiguous() and inner.is_contiguous()):
        out.view(-1, out.shape[-1]).addmm_(inner.reshape(-1, inner.shape[-1]), weight, alpha=factor)
    else:
        out.baddbmm_(inner, weight.expand(len(out), -1, -1), alpha=factor)


@dataclass(frozen=True)
class _Stack:
    """Weights of several terms with the same input.

    made_of  what the weights were, and their memory, which no other weight gets while it is held here
    down     every A, [sum of all ranks, D_in]
    ranks    rows of `down` that belong to each layer
    ups      of each layer: its B side by side [D_out, rank] and their common factor; None without a term
    """

    made_of: tuple[Any, ...]
    held: list[torch.UntypedStorage]
    down: torch.Tensor
    ranks: list[int]
    ups: list[tuple[torch.Tensor, float] | None]


_stacks: WeakKeyDictionary[nn.Module, _Stack] = WeakKeyDictionary()


def _stack(terms: Sequence[Sequence[Term]], dtype: torch.dtype) -> _Stack:
    """Return the stack of all terms, a kept one if nothing has changed since it was made."""
    flat = [term for of_layer in terms for term in of_layer]
    weights = [half.weight for term in flat for half in (term.down, term.up)]
    made_of = (dtype, *(term.factor for term in flat), *map(_state, weights))
    key = flat[-1].down  # on text and image rows another adapter than on condition rows
    if (kept := _stacks.get(key)) is None or kept.made_of != made_of:
        down = torch.cat([term.down.weight.detach().to(dtype) for term in flat])
        ranks = [sum(len(term.down.weight) for term in of_layer) for of_layer in terms]
        held = [weight.untyped_storage() for weight in weights]
        kept = _stacks[key] = _Stack(made_of, held, down, ranks, [_side_by_side(each, dtype) for each in terms])
    return kept


def _side_by_side(terms: Sequence[Term], dtype: torch.dtype) -> tuple[torch.Tensor, float] | None:
    if len(terms) < 2:
        return (terms[0].up.weight.detach(), terms[0].factor) if terms else None
    return torch.cat([term.up.weight.detach() * term.factor for term in terms], 1).to(dtype), 1.0


def _state(weight: torch.Tensor) -> tuple[Any, ...]:
    storage = weight.untyped_storage()
    return storage._cdata, weight.storage_offset(), weight.dtype, None if weight.is_inference() else weight._version


def forget(module: nn.Module) -> None:
    """Drop the stacks that are kept for adapters of a module."""
    for each in module.modules():
        _stacks.pop(each, None)


def with_products(
    y: torch.Tensor, x: torch.Tensor, rows: Sequence[slice], terms: Sequence[Sequence[Term]]
) -> torch.Tensor:
    """Return y [B L, D_out], changed in place, with the terms' products with rows of x [B, L, D_in] added.

    Gradients reach y, x and the terms. Drops stacks of their weights, which will be trained.

    rows  slices of the L rows; terms of each slice
    """
    spans = [(part, term) for part, of_part in zip(rows, terms, strict=True) for term in of_part]
    for _, term in spans:
        _stacks.pop(term.down, None)
    if not spans:
        return y
    if y.dtype == x.dtype and all(term.is_plain for _, term in spans) and not torch.compiler.is_compiling():
        weights = [half.weight for _, term in spans for half in (term.down, term.up)]
        return _Added.apply(y, x, [(part, term.factor) for part, term in spans], *weights)
    sums = (
        sum((term(x[:, part]) for term in of_part), y.new_zeros(1)).expand(*x[:, part].shape[:2], y.shape[-1])
        for part, of_part in zip(rows, terms, strict=True)
    )
    return y + torch.cat(list(sums), 1).flatten(0, 1).to(y.dtype)


class _Added(torch.autograd.Function):
    """Products added to y in place; for the backward pass only x and A x are kept."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, x: torch.Tensor, spans: list[tuple[slice, float]], *weights: torch.Tensor
    ) -> torch.Tensor:
        outs, inners = y.view(*x.shape[:2], -1), []
        for (part, factor), down, up in zip(spans, weights[::2], weights[1::2], strict=True):
            inners.append(_times(x[:, part], down))
            _add(outs[:, part], inners[-1], up, factor)
        ctx.mark_dirty(y)
        ctx.spans = spans
        ctx.save_for_backward(x, *inners, *weights)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients of y, x and of every A and B, these in their own dtype."""
        x, *saved = ctx.saved_tensors
        inners, weights = saved[: len(ctx.spans)], saved[len(ctx.spans) :]
        of_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        of_outs, of_weights = of_y.view(*x.shape[:2], -1), []
        for (part, factor), inner, down, up in zip(ctx.spans, inners, weights[::2], weights[1::2], strict=True):
            of_out, of_inner = of_outs[:, part], _times(of_outs[:, part], up.T) * factor
            of_weights.append(_product_of_rows(of_inner, x[:, part]).to(down.dtype))
            of_weights.append(_product_of_rows(of_out, inner * factor).to(up.dtype))
            if of_x is not None:
                _add(of_x[:, part], of_inner, down.T, 1.0)
        return of_y, of_x, None, *of_weights


def _product_of_rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sum the outer products of rows x [B, n, D] and y [B, n, E] -> [D, E]."""
    return x.flatten(0, 1).T @ y.flatten(0, 1)
