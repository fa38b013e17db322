"""Define the sections of a config that single tasks read; each checks its own values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from seg2any.system.errors import UserError


@dataclass
class MaskAlignment:
    """Masks for the attention of chosen blocks, beside the flow loss or alone."""

    blocks: list[int] | None = None  # their attention learns the masks; null: those that the probe reads
    pairing: str = "spans"  # of maps and masks: spans, by the tokens of each caption; matched, at the least cost
    target: str = "maps"  # what learns the masks: maps, the attention itself; head, a small CNN that reads it
    background: str | None = "background"  # a name for what is no region, with plain attention; null: none is learned
    focal: str = "sigmoid"  # the probability in the focal loss: sigmoid, its standard form; published, the logit itself
    weight: float = 1.0  # of the mask loss
    flow_weight: float = 1.0  # of the flow loss; 0: the masks alone

    def __post_init__(self) -> None:
        choices = {"pairing": ("spans", "matched"), "target": ("maps", "head"), "focal": ("sigmoid", "published")}
        for key, names in choices.items():
            if getattr(self, key) not in names:
                raise _wrong(key, getattr(self, key), f"choose one of {', '.join(names)}")
        for key in ("weight", "flow_weight"):
            if not 0 <= getattr(self, key) < math.inf:
                raise _wrong(key, getattr(self, key), "it must be at least 0")
        if not self.weight and not self.flow_weight:
            raise UserError("mask_alignment.weight: is 0 and flow_weight, too, so nothing is learned; raise one")
        if self.blocks is not None and (not self.blocks or min(self.blocks) < 0):
            raise _wrong("blocks", self.blocks, "give numbers from 0 such as [12,17], or null")
        if self.target == "head" and self.pairing == "matched":
            raise UserError("mask_alignment.target: a head reads the maps of known spans; set pairing to spans")


def _wrong(key: str, value: object, rule: str) -> UserError:
    return UserError(f"mask_alignment.{key}: {value!r} is not possible; {rule}")
