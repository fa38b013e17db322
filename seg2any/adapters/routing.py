"""Tokens choose their adapters (paper eq. 4): condition rows use `cond`, all other rows every other adapter.

One matrix product with the frozen weight serves all rows; each adapter's low-rank delta is added on its own rows. The
rows are said with every call, so there is no switch to forget, and a call without condition rows never meets `cond`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftType
from peft.tuners.lora import LoraLayer
from torch import nn

from seg2any.system.errors import UserError

DEFAULT = "default"
COND = "cond"


@dataclass(frozen=True)
class Rows:
    """The last `n_cond` rows of a token matrix [B, L, D] are condition tokens, and `cond_adapters` act on them.

    Any other adapter, a style LoRA for instance, acts on the text and image rows.
    """

    n_cond: int = 0
    cond_adapters: frozenset[str] = frozenset({COND})

    @property
    def of_modulation(self) -> Rows:
        """Rows of a time embedding [B, 1 or 2, D]: one for text and image, one for the condition if there is any."""
        return Rows(min(self.n_cond, 1), self.cond_adapters)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, L, D] -> the rows before the condition, and the condition rows if there are any."""
        return x.split([x.shape[1] - self.n_cond, self.n_cond], 1) if self.n_cond else (x,)


def linear(layer: nn.Module, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """layer(x) with every adapter on its own rows only. x [B, L, D_in] -> [B, L, D_out]."""
    if not isinstance(layer, LoraLayer):
        return layer(x)
    y = layer.base_layer(x)
    is_own = type(layer.base_layer) is nn.Linear  # quantised layers hand out views
    if is_own and not torch.is_grad_enabled():
        for is_cond, (part, out) in enumerate(zip(rows.split(x), rows.split(y), strict=True)):
            for name, factor in _missing(layer, rows, bool(is_cond)):
                out.add_(_low_rank(layer, name, part, factor))
        return y
    terms = [_delta(layer, part, rows, bool(is_cond)) for is_cond, part in enumerate(rows.split(x))]
    if all(term is None for term in terms):
        return y
    if len(terms) == 1:
        total = terms[0]
    else:
        zero = y.new_zeros(1)
        blank = [zero.expand(part.shape) for part in rows.split(y)]
        # one sum over all rows: its gradient reaches both adapters as views, in-place sums on row slices would copy it
        total = torch.cat([none if term is None else term for term, none in zip(terms, blank, strict=True)], 1)
    return y.add_(total) if is_own else y.add(total)


def _delta(layer: LoraLayer, x: torch.Tensor, rows: Rows, is_cond: bool) -> torch.Tensor | None:
    """Sum of the deltas that the base weight lacks on these rows, [B, L, D_out], or None."""
    deltas = [_low_rank(layer, name, x, factor) for name, factor in _missing(layer, rows, is_cond)]
    return functools.reduce(torch.add, deltas) if deltas else None


def _missing(layer: LoraLayer, rows: Rows, is_cond: bool) -> list[tuple[str, float]]:
    """Adapters, and how often their B A is missing in the base weight on the condition rows, or on the others.

    An adapter that is in the base weight acts on all rows: it is not added again on its own rows, and it is taken back
    on the others.
    """
    found = []
    for name in layer.lora_A:
        wanted = not layer.disable_adapters and name in layer.active_adapters
        wanted = layer.scaling[name] if wanted and (name in rows.cond_adapters) == is_cond else 0.0
        if wanted != scale_in_base(layer, name):
            found.append((name, wanted - scale_in_base(layer, name)))
    return found


def scale_in_base(layer: LoraLayer, name: str) -> float:
    """The factor of an adapter's B A in the base weight; 0 = it is not there.

    peft merges with the scale of the moment, does not write it down, and takes out again whatever is merged when an
    adapter is added. So `seg2any.adapters.fold` keeps its own book, which peft does not read: `layer.folded`.
    """
    merged = layer.scaling[name] if name in layer.merged_adapters else 0.0
    return merged + getattr(layer, "folded", {}).get(name, 0.0)


def _low_rank(layer: LoraLayer, name: str, x: torch.Tensor, scale: float) -> torch.Tensor:
    """B (scale A x): scaled where a row has r numbers instead of D_out."""
    down, up = layer.lora_A[name], layer.lora_B[name]
    if not torch.is_autocast_enabled(x.device.type):
        x = x.to(down.weight.dtype)
    inner = down(layer.lora_dropout[name](x))
    return up(inner if scale == 1 else inner * scale)


_NOT_LOW_RANK = (
    *("use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "velora_config"),
    *("monteclora_config", "kasa_config", "modules_to_save", "target_parameters", "trainable_token_indices"),
    *("layer_replication", "lora_bias"),
)
_LOW_RANK_STARTS = (True, False, "gaussian", "eva", "orthogonal")
_FOREIGN_WEIGHTS = {"lora_magnitude_vector": "use_dora", "dora_scale": "use_dora", ".lokr_": "LoKr", ".hada_": "LoHa"}


def refuse_unroutable(options: Mapping[str, Any], name: str, weights: Iterable[str] = ()) -> None:
    """`UserError` for an adapter that is more than a low-rank delta: it would change what other rows compute.

    DoRA rescales the output of the base weight; PiSSA, OLoRA, CorDA and LoftQ rewrite the base weight that all
    adapters share; aLoRA chooses its own tokens. `options` are those of a peft config, `weights` the keys of a file.
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
        reason = f"adapter {name!r} uses {', '.join(sorted(found))}, which cannot act on some of the tokens only"
        raise UserError(f"{reason}; use a plain LoRA")
