"""Regional attention: the rules, the patterns they give, and the one attention call."""

from seg2any.attention.attend import BACKENDS, attend, attention_weights
from seg2any.attention.pattern import AttentionPattern, TokenClasses, additive_mask
from seg2any.attention.picture import picture
from seg2any.attention.plan import AttentionPlan
from seg2any.attention.rules import Attention, AttentionRules, may_attend

__all__ = [
    "BACKENDS",
    "Attention",
    "AttentionPattern",
    "AttentionPlan",
    "AttentionRules",
    "TokenClasses",
    "additive_mask",
    "attend",
    "attention_weights",
    "may_attend",
    "picture",
]
