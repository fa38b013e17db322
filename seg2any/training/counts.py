"""How many tokens every training sample has, before any of them is encoded: from the bucket map, or counted now."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.attention.settings import ConditionSettings
from seg2any.data.bucket_map import SCHEMA, UNUSABLE, BucketMap, map_path, origin_of
from seg2any.data.catalog import DataSet, data_set_name
from seg2any.data.count_map import Parts, count_map, number_of_workers
from seg2any.data.count_rows import RowCounter, open_map
from seg2any.data.unreadable import check_unreadable
from seg2any.system.processes import PATIENCE, Process, wait_for_others
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


def read_or_count(
    data: DataSet, tokenizer: object, patch: int, config: Config, process: Process, patience: float = PATIENCE
) -> BucketMap:
    """Read the bucket map if `is_group_bucket` is on; else count with all processes together, and keep it in the cache.

    Warns of samples that cannot be read. Raises UserError for a map that is missing or belongs to other data or other
    settings, and for samples as `check_unreadable` does.
    """
    if config.data.train.params.get("is_group_bucket"):
        path, rows = map_path(config), open_map(data, tokenizer, patch, config)
    else:
        origin = origin_of(data, tokenizer, patch, config)
        counter = RowCounter(data, tokenizer, origin, config.data.on_error)
        path, rows = _count_all(counter, config.trainer.cache_dir, process, patience)
    check_unreadable(data_set_name(config.data.train) or "train", data, rows, path, config.data.on_error)
    return rows


def _count_all(counter: RowCounter, cache_dir: str | None, process: Process, patience: float) -> tuple[Path, BucketMap]:
    origin, workers, shows = counter.origin, number_of_workers(None, Process.of(os.environ)), process.is_first
    if not cache_dir:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "lengths.parquet"
            count_map(path, counter, Process(), workers, shows)
            return path, BucketMap.read(path, origin)
    path = Path(cache_dir) / f"lengths-{origin.digest[:16]}.parquet"
    parts = Parts(path, origin)

    def left() -> int:
        """Parts that nobody has counted, and the step of putting them together."""
        return 0 if parts.is_finished() else 1 + len(parts.missing(parts.ranges))

    count_map(path, counter, process, workers, shows)
    wait_for_others(left, lambda: count_map(path, counter, Process(), workers, shows), patience)
    return path, BucketMap.read(path, origin)


def count_some(data: DataSet, indices: Sequence[int], tokenizer: object, patch: int, config: Config) -> BucketMap:
    """Of some samples only, not kept."""
    table = RowCounter(data, tokenizer, origin_of(data, tokenizer, patch, config), config.data.on_error)(indices)
    return BucketMap(**{name: table[name].to_numpy() for name in SCHEMA.names if name != "key"})
