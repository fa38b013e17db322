"""Measure padding in batches and repeated samples in epochs, for three samplers.

    python -m benchmarks.padding
    python -m benchmarks.padding --map data/SACap-1M/cache/512H_512W-group_bucket.parquet --image_tokens 4096

The samplers are ours (`length`), the published one, and random batches. Without a map, lengths are drawn from lognormal
distributions around the means of SACap-1M, 240 condition and 190 text tokens. Text and condition tokens are padded
separately, each to the longest of the batch; image tokens need no padding and count in full. Nothing depends on the
machine but the seconds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seg2any.data.sampler import BatchSampler, LengthBatches, PublishedBatches
from seg2any.system.console import exit_status, whole
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command
from seg2any.system.processes import Process
from seg2any.system.provenance import circumstances


class RandomBatches(BatchSampler):
    """Batches of random samples, without length classes."""

    def _classes(self) -> np.ndarray:
        return self.buckets

    @property
    def groups_per_epoch(self) -> int:
        return max(1, len(self.lengths) // self.group)

    def epoch(self, number: int) -> np.ndarray:
        order = np.random.default_rng((self.seed, number)).permutation(len(self.lengths))
        return np.resize(order, (self.groups_per_epoch, self.group))


KINDS = {"random": RandomBatches, "published": PublishedBatches, "length": LengthBatches}


def assumed_lengths(n: int, seed: int = 0) -> np.ndarray:
    """Draw text and condition tokens for n samples, int [n, 2]."""
    random = np.random.default_rng(seed)
    text, cond = random.lognormal(np.log(175), 0.4, n), random.lognormal(np.log(220), 0.42, n)
    return np.stack([text.clip(10, 1500), cond.clip(4, 1024)], axis=1).astype(np.int64)


def mapped_lengths(path: Path) -> np.ndarray:
    """Read text and condition tokens from a bucket map, int [n, 2]. Raises UserError."""
    try:
        table = pq.read_table(path, columns=["txt_seq_len", "cond_seq_len"])
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a bucket map ({reason}); give another --map") from None
    return np.stack([column.to_numpy() for column in table.columns], axis=1)


def measure(sampler: BatchSampler, image_tokens: int) -> dict[str, float]:
    """Measure one epoch: shares of padding, of repeated and left samples, and of waiting."""
    began = time.perf_counter()
    epoch = sampler.epoch(0)
    seconds = time.perf_counter() - began
    epoch = epoch.reshape(-1, sampler.process.count, sampler.batch_size)
    lengths = sampler.lengths[epoch]  # [steps, ranks, batch, 2]
    computed = sampler.batch_size * (lengths.max(axis=2).sum(axis=-1) + image_tokens)  # [steps, ranks]
    used = lengths.sum(axis=(2, 3)) + sampler.batch_size * image_tokens
    distinct, n = len(np.unique(epoch)), len(sampler.lengths)
    return {
        "padded": 1 - used.sum() / computed.sum(),
        "repeated": (epoch.size - distinct) / n,
        "left_to_later": 1 - distinct / n,
        "waiting": 1 - computed.mean() / computed.max(axis=1).mean(),
        "steps": len(epoch),
        "seconds": seconds,
    }


def table(name: str, lengths: np.ndarray, options: argparse.Namespace) -> list[dict]:
    """Print and return a row for each sampler.

    lengths  text and condition tokens, int [n, 2]
    """
    print(f"\n{name}: {len(lengths):,} samples, {options.ranks} ranks x {options.batch_size}")
    print(f"{'':10}{'padded':>9}{'repeated':>10}{'later':>8}{'waiting':>9}{'steps':>9}{'order made in':>15}")
    rows = []
    for kind, make in KINDS.items():
        row = measure(make(lengths, options.batch_size, process=Process(count=options.ranks)), options.image_tokens)
        shares = [f"{100 * row[key]:.2f} %" for key in ("padded", "repeated", "left_to_later", "waiting")]
        print(f"{kind:10}{shares[0]:>9}{shares[1]:>10}{shares[2]:>8}{shares[3]:>9}", end="")
        print(f"{row['steps']:>9,}{row['seconds']:>13.2f} s")
        rows.append({"lengths": name, "samples": len(lengths), "sampler": kind} | row)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--map", type=user_path, help="a bucket map, ours or published, instead of assumed lengths")
    parser.add_argument(
        "--samples", type=whole(1), nargs="+", default=[2_000, 20_000, 200_000], help="sizes of assumed data sets"
    )
    parser.add_argument("--image_tokens", type=whole(1), default=4096, help="per sample; 4096 at 1024 px")
    parser.add_argument("--batch_size", type=whole(1), default=4, help="per rank (default: %(default)s)")
    parser.add_argument("--ranks", type=whole(1), default=4, help="training processes (default: %(default)s)")
    options = parser.parse_args(arguments)
    return exit_status("benchmarks.padding", lambda: run(options), "start again")


def run(options: argparse.Namespace) -> None:
    """Measure; print the tables and the JSON line. Raises UserError."""
    if options.map:
        rows = table(options.map.name, mapped_lengths(options.map), options)
    else:
        rows = [row for n in options.samples for row in table("assumed", assumed_lengths(n), options)]
    print("\nlater: left to the next epochs. waiting: share of time that ranks wait for the slowest, if tokens set it.")
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    print(json.dumps({"options": given, "rows": rows, **circumstances("cpu")}))


if __name__ == "__main__":
    run_command(main)
