"""How the samples of one run are counted, cached, read and encoded: the config's choices, made once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from tqdm.auto import tqdm

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.flux1.latents import pixels_per_token
from seg2any.bases.flux1.text import TextKey
from seg2any.data.dataset import ClosedSet, DataSet
from seg2any.diffusion.prepare import size_in_tokens
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.system.processes import PATIENCE, Process
from seg2any.training import cache
from seg2any.training.config import Config
from seg2any.training.counts import TokenCounts, read_or_count
from seg2any.training.encoded import EncodedSample, add_embeddings, texts_of_entry
from seg2any.training.reader import Preparation, Reader, latents_key, read_ahead
from seg2any.training.source import LiveEncoder, Source, is_usable
from seg2any.training.store import Store, key_of


class Loading:
    """Makes sources of samples. Raises UserError if the configured sizes do not suit the token grids."""

    def __init__(
        self,
        config: Config,
        pipeline: Seg2AnyPipeline,
        settings: ConditionSettings,
        process: Process,
        patience: float = PATIENCE,
    ):
        self.config, self.options = config, config.trainer
        self.pipeline, self.settings, self.process, self.patience = pipeline, settings, process, patience
        patch = pixels_per_token(pipeline.vae)
        if config.data.aspect == "stretch":
            size_in_tokens((config.resolution, config.resolution), pipeline.vae, settings.cond_scale_factor)
        self.preparation = Preparation(config.resolution, config.data.aspect, patch, settings)
        self.skips, self.workers = config.data.on_error == "skip", config.dataloader_num_workers

    def source(self, data: DataSet) -> Source:
        """What to train on, cached as the config says."""
        counts = self.counts(data)
        reader, encode = self._reading(data, len(data), counts)
        return Source(reader, encode, counts, self.skips, self.workers)

    def samples(self, data: DataSet, count: int) -> list[EncodedSample]:
        """The first samples, encoded, in memory; cached as well, so that the next start is faster."""
        reader, encode = self._reading(data, count, None)
        encoded = []
        for (read,) in read_ahead(reader, [[index] for index in range(count)], self.workers):
            encoded += encode([read]) if is_usable(read, self.skips, "validation") else []
        return encoded

    def counts(self, data: DataSet) -> TokenCounts:
        """Tokens of all samples."""
        patch = self.preparation.patch
        rows = read_or_count(data, self.pipeline.tokenizer_2, patch, self.config, self.process, self.patience)
        return TokenCounts.of(rows, self.settings, patch)

    def _reading(self, data: DataSet, count: int, counts: TokenCounts | None) -> tuple[Reader, LiveEncoder]:
        """The reader of the first `count` samples and what encodes them; their caches are complete after this."""
        latents = self._latents(data, count, counts) if self.options.cache_latents else None
        names = self._class_names(data) if self.options.cache_text != "none" else {}
        texts = self._texts(data, count, counts, latents, names) if self.options.cache_text == "all" else None
        drops = self.options.caption_dropout > 0
        return Reader(data, self.preparation, latents, texts), LiveEncoder(self.pipeline, self.settings, names, drops)

    def _latents(self, data: DataSet, count: int, counts: TokenCounts | None) -> Store:
        fingerprint = cache.latents_fingerprint(data.fingerprint(), self.preparation, self.pipeline)
        store = cache.open_store(self.options.cache_dir, "latents", fingerprint)
        keys = [latents_key(data, index) for index in range(count)]
        with_std = self.settings.vae_posterior == "sample"
        if counts:
            width = 4 * self.pipeline.vae.config.latent_channels * (2 if with_std else 1)
            self._announce(store, keys, int((counts.image + counts.condition).sum()) * width * 2, "latents")
        make = cache.make_latents(
            Reader(data, self.preparation, None, None), self.pipeline, with_std, self.skips, self.workers
        )
        self._complete(store, keys, make, "encode images")
        return store

    def _texts(
        self,
        data: DataSet,
        count: int,
        counts: TokenCounts | None,
        latents: Store | None,
        names: dict[TextKey, Tensor],
    ) -> Store:
        store = self._text_store(data)
        keys = [key_of(data.key(index)) for index in range(count)]
        if counts:
            pooled = 2 * len(keys) * self.pipeline.text_encoder.config.hidden_size
            rows = 0 if names else int(counts.text.sum()) * self.pipeline.text_encoder_2.config.d_model
            self._announce(store, keys, 2 * (rows + pooled), "text embeddings")
        make = cache.make_texts(
            Reader(data, self.preparation, latents, None),
            *(self.pipeline, names, self.options.cache_batch_size, self.skips, self.workers),
        )
        self._complete(store, keys, make, "encode captions")
        return store

    def _class_names(self, data: DataSet) -> dict[TextKey, Tensor]:
        """T5's embeddings of a closed set's class names; none of an open set."""
        if not isinstance(data, ClosedSet):
            return {}
        limit = self.settings.regional_max_sequence_length
        wanted = [TextKey(caption, limit, "t5") for caption in dict.fromkeys(data.class_captions)]
        store = self._text_store(data)

        def make(_: Sequence[int]):
            known: dict[TextKey, Tensor] = {}
            add_embeddings(known, wanted, self.pipeline)
            yield 0, {str(n): known[key].numpy() for n, key in enumerate(wanted)}

        key = key_of("class names", *wanted)
        self._complete(store, [key], make, "encode class names")
        return texts_of_entry(wanted, store.read(key))

    def _text_store(self, data: DataSet) -> Store:
        fingerprint = cache.texts_fingerprint(data.fingerprint(), self.settings, self.pipeline)
        return cache.open_store(self.options.cache_dir, "texts", fingerprint)

    def _complete(self, store: Store, keys: list[bytes], make: cache.Make, what: str) -> None:
        cache.complete(store, keys, make, what, self.process, self.patience)

    def _announce(self, store: Store, keys: list[bytes], n_bytes: int, what: str) -> None:
        missing = len(store.missing(keys))
        if missing:
            line = cache.check_space(store, n_bytes * missing // len(keys), what)
            if self.process.is_first:
                tqdm.write(line)
