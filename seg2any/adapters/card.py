"""What an adapter knows about itself: how it was trained, so that generation can do the same without being told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from seg2any.attention.rules import AttentionRules
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write

CARD_FILE = "adapter.json"
CARD_KEY = "seg2any"  # in the safetensors metadata


def package_version() -> str:
    """Of this package, empty where it is not installed."""
    try:
        return version("seg2any")
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class AdapterCard:
    """The training settings of an adapter folder. Defaults: the published SACap-1M checkpoint.

    resolution:            side of the training images in pixels
    contour_thickness:     pixels, at the mask's own size; no other than 1 can be drawn
    rank, alpha:           of `default`; the scale of a delta is alpha / rank
    step:                  optimizer steps; 0 = unknown
    seg2any_version:       the version that wrote the card
    assumed:               the folder had no card and these are the published defaults; not written to disk

    The other fields are those of `AttentionRules` and `ConditionSettings` with the same name.
    """

    base_model: str = "black-forest-labs/FLUX.1-dev"
    attention_mask_method: str = "hard"
    hard_attn_block_range: tuple[int, int] = (19, 37)
    cond_attention: str = "bidirectional"
    global_text_sees: str = "all"
    region_assignment: str = "nearest"
    vae_posterior: str = "sample"
    is_use_cond_token: bool = True
    is_filter_cond_token: bool = True
    cond_scale_factor: int = 2
    resolution: int = 1024
    max_sequence_length: int = 512
    regional_max_sequence_length: int = 50
    contour_thickness: int = 1
    rank: int = 64
    alpha: float = 64.0
    dataset: str = ""
    step: int = 0
    seg2any_version: str = ""
    assumed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "hard_attn_block_range", tuple(self.hard_attn_block_range))

    def rules(self) -> AttentionRules:
        """Who attends to whom. Raises UserError for values that are impossible."""
        return AttentionRules(
            method=self.attention_mask_method,
            hard_attn_block_range=self.hard_attn_block_range,
            cond_attention=self.cond_attention,
            global_text_sees=self.global_text_sees,
        )

    def to_json(self) -> str:
        """Every field but `assumed`, with the version that writes it."""
        known = asdict(replace(self, seg2any_version=package_version()))
        del known["assumed"]
        return json.dumps(known, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes, source: str | Path) -> AdapterCard:
        """Fields of newer versions are ignored, missing ones get the published defaults."""
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise TypeError("no settings in it")
            card = cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
            for field in fields(cls):
                value = getattr(card, field.name)
                if type(value) is not type(field.default) and (type(value), type(field.default)) != (int, float):
                    raise TypeError(f"{field.name} is {value!r}")
            card.rules()
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{source}: not an adapter card ({error}); delete it to use the published settings"
            ) from error
        if card.contour_thickness != 1:
            raise UserError(
                f"{source}: contour_thickness is {card.contour_thickness}, and contours are drawn 1 pixel wide here; "
                "use an adapter that was trained with 1"
            )
        return replace(card, assumed=False)


def write_card(folder: Path, card: AdapterCard) -> None:
    """Write adapter.json into the folder."""
    with atomic_write(folder / CARD_FILE) as path:
        path.write_text(card.to_json() + "\n", encoding="utf-8")


def read_card(folder: Path, metadata: dict[str, str]) -> AdapterCard:
    """The card beside the adapters, else the one in their safetensors metadata, else the published defaults."""
    file = folder / CARD_FILE
    if file.is_file():
        return AdapterCard.from_json(file.read_bytes(), file)  # json finds out the encoding
    if CARD_KEY in metadata:
        return AdapterCard.from_json(metadata[CARD_KEY], f"{folder}: the card in its weights")
    return AdapterCard(assumed=True)
