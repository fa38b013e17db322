"""Who may attend to whom (paper section 3, arXiv 2506.00596). One rule for every backend.

  query \\ key  GLOBAL  REGION_j   IMAGE      COND       covers_i(x): entity i covers image token x
  GLOBAL         1        0        1 (a)       0
  REGION_i       0      i == j   covers_i(k)   0         padding sees only padding of its own kind
  IMAGE         1 (b)  covers_j(q) 1 (c)       g
  COND           0        0        g (d)       1

Semantic alignment (SAA) is the table. Attribute isolation (AIA, eq. 7) changes what foreground image tokens
see: (b) no global text, (c) only image tokens of a shared entity; with `global_text_sees="background"`, as in the
paper, also (a): global text sees only background. g is the shape guidance strength (eq. 6), (d) is 0 when the
condition is isolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from seg2any.attention.names import check_backend
from seg2any.attention.tokens import Kind
from seg2any.system.errors import UserError


class Attention(Enum):
    """What one block does."""

    OPEN = "open"  # every token sees every token: plain FLUX
    SEMANTIC = "semantic"  # SAA
    ISOLATED = "isolated"  # AIA


CHOICES = {
    "method": ("hard", "base", "place", "none"),
    "cond_attention": ("bidirectional", "isolated"),
    "global_text_sees": ("all", "background"),
}


@dataclass(frozen=True)
class AttentionRules:
    """The attention settings of a run.

    method:                      base = SAA in every block; hard = SAA, and AIA in `hard_attn_block_range`;
                                 place = SAA weighted by the covered fraction of each token; none = plain FLUX
    hard_attn_block_range:       first and last AIA block, inclusive, counted over double then single blocks
    cond2image_attention_weight: g, the paper's gamma in (0, 1]; 0 cuts image and condition apart
    cond_attention:              isolated = condition tokens see only each other
    global_text_sees:            background = paper eq. 7; all = the published code
    attention_backend:           how it is computed, see `seg2any.attention.attend`; results equal to rounding
    """

    method: str = "hard"
    hard_attn_block_range: tuple[int, int] = (19, 37)
    cond2image_attention_weight: float = 1.0
    cond_attention: str = "bidirectional"
    global_text_sees: str = "all"
    attention_backend: str = "auto"

    def __post_init__(self) -> None:
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise UserError(f"{field} is {getattr(self, field)!r}; use one of {', '.join(choices)}")
        object.__setattr__(self, "hard_attn_block_range", _first_last(self.hard_attn_block_range))
        weight = self.cond2image_attention_weight
        if not (isinstance(weight, (int, float)) and 0 <= weight <= 1):
            raise UserError(f"cond2image_attention_weight is {weight!r}; give a number from 0 to 1")
        check_backend(self.attention_backend, self.method)

    def at(self, block: int) -> Attention:
        """The attention of a block, counted from 0 through double and single blocks."""
        if self.method == "none":
            return Attention.OPEN
        first, last = self.hard_attn_block_range
        return Attention.ISOLATED if self.method == "hard" and first <= block <= last else Attention.SEMANTIC


def _first_last(blocks: object) -> tuple[int, int]:
    match blocks:
        case [int(first), int(last)] if 0 <= first <= last:
            return first, last
    raise UserError(f"hard_attn_block_range is {blocks!r}; give the first and the last block, e.g. 19 37")


def may_attend(
    kind_q: torch.Tensor,
    entities_q: torch.Tensor,
    kind_k: torch.Tensor,
    entities_k: torch.Tensor,
    attention: Attention,
    rules: AttentionRules,
) -> torch.Tensor:
    """True where query tokens (kind_q, entities_q) see key tokens (kind_k, entities_k).

    Elementwise and broadcasting, so the same lines serve a whole mask and one pair of tokens in a compiled kernel.
    """
    share, background_q, background_k = (entities_q & entities_k) != 0, entities_q == 0, entities_k == 0
    global_q, region_q, image_q, cond_q = (kind_q == kind for kind in (Kind.GLOBAL, Kind.REGION, Kind.IMAGE, Kind.COND))
    global_k, region_k, image_k, cond_k = (kind_k == kind for kind in (Kind.GLOBAL, Kind.REGION, Kind.IMAGE, Kind.COND))
    padding = (kind_q == kind_k) & (kind_q >= Kind.TEXT_PAD)

    if attention is Attention.OPEN:
        sees = (kind_q < Kind.TEXT_PAD) & (kind_k < Kind.TEXT_PAD)
    else:
        global_image, image_global, image_image = global_q & image_k, image_q & global_k, image_q & image_k  # a, b, c
        if attention is Attention.ISOLATED:
            image_global = image_global & background_q
            image_image = image_image & (background_q | share)
            if rules.global_text_sees == "background":
                global_image = global_image & background_k
        text_sees = (global_q & global_k) | global_image | (region_q & (region_k | image_k) & share)
        image_sees = image_global | (image_q & region_k & share) | image_image | (image_q & cond_k)
        sees = text_sees | image_sees | (cond_q & (image_k | cond_k))
    if rules.cond_attention == "isolated":
        sees = sees & ~(cond_q & ~cond_k)
    return sees | padding
