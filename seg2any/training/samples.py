"""A training sample after the frozen networks, and how it is stored.

Whatever the networks say is rounded to fp16 at once, whether it will be stored or not, so that training reads the same
numbers with and without caches. Latents and embeddings are of order 1, where fp16's 11 bits are finer than bf16's 8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.flux1.latents import Posterior, encode_images
from seg2any.bases.flux1.text import Prompt, TextEncoders, TextKey, encode_keys, text_of
from seg2any.diffusion.prepare import DrawnLayout, EncodedContour, EncodedLayout, contour_image, kept_of, prompt_for

STORED = torch.float16
Entry = dict[str, np.ndarray]


@dataclass(frozen=True)
class EncodedSample:
    """One training sample without its pixels.

    image                   posterior of the image, [I, 4C]
    layout                  the encoded layout
    pooled_without_caption  [P]: CLIP's vector of the sample if it had no global caption; None if it has none, or if
                            captions are never dropped
    """

    image: Posterior
    layout: EncodedLayout
    pooled_without_caption: Tensor | None = None

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Text, image and condition tokens, without padding."""
        contour = self.layout.contour
        return sum(self.layout.text.lengths), len(self.image.mean), 0 if contour is None else len(contour.positions)

    def without_caption(self) -> EncodedSample:
        """As if there had never been a global caption, in T5's rows and in CLIP's vector.

        Unchanged if there is none, or no region: then nothing would be left to read.
        """
        text = self.layout.text
        if self.pooled_without_caption is None:
            return self
        text = replace(text, caption=text.caption[:0], pooled=self.pooled_without_caption)
        return EncodedSample(self.image, replace(self.layout, text=text))

    def without_contour(self) -> EncodedSample:
        """No condition tokens."""
        contour = self.layout.contour
        if contour is None:
            return self
        none = replace(contour, posterior=contour.posterior[:0], positions=contour.positions[:0])
        return replace(self, layout=replace(self.layout, contour=none))


@dataclass(frozen=True)
class Captions:
    """What is said about a sample: a global caption or None, and one of each region."""

    caption: str | None
    regions: tuple[str, ...]

    def texts(self, settings: ConditionSettings) -> Texts:
        """What has to be encoded, with what is needed in place of a dropped caption."""
        prompt = prompt_for(self.caption, self.regions, settings)
        if self.caption is None or not prompt.regions:
            return Texts(prompt, None)
        return Texts(prompt, prompt_for(None, self.regions, settings).pooled)


@dataclass(frozen=True)
class Texts:
    """The embeddings that a sample needs, and the pooled one it would have without its global caption."""

    prompt: Prompt
    pooled_without_caption: TextKey | None

    def __iter__(self) -> Iterator[TextKey]:
        yield from self.prompt
        if self.pooled_without_caption:
            yield self.pooled_without_caption


@dataclass(frozen=True, eq=False)
class Latents:
    """What the VAE says about a sample, and what is drawn of its regions, as in `EncodedLayout`."""

    image: Posterior
    contour: EncodedContour | None
    masks: np.ndarray
    coverage: Tensor | None = None

    def sample(self, texts: Texts, known: Mapping[TextKey, Tensor]) -> EncodedSample:
        """With the embeddings that `known` holds. Without a vector for a dropped caption, none can be dropped."""
        layout = EncodedLayout(text_of(texts.prompt, known), self.contour, self.masks, self.coverage)
        return EncodedSample(self.image, layout, known.get(texts.pooled_without_caption))


def encode_latents(pixels: np.ndarray, drawn: DrawnLayout, vae: AutoencoderKL, with_std: bool) -> Latents:
    """Run the VAE on an image uint8 [H, W, 3] and its contour, both at once if they have one size. One sample at a
    time: its latents are the same whatever it is batched with."""
    image = image_of(pixels)
    if drawn.condition is None:
        return latents_of(drawn, encode_images(image, vae)[0], None, with_std)
    contour = contour_image(drawn)
    if contour.shape == image.shape:
        both = encode_images(torch.cat([image, contour]), vae)
        return latents_of(drawn, both[0], both[1], with_std)
    return latents_of(drawn, encode_images(image, vae)[0], encode_images(contour, vae)[0], with_std)


def image_of(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> as the VAE takes it, [1, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1


def latents_of(drawn: DrawnLayout, image: Posterior, contour: Posterior | None, with_std: bool) -> Latents:
    """What the VAE says about a sample's image, [I, 4C], and about its `contour_image`, [h * w, 4C]."""
    tokens = None
    if contour is not None:
        tokens = kept_of(drawn, contour)
        tokens = replace(tokens, posterior=_rounded(tokens.posterior, with_std))
    return Latents(_rounded(image.cpu(), with_std), tokens, drawn.masks, drawn.coverage)


def _rounded(posterior: Posterior, with_std: bool) -> Posterior:
    mean = posterior.mean.to(STORED).float()
    return Posterior(mean, posterior.std.to(STORED).float() if with_std else torch.zeros_like(mean))


def latents_entry(latents: Latents, captions: Captions, with_std: bool) -> Entry:
    """Everything of a sample but its embeddings; the captions come along, so that no file has to be read for them."""
    masks = latents.masks
    entry = {
        "captions": np.frombuffer(json.dumps([captions.caption, *captions.regions]).encode(), np.uint8),
        "grid": np.array(masks.shape[1:], np.int32),
        "masks": np.packbits(masks.reshape(len(masks), math.prod(masks.shape[1:])), axis=1),  # there may be none
        **_posterior_entry("image", latents.image, with_std),
    }
    if latents.coverage is not None:
        entry["coverage"] = latents.coverage.numpy()
    if latents.contour is not None:
        entry |= _posterior_entry("contour", latents.contour.posterior, with_std)
        entry["contour.positions"] = latents.contour.positions.numpy().astype(np.int16)
        entry["contour.grid"] = np.array(latents.contour.grid, np.int32)
    return entry


def captions_of_entry(entry: Entry) -> Captions:
    """The captions in what `latents_entry` made."""
    caption, *regions = json.loads(entry["captions"].tobytes())
    return Captions(caption, tuple(regions))


def latents_of_entry(entry: Entry) -> Latents:
    """The latents in what `latents_entry` made, in fp32."""
    grid = tuple(entry["grid"].tolist())
    masks = np.unpackbits(entry["masks"], axis=1, count=grid[0] * grid[1]).astype(bool).reshape(-1, *grid)
    contour = None
    if "contour.mean" in entry:
        positions = torch.from_numpy(entry["contour.positions"]).long()
        contour = EncodedContour(_posterior_of(entry, "contour"), positions, tuple(entry["contour.grid"].tolist()))
    coverage = torch.from_numpy(entry["coverage"]) if "coverage" in entry else None
    return Latents(_posterior_of(entry, "image"), contour, masks, coverage)


def _posterior_entry(name: str, posterior: Posterior, with_std: bool) -> Entry:
    entry = {f"{name}.mean": posterior.mean.to(STORED).numpy()}
    return entry | ({f"{name}.std": posterior.std.to(STORED).numpy()} if with_std else {})


def _posterior_of(entry: Entry, name: str) -> Posterior:
    mean = torch.from_numpy(entry[f"{name}.mean"]).float()
    std = torch.from_numpy(entry[f"{name}.std"]).float() if f"{name}.std" in entry else torch.zeros_like(mean)
    return Posterior(mean, std)


def texts_entry(texts: Texts, known: Mapping[TextKey, Tensor], elsewhere: Mapping[TextKey, Tensor]) -> Entry:
    """The embeddings of a sample by their number in `texts`, less those that are kept `elsewhere`."""
    return {str(n): known[key].numpy() for n, key in enumerate(texts) if key not in elsewhere}


def texts_of_entry(texts: Texts, entry: Entry) -> dict[TextKey, Tensor]:
    """The inverse of `texts_entry`: what was stored with the sample, in fp16."""
    return {key: torch.from_numpy(entry[str(n)]) for n, key in enumerate(texts) if str(n) in entry}


def add_embeddings(known: dict[TextKey, Tensor], keys: Iterable[TextKey], encoders: TextEncoders) -> None:
    """Encode those of `keys` that are not yet known, rounded as they are stored."""
    missing = list(dict.fromkeys(key for key in keys if key not in known))
    known.update((key, embeds.to(STORED)) for key, embeds in encode_keys(missing, encoders))
