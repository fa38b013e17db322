"""A data set and a tokenizer that are cheap to count and to send to other processes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from seg2any.attention.settings import ConditionSettings
from seg2any.data.count import RowCounter
from seg2any.data.dataset import Annotation, MaskStack, SampleError
from seg2any.training import config
from seg2any.training.token_counts import origin_of


@dataclass(frozen=True)
class Squares:
    """Data set of squares with captions that are cheap to count.

    Sample i has squares of i % 5 + 1 pixels on 32 x 32 and captions of i % 7 + 1 words. Some have a global caption.

        seconds  delay of reading one annotation
        broken   indices whose annotation cannot be read
        empty    indices with a region that has no pixel
    """

    n: int
    seconds: float = 0.0
    broken: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.n

    def key(self, index: int) -> str:
        return f"square_{index}"

    def annotation(self, index: int) -> Annotation:
        time.sleep(self.seconds)
        if index in self.broken:
            raise SampleError(f"{self.key(index)}.json: is damaged")
        stack = np.zeros((1 + (index in self.empty), 32, 32), bool)
        stack[0, 3 : 4 + index % 5, index % 16 : index % 16 + index % 5 + 1] = True
        words = ("word " * (index % 7 + 1)).strip()
        return Annotation(self.key(index), MaskStack(stack), (words,) * len(stack), None if index % 3 else words)

    def fingerprint(self) -> str:
        return f"{self.n:064d}"


class Words:
    """Tokenizer with one token per word, followed by `</s>`."""

    def __call__(self, texts: list[str] | str, **options) -> SimpleNamespace:
        if isinstance(texts, str):
            return SimpleNamespace(input_ids=[1] * (len(texts.split()) + 1))
        return SimpleNamespace(input_ids=[[1] * (len(text.split()) + 1) for text in texts])

    def get_vocab(self) -> dict[str, int]:
        return {"word": 1}


def squares_config(cache: Path) -> config.Config:
    """Return a config of 64 px, condition 32 px, at most 6 global and 4 regional text tokens."""
    settings = config.Config(resolution=64)
    settings.data.train.params["cache_root"] = str(cache)
    settings.model.condition = ConditionSettings(
        cond_scale_factor=2, max_sequence_length=6, regional_max_sequence_length=4
    )
    return settings


def squares_counter(data: Squares, settings: config.Config, on_error: str = "skip") -> RowCounter:
    return RowCounter(data, Words(), origin_of(data, Words(), 16, settings), on_error)
