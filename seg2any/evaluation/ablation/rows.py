"""The rows of the ablation: ways to make images of the same scenes from the same noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

KINDS = {  # kind of scenes -> what it holds
    "normal": "1 to 8 figures",
    "badges": "12 to 20 badges, one shape in many colours and letters",
    "thin": "1 to 6 figures, most of them finer than a token of 16 pixels",
}


@dataclass(frozen=True)
class Row:
    """One way to make images.

    description  what the row is, in a few words
    changes  settings that differ from the adapters' own, by the names that `ConditionSettings.override` takes
    adapter  folder of adapters trained for this row; None for the adapters under test
    is_bare  whether this is the base model without adapters
    """

    name: str
    description: str
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


def _with(name: str, description: str, **changes: object) -> Row:
    return Row(name, description, {**REFERENCE.changes, **changes})


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
    # This row reads the global caption only, so it has no contour to switch off or filter.
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
# Rows whose adapters have to be trained, by the names that the trends use -> config, description; --variant takes
# others as well.
ALIKE = "trained-hard"
TRAINED = {
    ALIKE: ("config/ablation_hard.yaml", "trained as the method is, for as long as the other trained rows"),
    "trained-no-contour": ("config/ablation_no_contour.yaml", "trained without contour tokens"),
    "trained-base": ("config/ablation_base.yaml", "trained with SAA only"),
    "trained-isolated": ("config/ablation_isolated.yaml", "trained with contour tokens that see only each other"),
}


def trained_row(name: str, adapter: Path) -> Row:
    """Build a row of adapters of its own, used as they were trained."""
    return Row(name, TRAINED[name][1] if name in TRAINED else "trained for this row", {}, adapter)


def compared_with(row: Row) -> str | None:
    """Name the row that a row is compared with.

    Trained rows are compared with the one trained alike; the reference and that row with None.
    """
    if row.name in (REFERENCE.name, ALIKE):
        return None
    return REFERENCE.name if row.adapter is None else ALIKE
