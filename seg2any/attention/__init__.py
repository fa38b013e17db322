"""Regional attention: the rules, the masks they give, and the one attention call."""

from seg2any.attention.attend import BACKENDS, attend, attention_weights
from seg2any.attention.plan import AttentionPlan
from seg2any.attention.rules import Attention, AttentionRules, additive_mask, may_attend, picture

__all__ = [
    "BACKENDS",
    "Attention",
    "AttentionPlan",
    "AttentionRules",
    "additive_mask",
    "attend",
    "attention_weights",
    "may_attend",
    "picture",
]
