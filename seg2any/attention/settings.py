"""Settings of a condition: how layouts become tokens, and which tokens attend to which.

Adapter cards, training configs, recipes and flags nest `ConditionSettings` or are generated from its fields, under the
names of the published code. Nothing heavy is imported here, so that --help stays quick.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from typing import Any

from seg2any.attention.names import BACKEND_NAMES, check_backend
from seg2any.system.errors import UserError

MAX_ENTITIES = 63  # regions of one image: one bit each in an int64 bit set, whose last bit is the sign
MOST_TEXT_TOKENS = 512  # per caption; FLUX was trained with no more


class Attention(Enum):
    """Kind of attention of one transformer block."""

    FULL = "full"  # every token sees every token: plain FLUX
    SAA = "semantic alignment"  # paper section 3.2
    AIA = "attribute isolation"  # paper section 3.3


def setting(
    default: Any,
    text: str,
    choices: tuple[str, ...] | None = None,
    bounds: tuple[float, float] | None = None,
    at_run_time: bool = False,
) -> Any:
    """Declare a field of `ConditionSettings`, described for flags, configs and cards.

    text         one line of help
    choices      the allowed strings; None for other types
    bounds       lowest and highest number, both included
    at_run_time  the value is chosen for each run, so adapter cards do not record it
    """
    about = {"help": text, "choices": choices, "bounds": bounds, "at_run_time": at_run_time}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class ConditionSettings:
    """Settings that turn a layout into a condition; defaults of the published code at 512 px.

    attention_mask_method         base = SAA in every block; hard = SAA, and AIA in `hard_attn_block_range`; place = SAA
                                  weighted by the covered fraction of each token; none = plain FLUX with the global
                                  caption, without regions and contour (loaded adapters stay active)
    hard_attn_block_range         first and last AIA block, both included, counted over double then single blocks
    cond2image_attention_weight   g in [0, 1], the shape guidance strength of paper eq. 6; 0 separates image and contour
    cond_attention                isolated = condition tokens see only each other
    global_text_sees              background = paper eq. 7; all = the published code
    attention_backend             kernel, see `seg2any.attention.attend`; results are equal up to rounding
    is_use_cond_token             whether the sequence has contour tokens
    is_filter_cond_token          whether contour tokens whose patch holds no contour are dropped
    cond_scale_factor             image side / contour side: 1 at 512 px, 2 at 1024 px
    region_assignment             which image tokens belong to a region, see `seg2any.attention.tokens.token_masks`
    max_sequence_length           most tokens of the global caption; longer captions are cut
    regional_max_sequence_length  most tokens of each region's caption: 50, or 10 for class names
    vae_posterior                 sample = draw contour latents from the VAE's posterior; mode = take its mode

    Raises UserError for values outside these ranges.
    """

    attention_mask_method: str = setting(
        "hard", "how regions are kept apart; none is plain FLUX", choices=("hard", "base", "place", "none")
    )
    hard_attn_block_range: tuple[int, int] = setting((19, 37), "first and last block with attribute isolation")
    cond2image_attention_weight: float = setting(
        1.0, "how strongly the contour guides, 0 to 1", bounds=(0, 1), at_run_time=True
    )
    cond_attention: str = setting(
        "bidirectional", "isolated: contour tokens see only each other", choices=("bidirectional", "isolated")
    )
    global_text_sees: str = setting("all", "background: as in paper eq. 7", choices=("all", "background"))
    attention_backend: str = setting(
        "auto", "kernel; images are equal up to rounding", choices=BACKEND_NAMES, at_run_time=True
    )
    is_use_cond_token: bool = setting(True, "use contour tokens")
    is_filter_cond_token: bool = setting(True, "drop contour tokens that hold no contour")
    cond_scale_factor: int = setting(1, "the contour is this many times smaller than the image", bounds=(1, 16))
    region_assignment: str = setting(
        "nearest",
        "nearest: the token's centre decides; coverage: every region gets at least one token",
        choices=("nearest", "coverage"),
    )
    max_sequence_length: int = setting(512, "tokens read of the global caption", bounds=(1, MOST_TEXT_TOKENS))
    regional_max_sequence_length: int = setting(
        50, "tokens read of each region's caption", bounds=(1, MOST_TEXT_TOKENS)
    )
    vae_posterior: str = setting(
        "sample", "latents are sampled from the VAE's posterior, or its mode", choices=("sample", "mode")
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "hard_attn_block_range", _first_last(self.hard_attn_block_range))
        for each in fields(self):
            _check(each.name, getattr(self, each.name), each.default, each.metadata)
        check_backend(self.attention_backend, self.attention_mask_method)

    @property
    def is_plain(self) -> bool:
        """True for FLUX without regions and contours."""
        return self.attention_mask_method == "none"

    def attention_of(self, block: int) -> Attention:
        """Return the attention of a block, counted from 0 through double and single blocks."""
        if self.is_plain:
            return Attention.FULL
        first, last = self.hard_attn_block_range
        is_aia = self.attention_mask_method == "hard" and first <= block <= last
        return Attention.AIA if is_aia else Attention.SAA

    def override(self, given: Mapping[str, object]) -> ConditionSettings:
        """Return a copy with the given values; None keeps the value of these settings."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def to_json(self) -> dict[str, Any]:
        """Return a flat dict with the published names, for recipes and reports."""
        return asdict(self)


NAMES = tuple(each.name for each in fields(ConditionSettings))
CARD_NAMES = tuple(each.name for each in fields(ConditionSettings) if not each.metadata["at_run_time"])
CONFIG_ROOT_NAMES = ("cond_scale_factor",)  # keys at the top of published configs; all others are in `model`

PUBLISHED = {
    "sacap_1m": {"cond_scale_factor": 2},
    "ade20k": {"attention_mask_method": "base", "regional_max_sequence_length": 10},
    "coco_stuff": {"attention_mask_method": "base", "regional_max_sequence_length": 10},
}


def published(data_set: str) -> ConditionSettings:
    """Return the settings that the published adapters for a data set were trained with.

    Raises UserError for a data set without published adapters.
    """
    if data_set not in PUBLISHED:
        raise UserError(f"{data_set!r} has no published adapters; use one of {', '.join(PUBLISHED)}")
    return ConditionSettings(**PUBLISHED[data_set])


def check_blocks(settings: ConditionSettings, n_blocks: int) -> None:
    """Warn if `hard_attn_block_range` reaches past the last of `n_blocks` blocks."""
    first, last = settings.hard_attn_block_range
    if settings.attention_mask_method == "hard" and last >= n_blocks:
        warnings.warn(
            f"hard_attn_block_range {first} {last} reaches past the {n_blocks} blocks of this transformer "
            f"(0 to {n_blocks - 1}); attribute isolation acts in {max(n_blocks - first, 0)} of them",
            stacklevel=4,
        )


def _first_last(blocks: object) -> tuple[int, int]:
    match blocks:
        case [int(first), int(last)] if 0 <= first <= last:
            return first, last
    raise UserError(f"hard_attn_block_range is {blocks!r}; give the first and the last block, for example 19 37")


def _check(name: str, value: object, default: object, about: Mapping[str, Any]) -> None:
    if about["choices"] is not None and name != "attention_backend" and value not in about["choices"]:
        raise UserError(f"{name} is {value!r}; use one of {', '.join(about['choices'])}")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(f"{name} is {value!r}; use true or false")
    if about["bounds"] is not None:
        low, high = about["bounds"]
        kinds, noun = ((int, float), "number") if isinstance(default, float) else ((int,), "whole number")
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise UserError(f"{name} is {value!r}; give a {noun} from {low} to {high}")


PLAIN = ConditionSettings(attention_mask_method="none", is_use_cond_token=False)  # a model without adapters
