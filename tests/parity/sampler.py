"""Compare length classes and sampler order with the published ones, index by index."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from examples.shapes.make.build import build_t5_tokenizer
from seg2any.data.bucket_map import Origin
from seg2any.data.catalog import open_data_set
from seg2any.data.count import RowCounter
from seg2any.data.sampler import LengthBatches, PublishedBatches, published_length_class
from seg2any.system.processes import Process
from tests.synthetic_data import make_sacap_1m


def cases(root: Path) -> dict[str, Callable[[], None]]:
    recorded = _recorded(root)
    found = {}
    for number, table in enumerate(recorded.get("tables", [])):
        found[f"tables/{number}/flag"] = partial(_check_flags, table)
        if table.get("runs"):
            found[f"tables/{number}/runs"] = partial(_check_runs, table)
    checks = {"non_pad": _check_shares, "accelerate_set_epoch": _check_epochs, "sacap_bucket": _check_sacap_is_counted}
    return found | {name: partial(check, recorded[name]) for name, check in checks.items() if name in recorded}


def _recorded(root: Path) -> dict:
    path = root / "sampler" / "sampler.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _lengths(table: dict) -> np.ndarray:
    return np.stack([table["txt_seq_len"], table["cond_seq_len"]], axis=1)


def _check_flags(table: dict) -> None:
    lengths = zip(table["cond_seq_len"], table["txt_seq_len"], strict=True)
    assert [published_length_class(cond, text) for cond, text in lengths] == table["flag"]


def _check_runs(table: dict) -> None:
    """Compare the whole sequence, and the part that accelerate gives to every rank."""
    for run in table["runs"]:
        ranks = [
            PublishedBatches(_lengths(table), run["batch_size"], run["seed"], Process(rank, run["world"]))
            for rank in range(run["world"])
        ]
        assert ranks[0].epoch(run["epoch"]).ravel().tolist() == run["indices"]
        assert ranks[0].batches_per_epoch * run["batch_size"] * run["world"] == run["len"]
        for rank, batches in zip(ranks, run["rank_batches"], strict=True):
            rank.set_epoch(run["epoch"])
            assert [next(rank) for _ in range(rank.batches_per_epoch)] == batches


def _check_shares(recorded: list[dict]) -> None:
    for case in recorded:
        shares = [list(Process(rank, case["world"]).consecutive_share(case["n"])) for rank in range(case["world"])]
        assert shares == case["per_rank"]


def _check_epochs(recorded: dict) -> None:
    """Check that epochs differ at any number of ranks.

    With several processes all epochs of the published sampler are the same.
    """
    for world, found in recorded.items():
        assert found["epoch0_equals_epoch1"] == (int(world.removeprefix("world=")) > 1), world
    lengths = np.stack([np.arange(40) * 9, np.arange(40)], axis=1)
    for make in (PublishedBatches, LengthBatches):
        for world in (1, 2, 3):
            for rank in range(world):
                batches = make(lengths, 2, process=Process(rank, world))
                first = [next(batches) for _ in range(batches.batches_per_epoch)]
                batches.set_epoch(1)
                assert first != [next(batches) for _ in range(batches.batches_per_epoch)]


def _check_sacap_is_counted(recorded: str) -> None:
    """Check that SACap-1M can be counted for its bucket map; the published code cannot."""
    assert "has no attribute" in recorded
    with tempfile.TemporaryDirectory() as folder:
        made = make_sacap_1m(Path(folder), n=3)
        data = open_data_set("sacap_1m", made.params)
        rows = RowCounter(data, build_t5_tokenizer(), Origin(3, "", "", 64, 1, "stretch", 16, 512, 50))([0, 1, 2])
    assert rows["key"].to_pylist() == [truth.key for truth in made.truths]
    assert all(0 < count <= 16 for count in rows["cond_seq_len"].to_pylist())
    assert all(
        count > 1 + len(truth.captions)
        for count, truth in zip(rows["txt_seq_len"].to_pylist(), made.truths, strict=True)
    )
