"""Count the tokens of training samples before encoding any, or read the bucket map."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.attention.settings import ConditionSettings
from seg2any.data.bucket_map import SCHEMA, UNUSABLE, BucketMap, Origin, map_name
from seg2any.data.catalog import data_set_name
from seg2any.data.count import Parts, RowCounter, make_map
from seg2any.data.dataset import DataSet
from seg2any.data.left_out import check_unreadable
from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE, PATIENCE, Process, wait_for_others
from seg2any.system.weights import tokenizer_digest
from seg2any.training.config import Config


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """Token counts of n samples.

    text        int [n], cut at the limits; of a published bucket map, uncut
    text_uncut  int [n], decides the published length classes
    image, condition  int [n]
    size        int [n, 2]: height and width in pixels
    usable      bool [n]: False for samples that are left out of training
    """

    text: np.ndarray
    text_uncut: np.ndarray
    image: np.ndarray
    condition: np.ndarray
    size: np.ndarray
    usable: np.ndarray

    @classmethod
    def of(cls, rows: BucketMap, settings: ConditionSettings, patch: int) -> TokenCounts:
        """Convert a map's counts to these settings.

        The map counts kept condition tokens and unpadded text; other settings read more or less of both.
        """
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
    """Read the bucket map if `is_group_bucket` is on.

    Else count with all processes together, and keep it in the cache.

    Warns of samples that cannot be read. Raises UserError for a map that is missing or belongs to other data or other
    settings, and for samples as `check_unreadable` does.
    """
    if config.data.train.params.get("is_group_bucket"):
        path, rows = map_path(config), open_map(data, tokenizer, patch, config)
    else:
        origin = origin_of(data, tokenizer, patch, config)
        counter = RowCounter(data, tokenizer, origin, config.data.on_error)
        path, rows = _count_all(counter, config.trainer.cache_dir, process, patience)
    section = config.data.train
    name = data_set_name(section.type, section.target) or "train"
    check_unreadable(name, data, rows, path, config.data.on_error)
    return rows


def _count_all(counter: RowCounter, cache_dir: str | None, process: Process, patience: float) -> tuple[Path, BucketMap]:
    origin, workers, shows = counter.origin, process.cores, process.is_first
    if not cache_dir:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "lengths.parquet"
            make_map(path, counter, ALONE, workers, shows)
            return path, BucketMap.read(path, origin)
    path = Path(cache_dir) / f"lengths-{origin.digest[:16]}.parquet"
    parts = Parts(path, origin)

    def left() -> int:
        """Number of parts that nobody has counted, plus one for putting them together."""
        return 0 if parts.is_finished() else 1 + len(parts.missing(parts.ranges))

    make_map(path, counter, process, workers, shows)
    wait_for_others(left, lambda: make_map(path, counter, ALONE, workers, shows), patience)
    return path, BucketMap.read(path, origin)


def map_path(config: Config) -> Path:
    """Return where the bucket map of the training data lies, under its published name.

    The folder is `data.train.params.cache_root`, or for data sets without one `trainer.cache_dir`. Raises UserError if
    neither is given.
    """
    root = config.data.train.params.get("cache_root") or config.trainer.cache_dir
    if root is None:
        raise UserError("data.train.params.cache_root: missing; name the folder of the bucket map")
    if not isinstance(root, (str, Path)):
        raise UserError(f"data.train.params.cache_root: {root!r} is not a path; name the folder of the bucket map")
    return Path(root) / map_name(config.resolution // config.model.condition.cond_scale_factor)


def origin_of(data: DataSet, tokenizer: object, patch: int, config: Config) -> Origin:
    """Return what a bucket map of `data` depends on.

    `tokenizer` is that of captions, `patch` the pixels per token side.

    Raises UserError for sizes that hold no token.
    """
    settings = config.model.condition
    if config.resolution // settings.cond_scale_factor < patch:
        raise UserError(
            f"resolution: {config.resolution} with cond_scale_factor {settings.cond_scale_factor} is less than one "
            f"token of {patch} pixels; raise resolution, or lower cond_scale_factor"
        )
    return Origin(
        rows=len(data),
        annotations=data.fingerprint(),
        tokenizer=tokenizer_digest(tokenizer),
        resolution=config.resolution,
        cond_scale_factor=settings.cond_scale_factor,
        aspect=config.data.aspect,
        patch=patch,
        max_sequence_length=settings.max_sequence_length,
        regional_max_sequence_length=settings.regional_max_sequence_length,
    )


def open_map(data: DataSet, tokenizer: object, patch: int, config: Config) -> BucketMap:
    """Read the bucket map of a run's training data. Raises and warns as `BucketMap.read` does."""
    origin = origin_of(data, tokenizer, patch, config)
    rows = getattr(data, "rows", None)  # a published map also has a row for the rows of SACap-1M that are left out
    return BucketMap.read(map_path(config), origin, RowCounter(data, tokenizer, origin), rows)


def count_some(data: DataSet, indices: Sequence[int], tokenizer: object, patch: int, config: Config) -> BucketMap:
    """Count some samples only, and keep nothing."""
    table = RowCounter(data, tokenizer, origin_of(data, tokenizer, patch, config), config.data.on_error)(indices)
    return BucketMap(**{name: table[name].to_numpy() for name in SCHEMA.names if name != "key"})
