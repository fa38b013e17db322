"""Open the data sets of a run, fill its caches, and drop networks that the caches replace."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from tqdm.auto import tqdm

from seg2any.bases.base import Base
from seg2any.bases.text import TextKey
from seg2any.data.catalog import data_set_name, open_data_set
from seg2any.data.dataset import ClosedSet, DataSet, SampleError
from seg2any.diffusion.prepare import size_in_tokens
from seg2any.layout import Layout
from seg2any.system.errors import UserError
from seg2any.system.processes import Process
from seg2any.training import cache
from seg2any.training.batches import Encoder, Preparation, Reader, TrainingSet, is_usable, latents_key, read_ahead
from seg2any.training.config import Config
from seg2any.training.samples import EncodedSample, add_embeddings, texts_of_entry
from seg2any.training.store import Store, key_of
from seg2any.training.token_counts import TokenCounts, read_or_count


@dataclass(frozen=True, eq=False)
class RawData:
    """The data sets of a run, as they are on the disk."""

    train: DataSet
    val: DataSet | None


@dataclass(frozen=True, eq=False)
class RunData:
    """The samples of a run.

    train        to train on
    val          encoded, for the validation loss; None without validation data
    shown        layouts to draw for validation images
    shown_texts  embeddings of their captions
    """

    train: TrainingSet
    val: list[EncodedSample] | None
    shown: list[Layout]
    shown_texts: dict[TextKey, Tensor]


def open_data(config: Config) -> RawData:
    """Open the configured data sets, by `type` or by the published class path. Raises UserError."""
    train, val = (data_set_name(section.type, section.target) for section in (config.data.train, config.data.val))
    if train is None:
        raise UserError("data.train.type: no data set chosen; for example --data.train.type=shapes")
    return RawData(
        train=open_data_set(train, config.data.train.params, config.data.on_error),
        val=open_data_set(val, config.data.val.params, config.data.on_error) if val else None,
    )


# Numbers of the samples that a run reads, ascending; it gets the samples without their caches.
Planned = Callable[[TrainingSet], np.ndarray]


def load_data(raw: RawData, config: Config, base: Base, process: Process, planned: Planned | None = None) -> RunData:
    """Count tokens, fill the configured caches, encode what validation needs.

    Caches get the samples of `planned`; all without it, or with trainer.cache=all.

    Afterwards the base has lost its text encoders if all embeddings are cached, all but that of pooled vectors if only
    class names are ever read, and its VAE is on the CPU if latents are cached: only validation images still need it.
    """
    sources = DataSources(config, base, process)
    train = sources.training_set(raw.train, planned if config.trainer.cache == "plan" else None)
    val, shown = None, []
    if raw.val is not None:
        val = sources.samples(raw.val, min(config.trainer.num_validation_samples, len(raw.val)))
        wanted = config.trainer.num_validation_images
        if wanted > len(raw.val):
            warnings.warn(
                f"trainer.num_validation_images: {wanted} images wanted, but data.val has {len(raw.val)} samples",
                stacklevel=2,
            )
        shown = _first_layouts(raw.val, wanted, config.data.on_error == "skip")
    prompts = [base.caption_keys(layout.caption, layout.captions, config.model.condition) for layout in shown]
    shown_texts = dict(base.encode_text(list({key for prompt in prompts for key in prompt})))
    _let_go(base, raw.train, config)
    return RunData(train, val, shown, shown_texts)


def _first_layouts(data: DataSet, count: int, skips: bool) -> list[Layout]:
    """Read the layouts of the first `count` usable samples."""
    found: list[Layout] = []
    for index in range(len(data)):
        if len(found) == count:
            break
        try:
            found.append(data[index].layout)
        except SampleError as error:
            is_usable(error, skips, "validation images")
    return found


def _let_go(base: Base, train: DataSet, config: Config) -> None:
    """Remove the networks that caches replace."""
    cached = config.trainer.cache_text
    if cached == "all":
        base.release_text_encoders()
    elif cached == "classes" and isinstance(train, ClosedSet):
        base.release_text_encoders(but_pooled=True)
    if config.trainer.cache_latents:
        base.release_image_encoder()
    clear_device_cache(garbage_collection=True)


class DataSources:
    """The config's choices of counting, caching, reading and encoding, applied to any data set.

    Raises UserError if the configured sizes do not suit the token grids.
    """

    def __init__(self, config: Config, base: Base, process: Process):
        self.config, self.options, self.settings = config, config.trainer, config.model.condition
        self.base, self.process = base, process
        patch = base.geometry.pixels_per_token
        if config.data.aspect == "stretch":
            size_in_tokens((config.resolution, config.resolution), patch, self.settings.cond_scale_factor)
        self.preparation = Preparation(config.resolution, config.data.aspect, patch, self.settings)
        self.skips, self.workers = config.data.on_error == "skip", config.dataloader_num_workers

    def training_set(self, data: DataSet, planned: Planned | None = None) -> TrainingSet:
        """Count all samples of `data`, and cache all or those of `planned`, for training on them."""
        counts = self.counts(data)
        indices = range(len(data))
        if planned and (self.options.cache_latents or self.options.cache_text == "all"):
            uncached = Reader(data, self.preparation, None, None), Encoder(self.base, self.settings, {}, False)
            indices = planned(TrainingSet(*uncached, counts, self.skips, self.workers)).tolist()
            if self.process.is_first and len(indices) < counts.usable.sum():
                tqdm.write(
                    f"caches: {len(indices):,} of {len(data):,} samples are encoded, all that this run's steps read; "
                    "trainer.cache=all encodes every sample"
                )
        reader, encode = self._reading(data, indices, counts)
        return TrainingSet(reader, encode, counts, self.skips, self.workers)

    def samples(self, data: DataSet, count: int) -> list[EncodedSample]:
        """Encode the first `count` samples into memory.

        They are cached as well, for a faster next start.
        """
        reader, encode = self._reading(data, range(count), None)
        encoded = []
        for (read,) in read_ahead(reader, [[index] for index in range(count)], self.workers):
            encoded += encode([read]) if is_usable(read, self.skips, "validation") else []
        return encoded

    def counts(self, data: DataSet) -> TokenCounts:
        """Count the tokens of all samples."""
        patch = self.preparation.patch
        rows = read_or_count(data, self.base.tokenizer, patch, self.config, self.process)
        return TokenCounts.of(rows, self.settings, patch)

    def _reading(self, data: DataSet, indices: Sequence[int], counts: TokenCounts | None) -> tuple[Reader, Encoder]:
        """Make the reader of the samples `indices` and their encoder.

        Complete their caches first.
        """
        latents = self._latents(data, indices, counts) if self.options.cache_latents else None
        names = self._class_names(data) if self.options.cache_text != "none" else {}
        texts = self._texts(data, indices, counts, latents, names) if self.options.cache_text == "all" else None
        drops = self.options.caption_dropout > 0
        return Reader(data, self.preparation, latents, texts), Encoder(self.base, self.settings, names, drops)

    def _latents(self, data: DataSet, indices: Sequence[int], counts: TokenCounts | None) -> Store:
        """Complete the cache of latents of the samples `indices`."""
        fingerprint = cache.latents_fingerprint(data.fingerprint(), self.preparation, self.base)
        store = cache.open_store(self.options.cache_dir, "latents", fingerprint)
        keys = [latents_key(data, index) for index in indices]
        with_std = self.settings.vae_posterior == "sample"
        if counts:
            width = self.base.geometry.channels * (2 if with_std else 1)
            self._announce(store, keys, int((counts.image + counts.condition)[indices].sum()) * width * 2, "latents")
        make = cache.make_latents(
            Reader(data, self.preparation, None, None), self.base, with_std, self.skips, self.workers
        )
        cache.complete(store, keys, cache.of_some(indices, make), "encode images", self.process)
        return store

    def _texts(
        self,
        data: DataSet,
        indices: Sequence[int],
        counts: TokenCounts | None,
        latents: Store | None,
        names: dict[TextKey, Tensor],
    ) -> Store:
        """Complete the cache of embeddings of the samples `indices`."""
        store = self._text_store(data)
        keys = [key_of(data.key(index)) for index in indices]
        if counts:
            pooled = 2 * len(keys) * self.base.geometry.pooled_width
            rows = 0 if names else int(counts.text[indices].sum()) * self.base.geometry.text_width
            self._announce(store, keys, 2 * (rows + pooled), "text embeddings")
        make = cache.make_texts(
            Reader(data, self.preparation, latents, None),
            *(self.base, names, self.options.cache_batch_size, self.skips, self.workers),
        )
        cache.complete(store, keys, cache.of_some(indices, make), "encode captions", self.process)
        return store

    def _class_names(self, data: DataSet) -> dict[TextKey, Tensor]:
        """Return the embeddings of a closed set's class names; an open set has none."""
        if not isinstance(data, ClosedSet):
            return {}
        names = list(dict.fromkeys(data.class_captions))
        with_regions = self.settings.override({"attention_mask_method": "base"})  # plain settings would drop them
        wanted = list(self.base.caption_keys(None, names, with_regions).regions)
        store = self._text_store(data)

        def make(_: Sequence[int]):
            known: dict[TextKey, Tensor] = {}
            add_embeddings(known, wanted, self.base)
            yield 0, {str(n): known[key].numpy() for n, key in enumerate(wanted)}

        key = key_of("class names", *wanted)
        cache.complete(store, [key], make, "encode class names", self.process)
        return texts_of_entry(wanted, store.read(key))

    def _text_store(self, data: DataSet) -> Store:
        fingerprint = cache.texts_fingerprint(data.fingerprint(), self.settings, self.base)
        return cache.open_store(self.options.cache_dir, "texts", fingerprint)

    def _announce(self, store: Store, keys: list[bytes], n_bytes: int, what: str) -> None:
        """Check that the disk has room for what is missing, and print its size."""
        missing = len(store.missing(keys))
        if missing:
            line = cache.check_space(store, n_bytes * missing // len(keys), what)
            if self.process.is_first:
                tqdm.write(line)
