"""Define `Segmenter`, a method that finds regions in an image, and its `Prompt`.

    image, Prompt --> Segmenter.segment --> Layout

The layout that comes out is of the kind that generation takes in, so image -> Layout -> image closes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from seg2any.layout import Layout
from seg2any.layout.checks import check_caption, check_masks
from seg2any.system.errors import UserError

GEOMETRY = ("points", "boxes", "masks")
ALONE = ("categories", "describe", "question")  # with them the method decides how many regions there are


@dataclass(frozen=True, eq=False)
class Prompt:
    """The regions to find in an image.

    phrases     N free texts, one per region ("a red circle on the left")
    categories  K class names; a method finds at most one region per name
    points      float [N, P, 3], P points per region: x and y as shares of the image's width and height, 0..1, and a
                label: 1 inside the region, 0 outside it, -1 for an entry to ignore
    boxes       float [N, 4], one per region: left, top, right, bottom as shares of the image's width and height, 0..1
    masks       bool [N, h, w] at any resolution, stretched over the image: where each region is, roughly
    describe    whether a caption of the image is wanted, with a region for each of its phrases
    question    a question about the image whose answer is regions

    Points, boxes and masks may be combined: entry n of each describes region n. Phrases beside them only name these
    regions. Categories, describe and question stand alone. An empty prompt asks for every region that the method finds
    by itself. Each method's docstring lists the combinations it takes; `check` refuses the others.

    >>> Prompt(phrases=("a cat",), boxes=np.array([[0.1, 0.2, 0.5, 0.9]])).count
    1

    Raises UserError if a field is malformed or if fields describe different numbers of regions.
    """

    phrases: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    points: np.ndarray | None = None
    boxes: np.ndarray | None = None
    masks: np.ndarray | None = None
    describe: bool = False
    question: str | None = None

    def __post_init__(self) -> None:
        for name in ("phrases", "categories"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
                for number, text in enumerate(getattr(self, name), start=1):
                    check_caption(f"prompt: {name} entry {number}", text)
        if self.points is not None:
            _check_points(self.points)
        if self.boxes is not None:
            _check_boxes(self.boxes)
        if self.masks is not None:
            check_masks("prompt", self.masks)
        if self.question is not None:
            check_caption("prompt: question", self.question)
        alone = next((name for name in self.given if name in ALONE), None)
        if alone and len(self.given) > 1:
            others = ", ".join(name for name in self.given if name != alone)
            raise UserError(f"prompt: {alone} stands beside {others}; give one or the other")
        counts = {name: len(getattr(self, name)) for name in self.given if name not in ALONE}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise UserError(f"prompt: fields describe different numbers of regions ({listed}); give one entry each")

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the fields that are set."""
        fields = ("phrases", "categories", *GEOMETRY, "describe", "question")
        return tuple(name for name in fields if getattr(self, name) is not None and getattr(self, name) is not False)

    @property
    def count(self) -> int | None:
        """N, or None where the method decides how many regions there are (fields of ALONE, empty prompt)."""
        return next((len(getattr(self, name)) for name in self.given if name not in ALONE), None)

    def check(self, method: str, *combinations: tuple[str, ...]) -> None:
        """Refuse a prompt that is none of the `combinations` of field names that `method` takes.

        Phrases that only name points, boxes or masks are left out of the comparison. Raises UserError.
        """
        kind = tuple(name for name in self.given if name in GEOMETRY) or self.given
        if kind not in combinations:
            taken = " or ".join(" and ".join(names) or "an empty prompt" for names in combinations)
            raise UserError(f"{method}: the prompt holds {' and '.join(kind) or 'nothing'}; give {taken}")

    def captions(self) -> tuple[str, ...]:
        """Name the N regions: by their phrases, else "region 1", "region 2" and so on."""
        return self.phrases or tuple(f"region {number}" for number in range(1, (self.count or 0) + 1))


@dataclass(frozen=True, eq=False)
class Description:
    """A layout that describes an image, and the whole answer of the model, with its marks of phrases and <SEG>."""

    layout: Layout
    answer: str


class Segmenter(Protocol):
    """A method that finds regions in an image."""

    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        """Find the regions that `prompt` asks for in `image`, uint8 [H, W, 3].

        The layout has one region per entry of the prompt, in its order, with an empty mask where nothing was found;
        captions are the phrases or categories, else `Prompt.captions`; `scores` say how sure the method is, if it
        tells; `source` names the method; if no mask has a pixel, `notes` hold the reason. Masks have the method's own
        resolution, stretched over the image.

        Raises UserError for a prompt of a kind that the method does not take.
        """


def _check_points(points: object) -> None:
    _check_floats("points", points, (None, None, 3))
    _check_shares("points", points[..., :2])
    if not np.isin(points[..., 2], (-1, 0, 1)).all():
        raise UserError("prompt: points hold a label other than 1, 0 and -1; put the label third")


def _check_boxes(boxes: object) -> None:
    _check_floats("boxes", boxes, (None, 4))
    _check_shares("boxes", boxes)
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise UserError("prompt: a box ends before it begins; give left, top, right, bottom")


def _check_floats(name: str, values: object, shape: tuple[int | None, ...]) -> None:
    """Raise UserError unless `values` is a float array of `shape`, where None is any size."""
    fits = isinstance(values, np.ndarray) and values.dtype.kind == "f" and values.ndim == len(shape)
    if not fits or any(side not in (None, found) for side, found in zip(shape, values.shape, strict=True)):
        found = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        raise UserError(f"prompt: {name} are {found}; give a float array [{wanted}]")


def _check_shares(name: str, values: np.ndarray) -> None:
    if not ((values >= 0) & (values <= 1)).all():
        raise UserError(f"prompt: {name} lie outside 0..1; give shares of the image's width and height")
