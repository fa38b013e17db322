"""Count, cache, read and encode the samples of a data set as the config says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor
from tqdm.auto import tqdm

from seg2any.bases.base import Base
from seg2any.bases.text import TextKey
from seg2any.data.dataset import ClosedSet, DataSet
from seg2any.diffusion.prepare import size_in_tokens
from seg2any.system.processes import Process
from seg2any.training import cache
from seg2any.training.batches import Encoder, TrainingSet, is_usable
from seg2any.training.config import Config
from seg2any.training.first_use import FirstUse
from seg2any.training.reading import Preparation, Reader, latents_key, read_ahead, texts_key
from seg2any.training.samples import EncodedSample, add_embeddings, texts_of_entry
from seg2any.training.store import Store, key_of
from seg2any.training.task import Plan
from seg2any.training.token_counts import TokenCounts, read_or_count


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

    def training_set(self, data: DataSet) -> TrainingSet:
        """Count all samples of `data` for training on them, and open their caches as they are.

        Class names are encoded if that is configured.
        """
        reader, encode = self._reading(data)
        return TrainingSet(reader, encode, self.counts(data), self.skips, self.workers)

    def samples(self, data: DataSet, count: int) -> list[EncodedSample]:
        """Encode the first `count` samples into memory.

        They are cached as well, for a faster next start.
        """
        reader, encode = self._reading(data)
        self._complete(reader, encode.known, range(count))
        encoded = []
        for (read,) in read_ahead(reader, [[index] for index in range(count)], self.workers):
            encoded += encode([read]) if is_usable(read, self.skips, "validation") else []
        return encoded

    def counts(self, data: DataSet) -> TokenCounts:
        """Count the tokens of all samples."""
        patch = self.preparation.patch
        rows = read_or_count(data, self.base.tokenizer, patch, self.config, self.process)
        return TokenCounts.of(rows, self.settings, patch)

    def complete(self, train: TrainingSet, indices: Sequence[int]) -> None:
        """Encode those of the samples `indices` that the caches lack, together with the other processes."""
        self._announce(train, indices)
        self._complete(train.reader, train.encode.known, indices)

    def complete_on_first_use(self, train: TrainingSet, plan: Plan, finished: Callable[[], None]) -> None:
        """Let each step encode the samples that the caches lack; `finished` is called after the last of them."""
        self._announce(train, plan.all.tolist())
        train.fill = FirstUse(
            *(train.reader, self.base, train.encode.known, plan.own.tolist(), finished), not self.process.is_first
        )
        if not train.fill.waiting:
            finished()

    def _reading(self, data: DataSet) -> tuple[Reader, Encoder]:
        """Make the reader of all samples and their encoder, with the caches as they are."""
        latents = texts = None
        if self.options.cache_latents:
            fingerprint = cache.latents_fingerprint(data.fingerprint(), self.preparation, self.base)
            latents = cache.open_store(self.options.cache_dir, "latents", fingerprint)
        if self.options.cache_text == "all":
            texts = self._text_store(data)
        names = self._class_names(data) if self.options.cache_text != "none" else {}
        drops = self.options.caption_dropout > 0
        return Reader(data, self.preparation, latents, texts), Encoder(self.base, self.settings, names, drops)

    def _complete(self, reader: Reader, names: Mapping[TextKey, Tensor], indices: Sequence[int]) -> None:
        data, skips, workers = reader.data, self.skips, self.workers
        if reader.latents:
            with_std = self.settings.vae_posterior == "sample"
            make = cache.make_latents(Reader(data, self.preparation, None, None), self.base, with_std, skips, workers)
            keys = [latents_key(data, index) for index in indices]
            cache.complete(reader.latents, keys, cache.of_some(indices, make), "encode images", self.process)
        if reader.texts:
            captions = Reader(data, self.preparation, reader.latents, None)
            make = cache.make_texts(captions, self.base, names, self.options.cache_batch_size, skips, workers)
            keys = [texts_key(data, index) for index in indices]
            cache.complete(reader.texts, keys, cache.of_some(indices, make), "encode captions", self.process)

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

    def _announce(self, train: TrainingSet, indices: Sequence[int]) -> None:
        """Check that the disk has room for what is missing of the samples `indices`, and print its size."""
        reader, geometry, counts = train.reader, self.base.geometry, train.counts
        if reader.latents:
            width = geometry.channels * (2 if self.settings.vae_posterior == "sample" else 1)
            keys = [latents_key(reader.data, index) for index in indices]
            n_bytes = 2 * width * int((counts.image + counts.condition)[indices].sum())
            self._announce_one(reader.latents, keys, n_bytes, "latents")
        if reader.texts:
            rows = 0 if train.encode.known else int(counts.text[indices].sum()) * geometry.text_width
            keys = [texts_key(reader.data, index) for index in indices]
            n_bytes = 2 * (rows + len(keys) * geometry.pooled_width)
            self._announce_one(reader.texts, keys, n_bytes, "text embeddings")

    def _announce_one(self, store: Store, keys: list[bytes], n_bytes: int, what: str) -> None:
        missing = len(store.missing(keys))
        if missing:
            line = cache.check_space(store, n_bytes * missing // len(keys), what)
            if self.process.is_first:
                tqdm.write(line)
