"""How layouts become conditions: the settings that generation and training share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from seg2any.adapters.card import AdapterCard
from seg2any.attention.rules import AttentionRules
from seg2any.generate.modes import MOST_TEXT_TOKENS
from seg2any.system.errors import UserError

CHOICES = {"region_assignment": ("nearest", "coverage"), "vae_posterior": ("sample", "mode")}
COUNTS = ("cond_scale_factor", "max_sequence_length", "regional_max_sequence_length")


@dataclass(frozen=True)
class ConditionSettings:
    """The names and defaults are the published ones.

    rules                         who attends to whom; method "none" is plain FLUX with the global caption, padded as
                                  FLUX pads it, no regions and no contour (loaded adapters go on acting)
    is_use_cond_token             contour tokens at all
    is_filter_cond_token          drop the contour tokens whose patch holds no contour
    cond_scale_factor             the contour image is this many times smaller than the image: 1 at 512, 2 at 1024 px
    region_assignment             which image tokens belong to a region, see `seg2any.attention.tokens.token_masks`
    max_sequence_length           T5 tokens of the global caption, at most 512
    regional_max_sequence_length  T5 tokens of a region's caption, at most 512: 50, or 10 for class names
    vae_posterior                 contour latents: a sample of the VAE's posterior, or its mode

    Raises UserError for values outside these ranges.
    """

    rules: AttentionRules = field(default_factory=AttentionRules)
    is_use_cond_token: bool = True
    is_filter_cond_token: bool = True
    cond_scale_factor: int = 1
    region_assignment: Literal["nearest", "coverage"] = "nearest"
    max_sequence_length: int = 512
    regional_max_sequence_length: int = 50
    vae_posterior: Literal["sample", "mode"] = "sample"

    def __post_init__(self) -> None:
        for name in COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value!r}; give a whole number of at least 1")
            if name.endswith("sequence_length") and value > MOST_TEXT_TOKENS:
                raise UserError(
                    f"{name} is {value}; FLUX reads at most {MOST_TEXT_TOKENS} tokens of a caption, give fewer"
                )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(choices)}")

    @property
    def is_plain(self) -> bool:
        """Whether this is FLUX without regions and contours."""
        return self.rules.method == "none"

    def override(self, given: Mapping[str, object]) -> ConditionSettings:
        """These settings with what is given, None excepted, by the name of a field here or in `AttentionRules`."""
        given = {name: value for name, value in given.items() if value is not None}
        rules = {field.name: given.pop(field.name) for field in fields(self.rules) if field.name in given}
        return replace(self, rules=replace(self.rules, **rules), **given)


def settings_of(card: AdapterCard) -> ConditionSettings:
    """What the adapters of a card were trained with."""
    return ConditionSettings(
        rules=card.rules(),
        is_use_cond_token=card.is_use_cond_token,
        is_filter_cond_token=card.is_filter_cond_token,
        cond_scale_factor=card.cond_scale_factor,
        region_assignment=card.region_assignment,
        max_sequence_length=card.max_sequence_length,
        regional_max_sequence_length=card.regional_max_sequence_length,
        vae_posterior=card.vae_posterior,
    )
