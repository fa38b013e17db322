"""Hand a block its place in the model, its rows and its attention."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import torch

from seg2any.adapters.routing import Rows
from seg2any.attention.attend import Tap
from seg2any.attention.kernels import masked_sdpa
from seg2any.bases.base import Attends, ConditionKeys


@dataclass(frozen=True)
class BlockContext:
    """The arguments of a block besides its tensors.

    diffusers passes them on as an entry of `joint_attention_kwargs`.

    block      number of the block, double blocks first, then single blocks
    rows       says which visual rows are condition tokens
    plan       computes the attention; None: every token attends to every token, as in stock FLUX
    cond_keys  keys and values of the condition tokens, to use or to fill
    tap        called before the attention with its query, key and pattern
    number     names this context among all that exist
    """

    block: int
    rows: Rows
    plan: Attends | None
    cond_keys: ConditionKeys | None = None
    tap: Tap | None = None
    number: int = field(default_factory=itertools.count(2).__next__, init=False)  # graphs are compiled anew for 0 and 1

    def __post_init__(self):
        _contexts[self.number] = self

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Compute the attention of query, key and value [B, L, heads, d] -> [B, L, heads, d].

        To a compiler it is one operator: otherwise every layout would recompile the block, or cut it in two. `flex`
        compiles itself regardless.
        """
        if torch.compiler.is_compiling() and not torch.is_grad_enabled():
            return _attend(query, key, value, self.number)
        return self._attend(query, key, value)

    @torch.compiler.disable
    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if self.cond_keys is not None:
            key, value = self._with_cond_keys(key, value)
        if self.tap is not None:
            pattern = self.plan.pattern(self.block).with_queries(query.shape[1]) if self.plan else None
            self.tap(self.block, query, key, pattern)
        if self.plan is None:
            return masked_sdpa(query, key, value)  # bit for bit stock FLUX
        return self.plan.attend(self.block, query, key, value)

    def _with_cond_keys(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.rows.n_cond:
            own = (x[:, -self.rows.n_cond :].clone() for x in (key, value))  # a view would keep all rows in memory
            self.cond_keys.of_block[self.block] = tuple(own)
            return key, value
        known = self.cond_keys.of_block[self.block]
        return tuple(torch.cat(pair, 1) for pair in zip((key, value), known, strict=True))


_contexts: WeakValueDictionary[int, BlockContext] = WeakValueDictionary()


@torch.library.custom_op(
    "seg2any::attend", mutates_args=(), schema="(Tensor query, Tensor key, Tensor value, SymInt number) -> Tensor"
)
def _attend(query, key, value, number):
    return _contexts[number]._attend(query, key, value).contiguous()


@_attend.register_fake
def _(query, key, value, number):
    return query.new_empty(query.shape)
