"""The bars of speed: every bound that `make bench` prints, and its comparison with what was measured.

A ratio is that of one round, of works that took turns; the median over the rounds is compared, rounded to two decimals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks import attention
from benchmarks.clock import Ratio
from benchmarks.step_growth import MANY
from benchmarks.step_schemes import LIMIT, PLAIN, PUBLISHED, ROUTED
from seg2any.evaluation.report.results import Bar

OURS = ROUTED  # the adapters as infer.py loads them by default


@dataclass(frozen=True)
class Bound:
    """A bound on a ratio, and a better one to aim at."""

    bound: float
    aim: float | None = None
    at_least: bool = False

    def bar(self, name: str, ratio: Ratio) -> Bar:
        """Compare a measured ratio with the bound."""
        return Bar(name, ratio.median, self.bound, self.at_least, (ratio.low, ratio.high), self.aim)


# By size, side in pixels and entities.
SPEED = {  # published / ours
    ("cpu", 512, 8): Bound(1.3, 1.6, at_least=True),
    ("cpu", 512, 20): Bound(1.2, 1.5, at_least=True),
    ("cpu", 1024, 8): Bound(1.3, 1.6, at_least=True),
    ("narrow", 1024, 8): Bound(1.1, 1.4, at_least=True),
}
BESIDE_PLAIN = {  # ours / plain FLUX
    ("cpu", 512, 8): Bound(1.15, 1.05),
    ("cpu", 512, 20): Bound(1.45, 1.3),
}
BESIDE_LIMIT = {"cpu": Bound(2.0, 1.6)}  # ours / the machine's limit, by size
TRAINING = Bound(1.15, 1.4, at_least=True)  # published / ours: the transformer, with gradient checkpointing
LOOP = Bound(1.4, 1.7, at_least=True)  # published / ours: the training loop
DENSE_MASK = Bound(1.0, at_least=True)  # attention alone: one dense mask / ours
GROWTH = Bound(1.1)  # 20 entities / 1
PLAN_MS = 10
# For weights of another size: the bounds of the first version of this benchmark.
OTHER_SPEED, OTHER_PLAIN, OTHER_PLAIN_LARGE = Bound(1.5, at_least=True), Bound(1.1), Bound(1.05)


def step_bars(results: list[dict]) -> list[Bar]:
    """Compare the steps of every case with all bounds on it."""
    seconds: dict[tuple, dict[str, list[float]]] = {}
    for row in results:
        case = row["size"], row["side"], row["n_entities"], row["batch_size"]
        seconds.setdefault(case, {})[row["scheme"]] = row["seconds"]
    return [bar for case, each in seconds.items() for bar in _case_bars(*case, each)]


def _case_bars(size: str, side: int, n_entities: int, batch: int, seconds: dict[str, list[float]]) -> Iterator[Bar]:
    where = f"{size}, {side} px, {n_entities} entities" + (f", batch of {batch}" if batch > 1 else "")
    ours = seconds[OURS]
    speed, plain = SPEED.get((size, side, n_entities)), BESIDE_PLAIN.get((size, side, n_entities))
    if size not in ("cpu", "narrow") and n_entities in (8, MANY):
        speed, plain = OTHER_SPEED, OTHER_PLAIN_LARGE if side >= 1024 else OTHER_PLAIN
    if speed and PUBLISHED in seconds:
        yield speed.bar(f"{where}: published / ours", Ratio.of(seconds[PUBLISHED], ours))
    if plain and PLAIN in seconds:
        yield plain.bar(f"{where}: ours / plain FLUX", Ratio.of(ours, seconds[PLAIN]))
    if size in BESIDE_LIMIT and LIMIT in seconds:
        yield BESIDE_LIMIT[size].bar(f"{where}: ours / limit", Ratio.of(ours, seconds[LIMIT]))


def training_bars(rows: list[dict]) -> list[Bar]:
    """Compare forward and backward pass of the transformer with the published scheme's."""
    return [
        TRAINING.bar(
            f"{row['size']}, {row['side']} px, {row['n_entities']} entities: training's transformer, published / ours",
            Ratio.of(row["seconds"][PUBLISHED], row["seconds"][ROUTED]),
        )
        for row in rows
    ]


def loop_bar(report: dict) -> Bar:
    """Compare the training loop with the published scheme's: a report of `benchmarks.train_step`."""
    ratio = Ratio.of(report["seconds"]["published"], report["seconds"]["ours"])
    return LOOP.bar(f"embedded model, batch of {report['batch_size']}: training loop, published / ours", ratio)


def growth_bars(growth: list[dict]) -> list[Bar]:
    """Bound the growth from 1 to 20 entities: at equal tokens, with captions, per token."""
    found = []
    for row in growth:
        few, many = row["seconds"]
        name, longer = f"{row['size']}, {row['side']} px: growth from 1 to {MANY} entities", Ratio.of(many, few)
        if row["reading"] == "entities":
            found.append(GROWTH.bar(name, longer))
        if row["reading"] == "captions":
            more = row["token_growth"]
            per_token = Ratio(*(round(value / more, 2) for value in (longer.median, longer.low, longer.high)))
            found.append(GROWTH.bar(f"{name}, with {more:.2f} times the tokens", longer))
            found.append(GROWTH.bar(f"{name}, per token", per_token))
    return found


def attention_bars(
    options: argparse.Namespace, measure: Callable[[argparse.Namespace], list[dict]] = attention.measure
) -> list[Bar]:
    """Measure attention alone beside one dense mask, its growth, and the time to plan it."""
    found = []
    heads = "12" if options.device == "cpu" else "24"
    always = ["--backends", "auto", "--device", options.device, "--clock", options.clock]
    always += ["--rounds", str(options.rounds), "--heads", heads]
    for dtype in dict.fromkeys([options.dtype, "fp32"]) if options.device == "cpu" else [options.dtype]:
        words = ["--tokens", "1024", "4096", "--entities", "8", "--dtype", dtype, *always]
        for row in measure(attention.parse_options(words)):
            name = f"attention alone, {dtype}, {row['image_tokens']} tokens, {row['block']}: dense mask / ours"
            found.append(DENSE_MASK.bar(name, Ratio.of(row["seconds"]["one mask"], row["seconds"]["auto"])))
    words = ["--tokens", "4096", "--entities", "1", "20", "--blocks", "AIA", "--dtype", options.dtype, *always]
    one, many = measure(attention.parse_options(words))
    growth = Ratio.of(many["seconds"]["auto"], one["seconds"]["auto"])
    found.append(GROWTH.bar("attention alone, AIA: growth from 1 to 20 entities", growth))
    found.append(Bar("attention plan, 4096 image tokens, 20 entities: ms", many["plan_ms"], PLAN_MS))
    return found
