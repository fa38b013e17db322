"""Encode training samples, and convert them to and from the entries of a cache.

Outputs of the networks are rounded to fp16 at once, whether they will be stored or not, so that training reads the same
numbers with and without caches. Latents and embeddings are of order 1, where fp16's 11 bits are finer than bf16's 8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Base, Posterior
from seg2any.bases.text import CaptionKeys, EncodedText, TextEncoder, TextKey
from seg2any.diffusion.prepare import CondTokens, DrawnLayout, EncodedLayout, encode_drawn
from seg2any.training.store import Entry

STORED = torch.float16


@dataclass(frozen=True)
class EncodedSample:
    """One training sample as encoded by the frozen networks.

    image                   posterior of the image, [I, 4C]
    layout                  the encoded layout
    pooled_without_caption  [P]: the pooled vector of the sample without its global caption; None if it has no global
                            caption, or if captions are never dropped
    captions                the texts themselves; None where nobody reads them
    """

    image: Posterior
    layout: EncodedLayout
    pooled_without_caption: Tensor | None = None
    captions: Captions | None = None

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Count text, image and condition tokens, without padding."""
        cond = self.layout.cond
        return sum(self.layout.text.lengths), len(self.image.mean), 0 if cond is None else len(cond)

    def without_caption(self) -> EncodedSample:
        """Remove the global caption from the rows of text and from the pooled vector.

        Without a global caption, or without a region to keep, the sample is unchanged.
        """
        text = self.layout.text
        if self.pooled_without_caption is None:
            return self
        text = replace(text, caption=text.caption[:0], pooled=self.pooled_without_caption)
        return replace(self, layout=replace(self.layout, text=text), pooled_without_caption=None)

    def without_contour(self) -> EncodedSample:
        """Remove the condition tokens."""
        cond = self.layout.cond
        if cond is None:
            return self
        none = replace(cond, posterior=cond.posterior[:0], positions=cond.positions[:0])
        return replace(self, layout=replace(self.layout, cond=none))


@dataclass(frozen=True)
class Captions:
    """The captions of a sample: a global one or None, and one for each region."""

    caption: str | None
    regions: tuple[str, ...]

    def texts(self, base: Base, settings: ConditionSettings) -> Texts:
        """List the texts to encode, including the one that replaces a dropped caption."""
        keys = base.caption_keys(self.caption, self.regions, settings)
        if self.caption is None or not keys.regions:
            return Texts(keys, None)
        return Texts(keys, base.caption_keys(None, self.regions, settings).pooled)


@dataclass(frozen=True)
class Texts:
    """Keys of the embeddings of a sample, and of the pooled one without the global caption."""

    keys: CaptionKeys
    pooled_without_caption: TextKey | None

    def __iter__(self) -> Iterator[TextKey]:
        yield from self.keys
        if self.pooled_without_caption:
            yield self.pooled_without_caption


@dataclass(frozen=True, eq=False)
class Latents:
    """A sample as encoded by the VAE, and its regions as drawn, as in `EncodedLayout`."""

    image: Posterior
    cond: CondTokens | None
    masks: np.ndarray
    coverage: np.ndarray | None = None

    def sample(self, texts: Texts, known: Mapping[TextKey, Tensor]) -> EncodedSample:
        """Add the embeddings in `known`.

        If the one for a dropped caption is missing, no caption can be dropped.
        """
        layout = EncodedLayout(EncodedText.of(texts.keys, known), self.masks, self.coverage, self.cond)
        return EncodedSample(self.image, layout, known.get(texts.pooled_without_caption))


def encode_latents(pixels: np.ndarray, drawn: DrawnLayout, base: Base, with_std: bool) -> Latents:
    """Run the VAE on an image uint8 [H, W, 3] and its contour, rounded as caches store them."""
    return latents_of(drawn, *encode_drawn(drawn, base, pixels), with_std)


def latents_of(drawn: DrawnLayout, image: Posterior, cond: CondTokens | None, with_std: bool) -> Latents:
    """Round the posterior of a sample's image, [I, D], and its condition tokens."""
    if cond is not None:
        cond = replace(cond, posterior=_rounded(cond.posterior, with_std))
    return Latents(_rounded(image.cpu(), with_std), cond, drawn.masks, drawn.coverage)


def _rounded(posterior: Posterior, with_std: bool) -> Posterior:
    mean = posterior.mean.to(STORED).float()
    return Posterior(mean, posterior.std.to(STORED).float() if with_std else torch.zeros_like(mean))


def latents_entry(latents: Latents, captions: Captions, with_std: bool) -> Entry:
    """Pack latents, regions and captions, so that no file of the data set has to be read again."""
    masks = latents.masks
    entry = {
        "captions": np.frombuffer(json.dumps([captions.caption, *captions.regions]).encode(), np.uint8),
        "grid": np.array(masks.shape[1:], np.int32),
        "masks": np.packbits(masks.reshape(len(masks), math.prod(masks.shape[1:])), axis=1),  # 0 regions are possible
        **_posterior_entry("image", latents.image, with_std),
    }
    if latents.coverage is not None:
        entry["coverage"] = latents.coverage
    if latents.cond is not None:
        entry |= _posterior_entry("contour", latents.cond.posterior, with_std)
        entry["contour.positions"] = latents.cond.positions.astype(np.int16)
        entry["contour.grid"] = np.array(latents.cond.grid, np.int32)
    return entry


def captions_of_entry(entry: Entry) -> Captions:
    """Unpack the captions of `latents_entry`."""
    caption, *regions = json.loads(entry["captions"].tobytes())
    return Captions(caption, tuple(regions))


def latents_of_entry(entry: Entry) -> Latents:
    """Unpack the latents of `latents_entry`, in fp32."""
    grid = tuple(entry["grid"].tolist())
    masks = np.unpackbits(entry["masks"], axis=1, count=grid[0] * grid[1]).astype(bool).reshape(-1, *grid)
    cond = None
    if "contour.mean" in entry:
        positions = entry["contour.positions"].astype(np.int64)
        cond = CondTokens(_posterior_of(entry, "contour"), positions, tuple(entry["contour.grid"].tolist()))
    return Latents(_posterior_of(entry, "image"), cond, masks, entry.get("coverage"))


def _posterior_entry(name: str, posterior: Posterior, with_std: bool) -> Entry:
    entry = {f"{name}.mean": posterior.mean.to(STORED).numpy()}
    return entry | ({f"{name}.std": posterior.std.to(STORED).numpy()} if with_std else {})


def _posterior_of(entry: Entry, name: str) -> Posterior:
    mean = torch.from_numpy(entry[f"{name}.mean"]).float()
    std = torch.from_numpy(entry[f"{name}.std"]).float() if f"{name}.std" in entry else torch.zeros_like(mean)
    return Posterior(mean, std)


def texts_entry(texts: Texts, known: Mapping[TextKey, Tensor], elsewhere: Mapping[TextKey, Tensor]) -> Entry:
    """Pack the embeddings of a sample by their number in `texts`, except those kept `elsewhere`."""
    return {str(n): known[key].numpy() for n, key in enumerate(texts) if key not in elsewhere}


def texts_of_entry(texts: Texts, entry: Entry) -> dict[TextKey, Tensor]:
    """Unpack the embeddings of `texts_entry`, in fp16."""
    return {key: torch.from_numpy(entry[str(n)]) for n, key in enumerate(texts) if str(n) in entry}


def add_embeddings(known: dict[TextKey, Tensor], keys: Iterable[TextKey], encoder: TextEncoder) -> None:
    """Encode those of `keys` that `known` lacks, round them to fp16 and add them."""
    missing = list(dict.fromkeys(key for key in keys if key not in known))
    known.update((key, embeds.to(STORED)) for key, embeds in encoder.encode_text(missing))
