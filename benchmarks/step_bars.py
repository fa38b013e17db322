"""Set the bars of `benchmarks.step`: for its table, for growth and for attention alone."""

from __future__ import annotations

import argparse

from benchmarks import attention
from benchmarks.step_growth import MANY
from benchmarks.step_schemes import FOLDED
from seg2any.evaluation.report.results import Bar

OURS = FOLDED


def bars(options: argparse.Namespace, results: list[dict]) -> list[Bar]:
    """Compare our step with plain FLUX and the published scheme, at 8 and 20 entities."""
    least = {(r["side"], r["batch_size"], r["n_entities"], r["scheme"]): min(r["seconds"]) for r in results}
    found = []
    for side, batch in sorted({key[:2] for key in least}):
        where = f"{side} px, batch of {batch}"
        for n_entities in sorted({8, MANY} & {*options.entities}):
            plain, published, ours = (least[side, batch, n_entities, name] for name in ("plain", "published", OURS))
            many = f"{where}, {n_entities} entities"
            found.append(Bar(f"{many}: published / ours", published / ours, 1.5, at_least=True))
            at_most = 1.05 if options.device.startswith("cuda") and side >= 1024 else 1.1
            found.append(Bar(f"{many}: ours / plain FLUX", ours / plain, at_most))
    return found


def growth_bars(growth: list[dict]) -> list[Bar]:
    """Bound the growth from 1 to 20 entities: at equal tokens, with captions, per token."""
    found = []
    for row in growth:
        name = f"{row['side']} px, batch of {row['batch_size']}: growth from 1 to {MANY} entities"
        if (row["reading"], row["scheme"]) == ("entities", OURS):
            found.append(Bar(name, row["growth"], 1.1))
        if (row["reading"], row["scheme"]) == ("captions", OURS):
            found.append(Bar(f"{name}, with {row['token_growth']:.2f} times the tokens", row["growth"], 1.1))
            found.append(Bar(f"{name}, per token", row["per_token"], 1.1))
    return found


def attention_bars(options: argparse.Namespace) -> list[Bar]:
    """Measure AIA alone at 4096 image tokens and 24 heads, and the time to plan it."""
    words = ["--tokens", "4096", "--entities", "1", "8", "20", "--blocks", "AIA", "--backends", "auto"]
    words += ["--dtype", "bf16", "--rounds", str(options.rounds), "--device", options.device, "--clock", options.clock]
    one, eight, twenty = attention.measure(attention.parse_options(words))
    growth = twenty["seconds"]["auto"] / one["seconds"]["auto"]
    return [
        Bar("attention alone, AIA, 8 entities: dense mask / ours", eight["speedup"]["auto"], 1.7, at_least=True),
        Bar("attention alone, AIA: growth from 1 to 20 entities", growth, 1.1),
        Bar("attention plan, 4096 image tokens, 20 entities: ms", twenty["plan_ms"], 10),
    ]
