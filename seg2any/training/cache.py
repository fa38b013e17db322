"""Everything frozen, computed once: image latents, contour latents, text embeddings. Training then runs the
transformer only.

The samples live as columns of tensors, so that a cache in memory and its file are the same thing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from seg2any.data.catalog import DataSet
from seg2any.data.sample import Sample
from seg2any.files import atomic_write
from seg2any.latents import Posterior, encode_images
from seg2any.prepare import EncodedContour, EncodedLayout, Encoders, encode_layouts
from seg2any.settings import ConditionSettings
from seg2any.text import EncodedText

FORMAT = 1  # raise it when the columns or what they mean change
STORED = torch.float16  # latents and embeddings are of order 1: 11 bits of precision beat bfloat16's 8


@dataclass(frozen=True)
class EncodedSample:
    """One training sample without its pixels: the posterior of the image [I, 4C], and its encoded layout."""

    image: Posterior
    layout: EncodedLayout

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Text, image and condition tokens, without padding."""
        contour = self.layout.contour
        return sum(self.layout.text.lengths), len(self.image.mean), 0 if contour is None else len(contour.positions)

    def without_caption(self) -> EncodedSample:
        """No global caption for T5; CLIP's pooled vector of it stays. Unchanged if there is no region either."""
        text = self.layout.text
        if not text.regions:
            return self
        return replace(self, layout=replace(self.layout, text=replace(text, caption=text.caption[:0])))

    def without_contour(self) -> EncodedSample:
        """No condition tokens."""
        contour = self.layout.contour
        if contour is None:
            return self
        none = replace(contour, posterior=contour.posterior[:0], positions=contour.positions[:0])
        return replace(self, layout=replace(self.layout, contour=none))


class EncodedDataSet:
    """Encoded samples. A part of a sample is rows `offsets[i]` to `offsets[i + 1]` of a column's `values`.

    Equal captions are stored once: column `text` holds the distinct embeddings, `text_of` names a sample's.
    """

    def __init__(self, columns: dict[str, Tensor]):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["image.mean.offsets"]) - 1

    def __getitem__(self, index: int) -> EncodedSample:
        captions = [self._part("text", at) for at in self._part("text_of", index).tolist()]
        grid = tuple(self._part("grid", index).tolist())
        masks = np.unpackbits(self._part("masks", index).numpy(), axis=1, count=grid[0] * grid[1])
        return EncodedSample(
            image=self._posterior("image", index),
            layout=EncodedLayout(
                text=EncodedText(captions[0], tuple(captions[1:]), self._part("pooled", index)[0]),
                contour=self._contour(index) if self._has("contour.mean") else None,
                masks=masks.astype(bool).reshape(-1, *grid),
                coverage=self._part("coverage", index) if self._has("coverage") else None,
            ),
        )

    def _contour(self, index: int) -> EncodedContour:
        positions = self._part("positions", index).long()
        return EncodedContour(
            self._posterior("contour", index), positions, tuple(self._part("cond_grid", index).tolist())
        )

    def _posterior(self, name: str, index: int) -> Posterior:
        mean = self._part(f"{name}.mean", index).float()
        std = self._part(f"{name}.std", index).float() if self._has(f"{name}.std") else torch.zeros_like(mean)
        return Posterior(mean, std)

    def _part(self, name: str, index: int) -> Tensor:
        start, end = self.columns[f"{name}.offsets"][index : index + 2].tolist()
        return self.columns[f"{name}.values"][start:end]

    def _has(self, name: str) -> bool:
        return f"{name}.values" in self.columns

    def save(self, path: Path, fingerprint: str) -> None:
        with atomic_write(path) as temporary:
            save_file(self.columns, temporary, metadata={"fingerprint": fingerprint})

    @classmethod
    def read(cls, path: Path, fingerprint: str) -> EncodedDataSet | None:
        """The file's content, or None if there is no readable file with this fingerprint."""
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("fingerprint") != fingerprint:
                    return None
                return cls({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (it is no dict)
        except (FileNotFoundError, SafetensorError):
            return None


class _Columns:
    """Collects the parts of samples, in order."""

    def __init__(self):
        self.parts: dict[str, list[Tensor]] = {}
        self.text_rows: dict[int, tuple[int, Tensor]] = {}

    def add(self, sample: EncodedSample, with_std: bool) -> None:
        layout = sample.layout
        self._add_posterior("image", sample.image, with_std)
        self._add("text_of", torch.tensor([self._text_row(t) for t in (layout.text.caption, *layout.text.regions)]))
        self._add("pooled", layout.text.pooled[None].to(STORED))
        self._add("grid", torch.tensor(layout.masks.shape[1:], dtype=torch.int32))
        packed = np.packbits(layout.masks.reshape(len(layout.masks), -1), axis=1)
        self._add("masks", torch.from_numpy(packed))
        if layout.coverage is not None:
            self._add("coverage", layout.coverage)
        if layout.contour is not None:
            self._add_posterior("contour", layout.contour.posterior, with_std)
            self._add("positions", layout.contour.positions.to(torch.int16))
            self._add("cond_grid", torch.tensor(layout.contour.grid, dtype=torch.int32))

    def _text_row(self, embeds: Tensor) -> int:
        """`encode_texts` returns the same tensor for the same caption, so identity finds the repetitions."""
        if id(embeds) not in self.text_rows:
            # The tensor is kept: once it were freed, its id could become another caption's.
            self.text_rows[id(embeds)] = (len(self.text_rows), embeds)
            self._add("text", embeds.to(STORED))
        return self.text_rows[id(embeds)][0]

    def _add_posterior(self, name: str, posterior: Posterior, with_std: bool) -> None:
        self._add(f"{name}.mean", posterior.mean.to(STORED))
        if with_std:
            self._add(f"{name}.std", posterior.std.to(STORED))

    def _add(self, name: str, part: Tensor) -> None:
        self.parts.setdefault(name, []).append(part)

    def finish(self) -> EncodedDataSet:
        columns = {}
        for name, parts in self.parts.items():
            columns[f"{name}.values"] = torch.cat(parts)
            columns[f"{name}.offsets"] = torch.tensor([0, *map(len, parts)]).cumsum(0)
            parts.clear()
        return EncodedDataSet(columns)


def encode_data_set(
    batches: Iterable[Sequence[Sample]], resolution: int, encoders: Encoders, settings: ConditionSettings
) -> EncodedDataSet:
    """Run VAE, T5 and CLIP over all samples; image and masks are stretched to a square of `resolution` pixels."""
    columns, known = _Columns(), {}
    for samples in batches:
        layouts = [sample.layout for sample in samples]
        encoded = encode_layouts(layouts, (resolution, resolution), encoders, settings, known)
        images = encode_images(torch.stack([to_pixels(sample.image, resolution) for sample in samples]), encoders.vae)
        for index, layout in enumerate(encoded):
            columns.add(EncodedSample(images[index].cpu(), layout), with_std=settings.vae_posterior == "sample")
    return columns.finish()


def cached_data_set(
    data: DataSet,
    batches: Iterable[Sequence[Sample]],
    resolution: int,
    encoders: Encoders,
    settings: ConditionSettings,
    cache_dir: str | None,
) -> EncodedDataSet:
    """The encoded `data`: read from `cache_dir` if it is there for exactly these encoders, else encoded and kept.

    batches  the samples of `data`, in order
    """
    if not cache_dir:
        return encode_data_set(batches, resolution, encoders, settings)
    fingerprint = fingerprint_of(data, resolution, encoders, settings)
    path = Path(cache_dir) / f"{fingerprint[:16]}.safetensors"
    found = EncodedDataSet.read(path, fingerprint)
    if found is None:
        found = encode_data_set(batches, resolution, encoders, settings)
        found.save(path, fingerprint)
    return found


def to_pixels(image: np.ndarray, resolution: int) -> Tensor:
    """uint8 [H, W, 3] -> float [3, resolution, resolution] in [-1, 1], bilinear with PIL's antialias."""
    resized = Image.fromarray(image).resize((resolution, resolution), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255).permute(2, 0, 1) * 2 - 1


def fingerprint_of(data: DataSet, resolution: int, encoders: Encoders, settings: ConditionSettings) -> str:
    """sha256 of whatever an encoded data set depends on, cheap to compute: some samples and weights stand for all."""
    layout = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name != "rules"}
    soft = settings.rules.method == "place"
    digest = hashlib.sha256(json.dumps([FORMAT, len(data), resolution, layout, soft, settings.is_plain]).encode())
    for index in sorted({0, len(data) // 3, len(data) // 2, len(data) - 1}):
        sample = data[index]
        digest.update(sample.image.tobytes() + sample.layout.digest().encode())
    for tokenizer in (encoders.tokenizer, encoders.tokenizer_2):
        digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    for module in (encoders.vae, encoders.text_encoder, encoders.text_encoder_2):
        for name, tensor in module.state_dict().items():
            spread = tensor.flatten()[:: max(1, tensor.numel() // 256)].float().cpu()
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + spread.numpy().tobytes())
    return digest.hexdigest()
