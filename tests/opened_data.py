"""Open a data set and inspect what it reports."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from seg2any.data.catalog import open_data_set
from seg2any.data.dataset import DataSet
from seg2any.data.left_out import LeftOutWarning
from seg2any.system.errors import UserError
from tests import synthetic_data
from tests.synthetic_data import Synthetic


def keys(data: DataSet) -> list[str]:
    return [data.key(n) for n in range(len(data))]


def refused(name: str, params: dict, on_error: str = "skip") -> str:
    """Return the one-line message with which opening the data set, or reading all of it, fails."""
    with pytest.raises(UserError) as caught, warnings.catch_warnings():
        warnings.simplefilter("error", LeftOutWarning)
        data = open_data_set(name, params, on_error)
        [data[n] for n in range(len(data))]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def skipping(name: str, params: dict) -> DataSet:
    with pytest.warns(LeftOutWarning, match="samples are left out; the first is"):
        return open_data_set(name, params)


def rewrite(made: Synthetic, change: Callable[[list[dict]], list[dict]]) -> None:
    """Apply a change to the rows of a synthetic SACap parquet file."""
    path = Path(made.params["seg_caption_path"])
    synthetic_data.write_sacap_parquet(path, change(pq.read_table(path).to_pylist()))
