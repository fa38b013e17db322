"""Decide which tokens attend to which (paper section 3, arXiv 2506.00596).

query \\ key   GLOBAL   REGION_j     IMAGE      COND      share: query and key have an entity in common
GLOBAL          1         0           a          0        g: shape guidance strength (paper eq. 6), a weight
REGION_i        0       share       share        0
IMAGE           b       share         c          g        padding sees only padding of its own kind
COND            0         0          d g         1

      SAA   AIA (paper eq. 7)
a      1    1; with `global_text_sees="background"`, as in the paper: the key is background
b      1    the query is background
c      1    the query is background, or share
d      1    1; in SAA and AIA 0 with `cond_attention="isolated"`
"""

from __future__ import annotations

import torch

from seg2any.attention.settings import Attention, ConditionSettings
from seg2any.attention.tokens import Kind


def may_attend(
    kind_q: torch.Tensor,
    entities_q: torch.Tensor,
    kind_k: torch.Tensor,
    entities_k: torch.Tensor,
    attention: Attention,
    settings: ConditionSettings,
) -> torch.Tensor:
    """Return True where query tokens (kind_q, entities_q) see key tokens (kind_k, entities_k).

    Elementwise, with broadcasting: the arguments may be whole axes of a mask or single tokens in a compiled kernel.
    Entities are bit sets, 0 = background. The weight g is applied by `AttentionPattern.log_weights`.
    """
    global_q, region_q, image_q, cond_q = (kind_q == kind for kind in (Kind.GLOBAL, Kind.REGION, Kind.IMAGE, Kind.COND))
    global_k, region_k, image_k, cond_k = (kind_k == kind for kind in (Kind.GLOBAL, Kind.REGION, Kind.IMAGE, Kind.COND))
    padding = (kind_q == kind_k) & (kind_q >= Kind.TEXT_PAD)
    d = settings.cond_attention != "isolated"
    if attention is Attention.FULL:
        return (kind_q < Kind.TEXT_PAD) & (kind_k < Kind.TEXT_PAD) & (d | ~cond_q | cond_k) | padding

    aia, paper = attention is Attention.AIA, settings.global_text_sees == "background"
    share = (entities_q & entities_k) != 0
    a = (entities_k == 0) | (not (aia and paper))
    b = (entities_q == 0) | (not aia)
    c = b | share
    return (
        global_q & (global_k | image_k & a)
        | region_q & (region_k | image_k) & share
        | image_q & (global_k & b | region_k & share | image_k & c | cond_k)
        | cond_q & (image_k & d | cond_k)
        | padding
    )
