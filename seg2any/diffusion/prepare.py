"""Layouts to a `Condition`: the one place where a batch is prepared, for generation and for training.

`encode_layouts` runs the frozen networks, once per sample; its result lives on the CPU and is worth caching. What
needs no network is `draw_layout`, which training leaves to the processes that read files. `assemble` puts any of these
together to a batch: padding, token order and position ids, no network.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import SampleTokens, layout_tokens, token_coverage, token_masks
from seg2any.bases.base import Condition
from seg2any.bases.flux1.latents import Posterior, encode_images, pixels_per_token
from seg2any.bases.flux1.text import EncodedText, Prompt, TextEncoders, TextKey, encode_texts
from seg2any.diffusion.noise import packed_noise
from seg2any.layout import Layout
from seg2any.layout.checks import MAX_PIXELS
from seg2any.layout.contour import condition_image, kept_tokens, to_signed
from seg2any.system.errors import UserError, shown


@dataclass(frozen=True, eq=False)
class EncodedContour:
    """The condition tokens of one sample: what the VAE says about them, and where they are.

    posterior  mean and std [n, 4C]
    positions  int64 [n, 2]: row and column on the condition grid
    grid       (h, w) of the whole condition grid
    """

    posterior: Posterior
    positions: Tensor
    grid: tuple[int, int]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """[n, 4C]. The noise is drawn for the whole grid, so it does not depend on which tokens were kept."""
        noise = packed_noise(self.grid, self.posterior.mean.shape[-1] // 4, generator)[0]
        rows, columns = self.positions.unbind(-1)
        return self.posterior.sample(noise[rows * self.grid[1] + columns])


@dataclass(frozen=True, eq=False)
class DrawnLayout:
    """One layout before the frozen networks, for one image size.

    condition  uint8 [h', w']: the contour image; None without condition tokens
    kept       bool [h, w]: which of its tokens are kept; None without condition tokens
    masks, coverage  as in `EncodedLayout`
    """

    condition: np.ndarray | None
    kept: np.ndarray | None
    masks: np.ndarray
    coverage: Tensor | None = None


@dataclass(frozen=True, eq=False)
class EncodedLayout:
    """One layout after the frozen networks: plain CPU tensors, everything `assemble` needs.

    contour   None without condition tokens (is_use_cond_token off)
    masks     bool numpy [N, h, w] on the image's token grid
    coverage  float [N, h, w], the covered fraction of each image token; only for method "place"
    """

    text: EncodedText
    contour: EncodedContour | None
    masks: np.ndarray
    coverage: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        """Text, image and condition tokens."""
        n_cond = 0 if self.contour is None else len(self.contour.positions)
        return sum(self.text.lengths) + self.masks.shape[1] * self.masks.shape[2] + n_cond


class Encoders(TextEncoders, Protocol):
    """A FLUX pipeline, or anything with the same five attributes."""

    vae: AutoencoderKL


def encode_layouts(
    layouts: Sequence[Layout],
    size: tuple[int, int],
    encoders: Encoders,
    settings: ConditionSettings,
    known: MutableMapping[TextKey, Tensor] | None = None,
) -> list[EncodedLayout]:
    """Run the text encoders and the VAE for images of `size` (H, W) pixels.

    known  text embeddings of earlier calls, extended by this one (see `encode_texts`).

    Raises UserError if `size` does not suit the token grids, or if a layout lacks the captions that it needs.
    """
    size_in_tokens(size, encoders.vae, settings.cond_scale_factor)
    if any(layout.caption is None and not layout.captions for layout in layouts):
        raise UserError("a layout has no region and no `caption`, so there is nothing to draw; add one of them")
    prompts = [prompt_for(layout.caption, layout.captions, settings) for layout in layouts]
    texts = encode_texts(prompts, encoders, known)
    return [
        _encode_layout(layout, text, size, encoders.vae, settings) for layout, text in zip(layouts, texts, strict=True)
    ]


def _encode_layout(
    layout: Layout, text: EncodedText, size: tuple[int, int], vae: AutoencoderKL, settings: ConditionSettings
) -> EncodedLayout:
    drawn = draw_layout(layout.masks, size, pixels_per_token(vae), settings)
    return EncodedLayout(text, encode_contour(drawn, vae), drawn.masks, drawn.coverage)


def draw_layout(masks: np.ndarray, size: tuple[int, int], patch: int, settings: ConditionSettings) -> DrawnLayout:
    """Masks bool [N, H', W'] for an image of `size` (H, W) pixels, `patch` of them per token side."""
    grid = (size[0] // patch, size[1] // patch)
    if settings.is_plain:
        return DrawnLayout(None, None, masks=np.zeros((0, *grid), dtype=bool))
    is_soft = settings.attention_mask_method == "place"
    image = kept = None
    if settings.is_use_cond_token:
        image = condition_image(masks, (size[0] // settings.cond_scale_factor, size[1] // settings.cond_scale_factor))
        kept = kept_tokens(image, patch)
        if not settings.is_filter_cond_token:
            kept = np.ones_like(kept)
    return DrawnLayout(
        image,
        kept,
        masks=token_masks(masks, grid, settings.region_assignment),
        coverage=torch.from_numpy(token_coverage(masks, grid)) if is_soft else None,
    )


def encode_contour(drawn: DrawnLayout, vae: AutoencoderKL) -> EncodedContour | None:
    """The condition tokens of a drawn layout, one sample at a time to bound memory."""
    if drawn.condition is None:
        return None
    return kept_of(drawn, encode_images(contour_image(drawn), vae)[0])


def contour_image(drawn: DrawnLayout) -> Tensor:
    """The contour as the VAE takes it, [1, 3, h', w'] in [-1, 1]."""
    return to_signed(drawn.condition).expand(1, 3, -1, -1)


def kept_of(drawn: DrawnLayout, posterior: Posterior) -> EncodedContour:
    """The condition tokens that are kept of all [h * w, 4C] that the VAE has made of `contour_image`."""
    kept = torch.from_numpy(drawn.kept.flatten())
    return EncodedContour(posterior.cpu()[kept], torch.from_numpy(np.argwhere(drawn.kept)), drawn.kept.shape)


def prompt_for(caption: str | None, regions: Sequence[str], settings: ConditionSettings) -> Prompt:
    """What is to be encoded for a global caption, which may be absent, and the regions' captions."""
    if settings.is_plain:
        if caption is None:
            raise UserError("attention_mask_method none reads the global caption only: add `caption` to the layout")
        return Prompt(TextKey(caption, settings.max_sequence_length, "t5_padded"), (), TextKey(caption, 0, "clip"))
    return Prompt(
        caption=None if caption is None else TextKey(caption, settings.max_sequence_length, "t5"),
        regions=tuple(TextKey(text, settings.regional_max_sequence_length, "t5") for text in regions),
        pooled=TextKey(".".join(regions) if caption is None else caption, 0, "clip"),
    )


def assemble(
    encoded: Sequence[EncodedLayout],
    settings: ConditionSettings,
    generators: Sequence[torch.Generator] | None = None,
) -> Condition:
    """Pad and lay out a batch of samples, which must share one image size; nothing runs but copies.

    generators  one per sample, for vae_posterior "sample"; None draws from the global one.
    """
    generators = generators or [None] * len(encoded)
    contours = [_contour_tokens(sample, settings, g) for sample, g in zip(encoded, generators, strict=True)]
    tokens = layout_tokens([_sample_tokens(sample) for sample in encoded], settings.cond_scale_factor)
    return Condition(
        prompt_embeds=_pad([sample.text.embeds for sample in encoded], tokens.n_text),
        pooled_prompt_embeds=torch.stack([sample.text.pooled for sample in encoded]),
        tokens=tokens,
        settings=settings,
        cond_hidden_states=_pad(contours, tokens.n_cond) if tokens.n_cond else None,
    )


def _sample_tokens(sample: EncodedLayout) -> SampleTokens:
    return SampleTokens(
        text_lengths=sample.text.lengths,
        masks=sample.masks,
        cond_positions=None if sample.contour is None else sample.contour.positions.numpy(),
        coverage=None if sample.coverage is None else sample.coverage.numpy(),
    )


def _contour_tokens(sample: EncodedLayout, settings: ConditionSettings, generator: torch.Generator | None) -> Tensor:
    if sample.contour is None:
        return torch.zeros(0, 1)
    return sample.contour.posterior.mean if settings.vae_posterior == "mode" else sample.contour.sample(generator)


def _pad(rows: Sequence[Tensor], length: int) -> Tensor:
    """B x [Li, D] -> [B, length, D], with zero rows."""
    width = max(row.shape[-1] for row in rows)
    padded = rows[0].new_zeros(len(rows), length, width)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def size_in_tokens(size: tuple[int, int], vae: AutoencoderKL, cond_scale_factor: int = 1) -> tuple[int, int]:
    """(h, w) of an image's token grid. UserError unless H and W are multiples of the condition tokens' reach."""
    patch = pixels_per_token(vae)
    unit = patch * cond_scale_factor
    if any(edge < unit or edge % unit for edge in size):
        raise UserError(
            f"image size {size[0]}x{size[1]} (height x width): both must be multiples of {unit} "
            f"({patch} pixels per token x cond_scale_factor {cond_scale_factor})"
        )
    return size[0] // patch, size[1] // patch


def image_size(layouts: Sequence[Layout], height: int | None, width: int | None, multiple: int) -> tuple[int, int]:
    """(H, W) of a batch's images: as given, else the layouts' own, rounded down to multiples.

    Raises UserError if there is no layout or something else among them, if their sizes differ, if height or width is no
    whole number, or if no memory could hold the image.
    """
    for layout in layouts:
        if not isinstance(layout, Layout):
            raise UserError(f"{shown(layout)} is no Layout; give Layout.read(path)")
    for name, edge in (("height", height), ("width", width)):
        if not isinstance(edge, (int, NoneType)):
            raise UserError(f"{name} is {edge!r}; give a whole number of pixels")
    sizes = {layout.size for layout in layouts}
    if len(sizes) != 1:
        found = ", ".join(f"{h}x{w}" for h, w in sorted(sizes)) or "none"
        raise UserError(f"layouts of one size (height x width) make a batch, found {found}; call once per size")
    own_height, own_width = sizes.pop()
    height, width = own_height if height is None else height, own_width if width is None else width
    if height * width > MAX_PIXELS:
        raise UserError(
            f"an image of {width}x{height} is more than {MAX_PIXELS >> 20} megapixels; give a smaller height and width"
        )
    return height // multiple * multiple, width // multiple * multiple
