"""How many tokens every training sample has, before any of them is encoded: from the bucket map, or counted now."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.attention.settings import ConditionSettings
from seg2any.data.bucket_map import SCHEMA, UNUSABLE, BucketMap, map_path, origin_of
from seg2any.data.catalog import DataSet, data_set_name
from seg2any.data.count_map import Parts, Share, count_map, number_of_workers
from seg2any.data.count_rows import RowCounter, open_map
from seg2any.data.unreadable import check_unreadable
from seg2any.training.cache import Crew
from seg2any.training.config import Config


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """Of n samples.

    text        int [n], as far as it is read; of a published bucket map, all of it
    text_uncut  int [n], what the published length classes go by
    image, condition  int [n]
    size        int [n, 2]: height and width in pixels
    usable      bool [n]: the others are not to be trained on
    """

    text: np.ndarray
    text_uncut: np.ndarray
    image: np.ndarray
    condition: np.ndarray
    size: np.ndarray
    usable: np.ndarray

    @classmethod
    def of(cls, rows: BucketMap, settings: ConditionSettings, patch: int) -> TokenCounts:
        """The map counts kept condition tokens and unpadded text; other settings read more or less of both."""
        size = np.stack([rows.height, rows.width], axis=1).astype(np.int64)
        text, condition = rows.txt_len_trunc.astype(np.int64), rows.cond_seq_len.astype(np.int64)
        if not settings.is_filter_cond_token:
            condition = (size // (settings.cond_scale_factor * patch)).prod(axis=1)
        if settings.is_plain:
            text = np.full_like(text, settings.max_sequence_length)
        if settings.is_plain or not settings.is_use_cond_token:
            condition = np.zeros_like(condition)
        image, usable = (size // patch).prod(axis=1), (rows.flags & UNUSABLE) == 0
        return cls(text, rows.txt_seq_len.astype(np.int64), image, condition, size, usable)

    @property
    def buckets(self) -> np.ndarray:
        """int [n]: a number for each size that occurs."""
        return np.unique(self.size, axis=0, return_inverse=True)[1].reshape(-1)


def read_or_count(data: DataSet, tokenizer: object, patch: int, config: Config, crew: Crew) -> BucketMap:
    """The bucket map if `is_group_bucket` is on; else counted by all processes together, and kept in the cache.

    Warns of samples that cannot be read. Raises UserError for a map that is missing or is not of this data and these
    settings, and for samples as `check_unreadable` does.
    """
    path, rows = _rows(data, tokenizer, patch, config, crew)
    check_unreadable(data_set_name(config.data.train) or "train", data, rows, path, config.data.on_error)
    return rows


def _rows(data: DataSet, tokenizer: object, patch: int, config: Config, crew: Crew) -> tuple[Path, BucketMap]:
    if config.data.train.params.get("is_group_bucket"):
        return map_path(config), open_map(data, tokenizer, patch, config)
    origin = origin_of(data, tokenizer, patch, config)
    counter = RowCounter(data, tokenizer, origin, config.data.on_error)
    workers, is_quiet = number_of_workers(None, os.environ), crew.rank > 0  # nothing else runs yet
    if not config.trainer.cache_dir:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "lengths.parquet"
            count_map(path, counter, Share(), workers, not is_quiet)
            return path, BucketMap.read(path, origin)
    path = Path(config.trainer.cache_dir) / f"lengths-{origin.digest[:16]}.parquet"
    count_map(path, counter, Share(crew.rank, crew.world), workers, not is_quiet)
    parts = Parts(path, origin)
    left, since = None, time.monotonic()
    while not parts.is_finished():
        time.sleep(min(0.2, crew.patience))
        if (now := len(parts.missing(parts.ranges))) != left:
            left, since = now, time.monotonic()
        elif time.monotonic() - since > crew.patience:
            count_map(path, counter, Share(), workers, not is_quiet)
    return path, BucketMap.read(path, origin)


def count_some(data: DataSet, indices: Sequence[int], tokenizer: object, patch: int, config: Config) -> BucketMap:
    """Of some samples only, not kept."""
    table = RowCounter(data, tokenizer, origin_of(data, tokenizer, patch, config), config.data.on_error)(indices)
    return BucketMap(**{name: table[name].to_numpy() for name in SCHEMA.names if name != "key"})
