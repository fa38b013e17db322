"""The rows of the ablation: ways to make images of the same scenes from the same noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

KINDS = {  # kinds of scenes -> what they are there for
    "normal": "1 to 8 figures",
    "badges": "12 to 20 badges, one shape in many colours and letters",
    "thin": "1 to 6 figures, most of them finer than a token of 16 pixels",
}


@dataclass(frozen=True)
class Row:
    """One way to make images.

    told     what it is, in a few words
    changes  settings by the names that `ConditionSettings.override` takes; the others are as the adapters were trained
    adapter  folder of adapters that were trained for this row; None: those under test
    is_bare  the base model without any adapters
    """

    name: str
    told: str
    changes: Mapping[str, object] = field(default_factory=dict)
    adapter: Path | None = None
    is_bare: bool = False


REFERENCE = Row(
    "hard",
    "the method: hard, contour tokens, filtered",
    {
        "attention_mask_method": "hard",
        "is_use_cond_token": True,
        "is_filter_cond_token": True,
        "cond2image_attention_weight": 1.0,
    },
)
UNFILTERED = {"is_filter_cond_token": False}
NO_CONTOUR = {"is_use_cond_token": False}


def _with(name: str, told: str, **changes: object) -> Row:
    return Row(name, told, {**REFERENCE.changes, **changes})


TRAINING_FREE = (
    REFERENCE,
    _with("hard-unfiltered", "all contour tokens", **UNFILTERED),
    _with("hard-no-contour", "no contour tokens", **NO_CONTOUR),
    _with("base", "SAA in every block, no AIA", attention_mask_method="base"),
    _with("base-unfiltered", "SAA, all contour tokens", attention_mask_method="base", **UNFILTERED),
    _with("base-no-contour", "SAA, no contour tokens", attention_mask_method="base", **NO_CONTOUR),
    _with("place", "soft map instead of SAA", attention_mask_method="place"),
    _with("place-unfiltered", "soft map, all contour tokens", attention_mask_method="place", **UNFILTERED),
    _with("place-no-contour", "soft map, no contour tokens", attention_mask_method="place", **NO_CONTOUR),
    # It reads the global caption only: there is no contour to switch off or to filter.
    _with("none", "no masks, no contour: the global caption, adapters as they are", attention_mask_method="none"),
    Row(
        "none-bare",
        "the base model with the global caption, no adapters",
        {"attention_mask_method": "none"},
        is_bare=True,
    ),
    _with("aia-0-2", "AIA in blocks 0 to 2, the double ones", hard_attn_block_range=(0, 2)),
    _with("aia-6-7", "AIA in blocks 6 and 7, the last", hard_attn_block_range=(6, 7)),
    _with("aia-0-7", "AIA in every block", hard_attn_block_range=(0, 7)),
    _with("gamma-0.5", "shape strength 0.5", cond2image_attention_weight=0.5),
    _with("gamma-0.2", "shape strength 0.2", cond2image_attention_weight=0.2),
    _with("gamma-0.05", "shape strength 0.05", cond2image_attention_weight=0.05),
)
# Rows whose adapters have to be trained, by the names that the trends know -> config, and what it is; others can be
# given as well.
ALIKE = "trained-hard"
TRAINED = {
    ALIKE: ("config/ablation_hard.yaml", "trained as the method is, for as long as the other trained rows"),
    "trained-no-contour": ("config/ablation_no_contour.yaml", "trained without contour tokens"),
    "trained-base": ("config/ablation_base.yaml", "trained with SAA only"),
    "trained-isolated": ("config/ablation_isolated.yaml", "trained with contour tokens that see only each other"),
}


def trained_row(name: str, adapter: Path) -> Row:
    """A row of adapters of its own, used as they were trained."""
    return Row(name, TRAINED[name][1] if name in TRAINED else "trained for this row", {}, adapter)


def compared_with(row: Row) -> str | None:
    """The name of the row that a row is compared with, for trained ones the one trained alike; None for these two."""
    if row.name in (REFERENCE.name, ALIKE):
        return None
    return REFERENCE.name if row.adapter is None else ALIKE
