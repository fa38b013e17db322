"""Report the pixels and tokens of each region before any weight is loaded.

No image token attends to the caption of a region that wins no image token: the region silently disappears. So do the
words beyond a caption's token limit. The report warns of both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from seg2any.attention.settings import ConditionSettings
from seg2any.diffusion.prepare import DrawnLayout, draw_layout
from seg2any.generate.world import World
from seg2any.layout import Layout
from seg2any.layout.contour import condition_image, kept_tokens
from seg2any.layout.overlap import alike_masks
from seg2any.system.errors import printable, shown

STRETCH_LIMIT = 1.1  # rounding to whole tokens changes an image's shape by less


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model that determine its token counts; its small files hold them.

    pixels_per_token  edge of the image patch behind one token, 16 for FLUX.1
    count_tokens      counts the tokens of a caption, with its end token and uncut
    unknown_parts     lists the parts of a caption that the tokenizer does not know, one for each unknown token
    are_counted       False if count_tokens only estimates
    world             what the model knows, if that is little
    """

    pixels_per_token: int
    count_tokens: Callable[[str], int]
    unknown_parts: Callable[[str], Sequence[str]] = lambda text: ()
    are_counted: bool = True
    world: World | None = None


@dataclass(frozen=True)
class CaptionReport:
    """The number of tokens of a caption, the limit up to which they are read, and the parts that are unknown.

    counted  False if the number is an estimate
    """

    text: str
    tokens: int
    limit: int
    unknown: tuple[str, ...] = ()
    counted: bool = True

    def __str__(self) -> str:
        """Return the number and the limit, such as 14/512; ~14/512 for an estimate."""
        return f"{'' if self.counted else '~'}{self.tokens}/{self.limit}"

    @property
    def loss(self) -> str:
        """The words for what will not be read, such as "4 of 100"."""
        return f"{'' if self.counted else 'about '}{self.cut} of {self.tokens}"

    @property
    def cut(self) -> int:
        """Number of tokens that will not be read."""
        return max(0, self.tokens - self.limit)


@dataclass(frozen=True)
class RegionReport:
    """One region: visible pixels at the size of the masks, tokens at the size of the image."""

    caption: CaptionReport
    pixels: int
    share: float  # of the layout's pixels
    overlap: float  # share of its mask that other masks cover as well
    hidden: bool  # later regions cover all of its mask
    image_tokens: int
    contour_tokens: int


@dataclass(frozen=True)
class LayoutReport:
    """The report on a layout.

    warnings  lines about what may not be as its author meant it
    notes     lines about what was made of the file, see `Layout`
    """

    name: str
    mask_size: tuple[int, int]  # (H, W)
    image_size: tuple[int, int]  # (H, W)
    seed: int | None
    caption: CaptionReport | None
    image_tokens: int
    contour_tokens: int
    background: float  # share of the image tokens that no region wins
    regions: tuple[RegionReport, ...]
    warnings: tuple[str, ...]
    overlap: str | None = None  # the layout's; None if no pixel lies in two masks
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict:
        """Convert to plain types, with `cut` for each caption."""
        document = dataclasses.asdict(self)
        captions = [(document["caption"], self.caption)] if self.caption else []
        captions += [
            (entry["caption"], region.caption) for entry, region in zip(document["regions"], self.regions, strict=True)
        ]
        for entry, caption in captions:
            entry["cut"] = caption.cut
        return document

    def __str__(self) -> str:
        remarks = [f"  note: {text}" for text in self.notes] + [f"  warning: {text}" for text in self.warnings]
        return "\n".join(map(printable, [self._headline(), *self._table(), *remarks]))

    def _headline(self) -> str:
        height, width = self.image_size
        seed = "no seed" if self.seed is None else f"seed {self.seed}"
        caption = f"caption {self.caption}" if self.caption else "no global caption"
        tokens = f"{self.image_tokens} image and {self.contour_tokens} contour tokens"
        return f"{self.name}: {width}x{height}, {seed}, {caption}, {tokens}, {self.background:.0%} background"

    def _table(self) -> list[str]:
        rows = ["   #   pixels  share  overlap  tokens  contour  caption  text"]
        for number, region in enumerate(self.regions, start=1):
            rows.append(
                f"  {number:2} {region.pixels:8} {region.share:6.1%} {region.overlap:8.0%} {region.image_tokens:7} "
                f"{region.contour_tokens:8} {region.caption!s:>8}  {shown(region.caption.text)}"
            )
        return rows


def check_layout(
    layout: Layout,
    size: tuple[int, int],
    settings: ConditionSettings,
    model: ModelFacts,
    known_warnings: Sequence[str] = (),
) -> LayoutReport:
    """Report on `layout` in an image of `size` (H, W), a multiple of the token size.

    known_warnings  warnings of reading the file; they come first in the report
    """
    # plain settings ignore the regions; the report shows where they are all the same
    without = {
        "attention_mask_method": "base",
        "is_use_cond_token": False,
    }
    visible, others = layout.visible, layout.shared
    drawn_with = settings.override(without) if settings.is_plain else settings
    drawn = draw_layout(visible, size, model.pixels_per_token, drawn_with)
    tokens = drawn.masks
    regions = tuple(
        RegionReport(
            caption=_check_caption(text, settings.regional_max_sequence_length, model),
            pixels=int(seen.sum()),
            share=float(seen.mean()),
            overlap=float((mask & others).sum() / max(1, mask.sum())),
            hidden=bool(mask.any() and not seen.any()),
            image_tokens=int(won.sum()),
            contour_tokens=_tokens_of_outline(seen, drawn, model.pixels_per_token),
        )
        for mask, seen, won, text in zip(layout.masks, visible, tokens, layout.captions, strict=True)
    )
    caption = None
    if layout.caption is not None:
        caption = _check_caption(layout.caption, settings.max_sequence_length, model)
    warnings = [*known_warnings, *_warnings(layout, size, settings, caption, regions)]
    if model.world and (remark := model.world.remark(_texts_that_count(layout, settings))):
        warnings.append(remark)
    # Of images made with adapters, `size_remarks` warns by the size that the adapter was trained at.
    if model.world and settings.is_plain and (remark := model.world.size_remark(size)):
        warnings.append(remark)
    return LayoutReport(
        name=layout.name,
        mask_size=layout.size,
        image_size=size,
        seed=layout.seed,
        caption=caption,
        image_tokens=tokens.shape[1] * tokens.shape[2],
        contour_tokens=0 if drawn.kept is None else int(drawn.kept.sum()),
        background=float(1 - tokens.any(axis=0).mean()),
        regions=regions,
        warnings=tuple(warnings),
        overlap=layout.overlap if others.any() else None,
        notes=layout.notes,
    )


def _texts_that_count(layout: Layout, settings: ConditionSettings) -> list[str]:
    """List the captions that the model reads; plain settings ignore those of regions."""
    return [*([layout.caption] if layout.caption else []), *(() if settings.is_plain else layout.captions)]


def _check_caption(text: str, limit: int, model: ModelFacts) -> CaptionReport:
    return CaptionReport(text, model.count_tokens(text), limit, tuple(model.unknown_parts(text)), model.are_counted)


def _tokens_of_outline(mask: np.ndarray, drawn: DrawnLayout, patch: int) -> int:
    """Count the condition tokens that hold the outline of one region, bool [H, W]."""
    if drawn.condition is None:
        return 0
    return int(kept_tokens(condition_image(mask[None], drawn.condition.shape), patch).sum())


def _warnings(
    layout: Layout,
    size: tuple[int, int],
    settings: ConditionSettings,
    caption: CaptionReport | None,
    regions: Sequence[RegionReport],
) -> list[str]:
    found = []
    stretch = (size[0] / layout.size[0]) / (size[1] / layout.size[1])
    if not 1 / STRETCH_LIMIT < stretch < STRETCH_LIMIT:
        masks, image = (f"{width}x{height}" for height, width in (layout.size, size))
        found.append(f"masks of {masks} are stretched to {image}; choose --height and --width of the same shape")
    if caption and caption.cut:
        found.append(f"the global caption loses {caption.loss} tokens; shorten it or raise --max_sequence_length")
    if caption and caption.unknown:
        found.append(f"the global caption {_unreadable(caption)}")
    if settings.is_plain:
        return found  # plain settings ignore the regions
    found += _repeats(layout)
    for number, region in enumerate(regions, start=1):
        label = f"region {number} ({shown(region.caption.text, 40)})"
        if region.hidden:
            found.append(
                f"{label} is wholly hidden by later regions and will not be drawn; list it after them, remove it, or "
                "use --overlap share"
            )
        elif region.image_tokens == 0:
            found.append(
                f"{label} wins no image token with its {region.pixels} pixels and will not be drawn; "
                f"{_cure(region, settings)}"
            )
        if region.caption.cut:
            found.append(
                f"{label} loses {region.caption.loss} caption tokens; shorten it or raise "
                "--regional_max_sequence_length"
            )
        if region.caption.unknown:
            found.append(f"{label} {_unreadable(region.caption)}")
    return found


def _unreadable(caption: CaptionReport) -> str:
    """Describe the parts of a caption that the text encoder does not know."""
    parts = ", ".join(shown(part, 20) for part in caption.unknown[:4]) + (", ..." if len(caption.unknown) > 4 else "")
    return (
        f"has {len(caption.unknown)} of {caption.tokens} tokens that the text encoder does not know ({parts}) and that "
        "say nothing to it; write English"
    )


def _repeats(layout: Layout) -> list[str]:
    """Name the regions whose masks are almost equal."""
    effect = {"hide": "the later one hides the earlier one", "share": "both captions act on the same pixels"}
    return [
        f"regions {i + 1} ({shown(layout.captions[i], 40)}) and {j + 1} ({shown(layout.captions[j], 40)}) overlap in "
        f"{ratio:.0%} of their pixels, so {effect[layout.overlap]}; give each its own mask, or remove one"
        for i, j, ratio in alike_masks(layout.masks)
    ]


def _cure(region: RegionReport, settings: ConditionSettings) -> str:
    if region.pixels == 0:
        return "remove it"
    if settings.region_assignment == "coverage":
        return "enlarge it"
    return "enlarge it, or use --region_assignment coverage"
