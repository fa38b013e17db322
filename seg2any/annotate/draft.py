"""A photo on its way to a record: what the stages have found so far."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from seg2any.annotate.photos import Photo
from seg2any.data.pictures import read_photo
from seg2any.layout.rle import decode_runs, draw_runs


class Dropped(Exception):
    """A photo that a rule leaves out: `rule` is the name of the rule, `detail` its measured number in words."""

    def __init__(self, rule: str, detail: str):
        super().__init__(f"{rule}: {detail}")
        self.rule, self.detail = rule, detail


@dataclass
class Region:
    """A mask of a photo.

    id       its number in the JSON
    counts   compressed run lengths, as in SA-1B
    score    of the method that found it, 0..1; None where it tells none
    """

    id: int
    counts: str
    score: float | None = None
    caption: str | None = None


@dataclass
class Draft:
    """A photo and what is known about it; JSON without its pixels.

    size       (H, W) as people see it
    caption    of the whole photo
    aesthetic  score of the predictor, about 1 to 10
    masks_by   source of the masks, and `captions_by` of the captions
    tokens     read and written by a language model
    file       name of the written photo
    seconds    stage -> time that it took, and `left` -> regions after it
    """

    photo: Photo
    size: tuple[int, int]
    regions: list[Region] = field(default_factory=list)
    caption: str | None = None
    aesthetic: float | None = None
    masks_by: str = ""
    captions_by: str = ""
    tokens: tuple[int, int] = (0, 0)
    file: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)

    @cached_property
    def image(self) -> np.ndarray:
        """The photo as people see it, uint8 [H, W, 3]. Raises SampleError."""
        return read_photo(Path(self.photo.path))

    def runs(self) -> list[np.ndarray]:
        """Decode the run lengths of all regions, int64 [R] each."""
        height, width = self.size
        found = []
        for region in self.regions:
            where = f"{self.photo.key}: region {region.id}"
            found.append(decode_runs(where, {"size": [height, width], "counts": region.counts})[0])
        return found

    def masks(self) -> np.ndarray:
        """Draw the regions: bool [N, H, W]."""
        stack = [draw_runs(runs, self.size) for runs in self.runs()]
        return np.stack(stack) if stack else np.zeros((0, *self.size), bool)

    @property
    def source(self) -> str:
        """Where masks and captions come from, in one line."""
        return f"masks: {self.masks_by}; captions: {self.captions_by}"

    def to_json(self) -> str:
        """Write as JSON, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Draft:
        """Read what `to_json` has written."""
        known = json.loads(text)
        known["photo"] = Photo(**known["photo"])
        known["regions"] = [Region(**one) for one in known["regions"]]
        known["size"], known["tokens"] = tuple(known["size"]), tuple(known["tokens"])
        return cls(**known)
