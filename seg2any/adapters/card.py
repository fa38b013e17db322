"""What an adapter knows about itself: how it was trained, so that generation can do the same without being told."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from seg2any.attention.settings import CARD_NAMES, ConditionSettings, published
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
    """How the adapters of a folder were trained. Defaults: the published SACap-1M checkpoint.

    condition:             the settings of the condition; in files, one flat object with the other fields
    resolution:            side of the training images in pixels
    contour_thickness:     pixels, at the mask's own size; no other than 1 can be drawn
    rank, alpha:           of `default`; the scale of a delta is alpha / rank
    step:                  optimizer steps; 0 = unknown
    seg2any_version:       the version that wrote the card
    assumed:               the folder had no card and these are the published defaults; not written to disk
    """

    base_model: str = "black-forest-labs/FLUX.1-dev"
    condition: ConditionSettings = field(default_factory=lambda: published("sacap_1m"))
    resolution: int = 1024
    contour_thickness: int = 1
    rank: int = 64
    alpha: float = 64.0
    dataset: str = ""
    step: int = 0
    seg2any_version: str = ""
    assumed: bool = False

    def without_condition(self) -> AdapterCard:
        """Return the card of a folder that holds no `cond` adapter."""
        return replace(self, condition=replace(self.condition, is_use_cond_token=False))

    def to_json(self) -> str:
        """Write every field but `assumed` and the settings that are chosen at run time, with the writing version."""
        own = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("condition", "assumed")
        }
        condition = {name: getattr(self.condition, name) for name in CARD_NAMES}
        return json.dumps({**own, **condition, "seg2any_version": package_version()}, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes, source: str | Path) -> AdapterCard:
        """Read a card: fields of newer versions are ignored, missing ones get the published defaults.

        Raises UserError for values of a wrong type or outside their range.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise TypeError("no settings in it")
            condition = replace(published("sacap_1m"), **{name: values[name] for name in CARD_NAMES if name in values})
            own = {each.name for each in fields(cls)} - {"condition", "assumed"}
            card = cls(condition=condition, **{name: values[name] for name in own if name in values})
            _check_types(card)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{source}: not an adapter card ({error}); delete it to use the published settings"
            ) from error
        if card.contour_thickness != 1:
            raise UserError(
                f"{source}: contour_thickness is {card.contour_thickness}, and contours are drawn 1 pixel wide here; "
                "use an adapter that was trained with 1"
            )
        return card


def _check_types(card: AdapterCard) -> None:
    for each in fields(card):
        value, default = getattr(card, each.name), each.default
        is_right = type(value) is type(default) or (type(value), type(default)) == (int, float)
        if each.name != "condition" and not is_right:
            raise TypeError(f"{each.name} is {value!r}")


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
