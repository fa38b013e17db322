"""Apply each adapter to its own token rows (paper eq. 4).

Condition rows use `cond`, all other rows all other adapters. One matrix product with the frozen weight serves
all rows; each adapter's low-rank delta is added on its own rows. Every call passes the rows, so no state has to be
switched, and a call without condition rows never uses `cond`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftType
from peft.tuners.lora import LoraLayer
from torch import nn

from seg2any.adapters.low_rank import Term, add_products, with_products
from seg2any.system.errors import UserError

DEFAULT = "default"
COND = "cond"


@dataclass(frozen=True)
class Rows:
    """Rows of a token matrix [B, L, D], of which the last `n_cond` are condition tokens.

    `cond_adapters` act on the condition tokens, all other adapters, a style LoRA for instance, on the other rows.
    """

    n_cond: int = 0
    cond_adapters: frozenset[str] = frozenset({COND})

    @property
    def of_modulation(self) -> Rows:
        """Rows of a time embedding [B, 1 or 2, D]: one for text and image, and one for a condition."""
        return Rows(min(self.n_cond, 1), self.cond_adapters)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split x [B, L, D] into text and image rows, and condition rows if there are any."""
        return x.split([x.shape[1] - self.n_cond, self.n_cond], 1) if self.n_cond else (x,)


def linear(layer: nn.Module, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Compute layer(x) with every adapter on its own rows only: x [B, L, D_in] -> [B, L, D_out]."""
    return linears([layer], x, rows)[0]


def linears(layers: Sequence[nn.Module], x: torch.Tensor, rows: Rows) -> list[torch.Tensor]:
    """Compute `linear` of layers that have one input, as those of query, key and value."""
    if torch.is_grad_enabled():
        return [_with_gradients(layer, x, rows) for layer in layers]
    outputs = [_base(layer, x) for layer in layers]
    parts = zip(rows.split(x), *(rows.split(y) for y in outputs), strict=True)
    for is_cond, (part, *outs) in enumerate(parts):
        add_products(outs, part, [_missing(layer, rows, bool(is_cond)) for layer in layers])
    return outputs


def _base(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Compute the layer without adapters, in a tensor that may be changed in place."""
    if not isinstance(layer, LoraLayer):
        return layer(x)
    y = layer.base_layer(x)
    return y if type(layer.base_layer) is nn.Linear else y.clone()  # quantised layers may return views


def _with_gradients(layer: nn.Module, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    if not isinstance(layer, LoraLayer):
        return layer(x)
    y = _base(layer, x.flatten(0, 1))  # a view [B, L, D_out] changed in place would copy its gradient
    n_own = x.shape[1] - rows.n_cond
    parts = [slice(0, n_own), slice(n_own, None)] if rows.n_cond else [slice(None)]
    terms = [_missing(layer, rows, bool(is_cond)) for is_cond in range(len(parts))]
    return with_products(y, x, parts, terms).unflatten(0, x.shape[:2])


def _missing(layer: nn.Module, rows: Rows, is_cond: bool) -> list[Term]:
    """List the products that the base weight lacks on these rows.

    An adapter in the base weight acts on all rows, so its factor there is subtracted: its own rows then lack nothing,
    and on other rows the result is negative.
    """
    found = []
    for name in layer.lora_A if isinstance(layer, LoraLayer) else ():
        wanted = not layer.disable_adapters and name in layer.active_adapters
        wanted = layer.scaling[name] if wanted and (name in rows.cond_adapters) == is_cond else 0.0
        if factor := wanted - scale_in_base(layer, name):
            found.append(Term(layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name], factor))
    return found


def scale_in_base(layer: LoraLayer, name: str) -> float:
    """Return the factor of an adapter's B A in the base weight; 0 = it is not there.

    peft merges with the current scale but does not record it, and unmerges everything when an adapter is added. So
    `seg2any.adapters.fold` keeps its own record, `layer.folded`, which peft does not read.
    """
    merged = layer.scaling[name] if name in layer.merged_adapters else 0.0
    return merged + getattr(layer, "folded", {}).get(name, 0.0)


_NOT_LOW_RANK = (
    *("use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "velora_config"),
    *("monteclora_config", "kasa_config", "modules_to_save", "target_parameters", "trainable_token_indices"),
    *("layer_replication", "lora_bias"),
)
_LOW_RANK_STARTS = (True, False, "gaussian", "eva", "orthogonal")
_FOREIGN_WEIGHTS = {"lora_magnitude_vector": "use_dora", "dora_scale": "use_dora", ".lokr_": "LoKr", ".hada_": "LoHa"}


def refuse_unroutable(options: Mapping[str, Any], name: str, weights: Iterable[str] = ()) -> None:
    """Refuse an adapter that is more than a low-rank delta, which would change other rows.

    DoRA rescales the output of the base weight; PiSSA, OLoRA, CorDA and LoftQ rewrite the base weight that all
    adapters share; aLoRA chooses its own tokens.

    options: of a peft config
    name:    of the adapter, for the message
    weights: keys of the adapter's file

    Raises UserError.
    """
    found = {option for option in _NOT_LOW_RANK if options.get(option)}
    found |= {option for part, option in _FOREIGN_WEIGHTS.items() if any(part in key for key in weights)}
    if options.get("init_lora_weights", True) not in _LOW_RANK_STARTS:
        found.add(f"init_lora_weights={options['init_lora_weights']}")
    if options.get("bias", "none") != "none":
        found.add(f"bias={options['bias']}")
    if (kind := options.get("peft_type", PeftType.LORA)) != PeftType.LORA:
        found.add(str(getattr(kind, "value", kind)))
    if found:
        reason = f"adapter {name!r} uses {', '.join(sorted(found))}, which cannot act on only some of the tokens"
        raise UserError(f"{reason}; use a plain LoRA")
