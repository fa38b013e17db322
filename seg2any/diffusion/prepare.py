"""Prepare a batch: turn layouts into a `Condition`, for generation and for training.

    draw_layout      masks -> the condition image, its kept tokens, the regions' token masks; no network
    encode_drawn     a drawn layout -> condition tokens, and in training the posterior of the photo in the same pass
    assemble         samples -> a batch: padding, token order, position ids; no network

Encoded samples are on the CPU, one by one, so that caches can keep them.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType

import numpy as np
import torch
from torch import Tensor

from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import layout_tokens, token_coverage, token_masks
from seg2any.bases.base import Base, Condition, Grid, Posterior
from seg2any.bases.text import EncodedText, TextKey, encode_texts
from seg2any.diffusion.noise import packed_noise
from seg2any.layout import Layout
from seg2any.layout.contour import condition_image, kept_tokens
from seg2any.system.errors import UserError, shown
from seg2any.system.limits import limits


@dataclass(frozen=True, eq=False)
class DrawnLayout:
    """A layout drawn for one image size, before any network.

    masks      bool [N, h, w] on the image's token grid
    coverage   float32 [N, h, w], the covered fraction of each image token; only for method "place"
    condition  uint8 [h', w']: the condition image; None without condition tokens
    kept       bool: which tokens of the condition's own grid are kept; None without condition tokens
    """

    masks: np.ndarray
    coverage: np.ndarray | None = None
    condition: np.ndarray | None = None
    kept: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class CondTokens:
    """The kept condition tokens of one sample.

    posterior  mean and std [n, D]
    positions  int64 [n, 2]: row and column on the condition grid
    grid       (h, w) of the whole condition grid
    """

    posterior: Posterior
    positions: np.ndarray
    grid: Grid

    @classmethod
    def of(cls, kept: np.ndarray, posterior: Posterior) -> CondTokens:
        """Select the tokens `kept`, bool [h, w], from the whole grid's posterior [h * w, D]."""
        return cls(posterior.cpu()[torch.from_numpy(kept.flatten())], np.argwhere(kept), kept.shape)

    def __len__(self) -> int:
        return len(self.positions)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Sample the latents [n, D].

        The noise is drawn for the whole grid, so a token's noise does not depend on which other tokens are kept.
        """
        noise = packed_noise(self.grid, self.posterior.mean.shape[-1] // 4, generator)[0]
        rows, columns = torch.from_numpy(self.positions).unbind(-1)
        return self.posterior.sample(noise[rows * self.grid[1] + columns])


@dataclass(frozen=True, eq=False)
class EncodedLayout:
    """A sample after the frozen networks: the input of `assemble`.

    text             embeddings of the captions
    masks, coverage  as in `DrawnLayout`
    cond             None without condition tokens (is_use_cond_token off)
    """

    text: EncodedText
    masks: np.ndarray
    coverage: np.ndarray | None = None
    cond: CondTokens | None = None

    @property
    def text_lengths(self) -> tuple[int, ...]:
        """Return the tokens of the global caption (0 without one), then of each region."""
        return self.text.lengths

    @property
    def cond_positions(self) -> np.ndarray | None:
        """Return the positions [n, 2] of the condition tokens, None without any."""
        return None if self.cond is None else self.cond.positions

    @property
    def n_tokens(self) -> int:
        """Count text, image and condition tokens together."""
        n_cond = 0 if self.cond is None else len(self.cond)
        return sum(self.text.lengths) + self.masks.shape[1] * self.masks.shape[2] + n_cond


def encode_layouts(
    layouts: Sequence[Layout],
    size: tuple[int, int],
    base: Base,
    settings: ConditionSettings,
    known: MutableMapping[TextKey, Tensor] | None = None,
) -> list[EncodedLayout]:
    """Encode the captions and condition images of layouts, for images of `size` (H, W) pixels.

    The VAE encodes layout by layout to bound memory.

    known  text embeddings of earlier calls; new ones are added (see `encode_texts`)

    Raises UserError if `size` does not fit the token grids, and for a layout without the captions that it needs.
    """
    patch = base.geometry.pixels_per_token
    size_in_tokens(size, patch, settings.cond_scale_factor)
    if any(layout.caption is None and not layout.captions for layout in layouts):
        raise UserError("layout: it has no region and no `caption`, so there is nothing to draw; add one of them")
    prompts = [base.caption_keys(layout.caption, layout.captions, settings) for layout in layouts]
    texts, encoded = encode_texts(prompts, base, known), []
    for layout, text in zip(layouts, texts, strict=True):
        drawn = draw_layout(layout.visible, size, patch, settings)
        _, cond = encode_drawn(drawn, base)
        encoded.append(EncodedLayout(text, drawn.masks, drawn.coverage, cond))
    return encoded


def draw_layout(masks: np.ndarray, size: tuple[int, int], patch: int, settings: ConditionSettings) -> DrawnLayout:
    """Draw the visible masks of a layout, bool [N, H', W'], for an image of `size` (H, W) pixels.

    patch  edge of a token in pixels
    """
    grid = (size[0] // patch, size[1] // patch)
    if settings.is_plain:
        return DrawnLayout(masks=np.zeros((0, *grid), dtype=bool))
    image = kept = None
    if settings.is_use_cond_token:
        image = condition_image(masks, (size[0] // settings.cond_scale_factor, size[1] // settings.cond_scale_factor))
        kept = kept_tokens(image, patch)
        if not settings.is_filter_cond_token:
            kept = np.ones_like(kept)
    is_soft = settings.attention_mask_method == "place"
    return DrawnLayout(
        masks=token_masks(masks, grid, settings.region_assignment),
        coverage=token_coverage(masks, grid) if is_soft else None,
        condition=image,
        kept=kept,
    )


def encode_drawn(
    drawn: DrawnLayout, base: Base, pixels: np.ndarray | None = None
) -> tuple[Posterior | None, CondTokens | None]:
    """Encode a sample's condition image and, in training, its photo.

    pixels  the photo, uint8 [H, W, 3]; None in generation

    One pass encodes both if they have the same size. Samples are encoded one by one, so latents do not depend on the
    batch. Returns the posterior [I, D] of the photo, on the device of the VAE, and the condition tokens.
    """
    image = None if pixels is None else as_image(pixels)
    condition = None if drawn.condition is None else as_image(drawn.condition)
    if image is not None and condition is not None and image.shape == condition.shape:
        both = base.encode_images(torch.cat([image, condition]))
        return both[0], CondTokens.of(drawn.kept, both[1])
    of_image = None if image is None else base.encode_images(image)[0]
    return of_image, None if condition is None else CondTokens.of(drawn.kept, base.encode_images(condition)[0])


def as_image(pixels: np.ndarray) -> Tensor:
    """Convert uint8 [H, W, 3] or [H, W] to the VAE's input, float32 [1, 3, H, W] in [-1, 1]."""
    signed = torch.from_numpy(pixels.astype(np.float32) / 255) * 2 - 1
    return (signed.permute(2, 0, 1) if signed.ndim == 3 else signed.expand(3, -1, -1))[None]


def assemble(
    encoded: Sequence[EncodedLayout],
    settings: ConditionSettings,
    generators: Sequence[torch.Generator] | None = None,
) -> Condition:
    """Pad samples of one image size and join them to the condition of a batch.

    generators  one per sample, for vae_posterior "sample"; None draws from torch's global generator

    Plain settings leave the masks of samples out.
    """
    generators = generators or [None] * len(encoded)
    if settings.is_plain:
        encoded = [replace(sample, masks=sample.masks[:0], coverage=None) for sample in encoded]
    tokens = layout_tokens(encoded, settings.cond_scale_factor)
    cond = [_cond_latents(sample, settings, g) for sample, g in zip(encoded, generators, strict=True)]
    pooled = [sample.text.pooled for sample in encoded]
    return Condition(
        text=_pad([sample.text.embeds for sample in encoded], tokens.n_text),
        pooled=None if pooled[0] is None else torch.stack(pooled),
        tokens=tokens,
        settings=settings,
        cond=_pad(cond, tokens.n_cond) if tokens.n_cond else None,
    )


def _cond_latents(sample: EncodedLayout, settings: ConditionSettings, generator: torch.Generator | None) -> Tensor:
    if sample.cond is None:
        return torch.zeros(0, 1)
    return sample.cond.posterior.mean if settings.vae_posterior == "mode" else sample.cond.sample(generator)


def _pad(rows: Sequence[Tensor], length: int) -> Tensor:
    """Stack B x [Li, D] to [B, length, D], padded with zero rows."""
    width = max(row.shape[-1] for row in rows)
    padded = rows[0].new_zeros(len(rows), length, width)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def size_in_tokens(size: tuple[int, int], patch: int, cond_scale_factor: int = 1) -> Grid:
    """Return (h, w) of the token grid of an image of `size` (H, W) pixels.

    patch  edge of a token in pixels

    Raises UserError unless H and W are multiples of patch * cond_scale_factor, the edge of a condition token.
    """
    unit = patch * cond_scale_factor
    if any(edge < unit or edge % unit for edge in size):
        raise UserError(
            f"image size {size[0]}x{size[1]} (height x width): does not fit the token grid; give multiples of {unit} "
            f"({patch} pixels per token x cond_scale_factor {cond_scale_factor})"
        )
    return size[0] // patch, size[1] // patch


def image_size(layouts: Sequence[Layout], height: int | None, width: int | None, multiple: int) -> tuple[int, int]:
    """Choose (H, W) of the images: as given, else the layouts' own; rounded down to multiples.

    Raises UserError without layouts, for objects that are not layouts, for layouts of different sizes, for a height or
    width that is not a whole number, and for more pixels than `limits` allow.
    """
    for layout in layouts:
        if not isinstance(layout, Layout):
            raise UserError(f"layouts: {shown(layout)} is not a Layout; give Layout.read(path)")
    for name, edge in (("height", height), ("width", width)):
        if not isinstance(edge, (int, NoneType)):
            raise UserError(f"{name} is {edge!r}; give a whole number of pixels")
    sizes = {layout.size for layout in layouts}
    if len(sizes) != 1:
        found = ", ".join(f"{h}x{w}" for h, w in sorted(sizes)) or "none"
        raise UserError(f"layouts: a batch needs one size (height x width), but found {found}; call once per size")
    own_height, own_width = sizes.pop()
    height, width = own_height if height is None else height, own_width if width is None else width
    if height * width > (most := limits().pixels):
        raise UserError(
            f"image size {width}x{height}: more than {most >> 20} megapixels; give a smaller height and width"
        )
    return height // multiple * multiple, width // multiple * multiple
