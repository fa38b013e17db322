"""Record how adapters were trained, so that generation repeats those settings by itself."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from seg2any.attention.settings import CARD_NAMES, ConditionSettings, published
from seg2any.system.errors import UserError, shown
from seg2any.system.files import atomic_write
from seg2any.system.json_text import parse_json
from seg2any.system.provenance import package_version

CARD_FILE = "adapter.json"
CARD_KEY = "seg2any"  # in the safetensors metadata


@dataclass(frozen=True)
class AdapterCard:
    """Training settings of a folder's adapters; defaults of the published SACap-1M adapters.

    condition:          settings of the condition; files hold their fields and the other fields in one flat object
    resolution:         side of the training images in pixels
    contour_thickness:  pixels at the mask's own size; must be 1
    rank, alpha:        of adapter `default`, whose deltas are scaled by alpha / rank
    step:               optimizer steps; 0 = unknown
    overlap:            overlap of the training layouts, see `Layout`; "" = unknown, and not written
    photo, color_range: of adapters that paint instances, where the photo goes and how their colours are read, see
                        `seg2any.segment.coloring`; "" = they make images, and not written
    legend_entries:     of adapters that paint instances, phrases at most in a legend of training
    seg2any_version:    version of seg2any that wrote the card
    assumed:            True if the folder has no card, so that these are the defaults; not written to files
    """

    base_model: str = "black-forest-labs/FLUX.1-dev"
    condition: ConditionSettings = field(default_factory=lambda: published("sacap_1m"))
    resolution: int = 1024
    contour_thickness: int = 1
    rank: int = 64
    alpha: float = 64.0
    dataset: str = ""
    step: int = 0
    overlap: str = ""
    photo: str = ""
    color_range: str = ""
    legend_entries: int = 4
    seg2any_version: str = ""
    assumed: bool = False

    def without_condition(self) -> AdapterCard:
        """Return the card without contour tokens, for a folder without adapter `cond`."""
        return replace(self, condition=replace(self.condition, is_use_cond_token=False))

    def to_json(self) -> str:
        """Return the card as JSON, without `assumed` and settings that are chosen at run time.

        `seg2any_version` becomes the version of this package.
        """
        own = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("condition", "assumed")
        }
        condition = {name: getattr(self.condition, name) for name in CARD_NAMES}
        for name in ("overlap", "photo", "color_range"):
            if not own[name]:
                del own[name]
        if not self.photo:
            del own["legend_entries"]
        return json.dumps({**own, **condition, "seg2any_version": package_version()}, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes, source: str | Path) -> AdapterCard:
        """Parse a card: unknown fields are ignored, missing ones get the published defaults.

        Raises UserError, whose message starts with `source`, for values of a wrong type or outside their range.
        """
        try:
            values = parse_json(text)
            if not isinstance(values, dict):
                raise TypeError("it holds no JSON object")
            condition = replace(published("sacap_1m"), **{name: values[name] for name in CARD_NAMES if name in values})
            own = {each.name for each in fields(cls)} - {"condition", "assumed"}
            values.setdefault("alpha", values.get("rank", cls.alpha))  # a card that is silent about it scales by 1
            card = cls(condition=condition, **{name: values[name] for name in own if name in values})
            _check_types(card)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{source}: is not an adapter card ({error}); delete it to use the published settings"
            ) from error
        if card.contour_thickness != 1:
            raise UserError(
                f"{source}: contour_thickness is {card.contour_thickness}, but only contours of 1 pixel can be drawn; "
                "use an adapter that was trained with 1"
            )
        return card


def _check_types(card: AdapterCard) -> None:
    for each in fields(card):
        value, default = getattr(card, each.name), each.default
        is_right = type(value) is type(default) or (type(value), type(default)) == (int, float)
        if each.name != "condition" and not is_right:
            raise TypeError(f"{each.name} is {shown(value)}")
    for name, least in (("rank", 1), ("resolution", 1), ("step", 0), ("legend_entries", 1)):
        if not least <= getattr(card, name) < 2**31:
            raise ValueError(f"{name} is {getattr(card, name)}")
    if not math.isfinite(card.alpha):
        raise ValueError(f"alpha is {card.alpha}")


def write_card(folder: Path, card: AdapterCard) -> None:
    """Write adapter.json into a folder."""
    with atomic_write(folder / CARD_FILE) as path:
        path.write_text(card.to_json() + "\n", encoding="utf-8")


def read_card(folder: Path, metadata: dict[str, str]) -> AdapterCard:
    """Read the card from adapter.json, or the safetensors metadata, or assume the defaults."""
    file = folder / CARD_FILE
    if file.is_file():
        return AdapterCard.from_json(file.read_bytes(), file)  # the parser detects the encoding of bytes
    if CARD_KEY in metadata:
        return AdapterCard.from_json(metadata[CARD_KEY], f"{folder}: card in the metadata of its weights")
    return AdapterCard(assumed=True)
