"""What more regions cost, by what comes with them: the time of a step with 20 entities over that with 1.

entities    the same picture and as many words, its 20 figures one entity or 20: no token comes, only more of them to
            tell apart
captions    a figure and a caption of its own for each region: 380 text tokens more, and the figures' contours
names       class names as in ADE20K, no caption of the image: 76 text tokens more, and contours
same words  the words of 20 captions from the start: contours only

Folded computes contour tokens in every step, isolated before the first one. Time over tokens is what is ours to answer
for: one region or 20, a token should cost the same. The steps of 1 and 20 entities run in turn.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from benchmarks.clock import in_turn
from benchmarks.scenes import CAPTION_TOKENS, NAME_TOKENS
from benchmarks.step_schemes import FOLDED, ISOLATED, Case, Given, Models, schemes_of, tokens_of_step

SCHEMES = (FOLDED, ISOLATED)
FEW, MANY = 1, 20
SAME_WORDS = (CAPTION_TOKENS[0], CAPTION_TOKENS[1] * MANY)


def readings(sides: list[int], batch: int) -> Iterator[tuple[str, Case, Case]]:
    """Name, the case with few entities and the one with many; the last two at the first of the sides only."""
    for side in sides:
        yield "entities", Case(side, FEW, batch, SAME_WORDS, MANY), Case(side, MANY, batch)
        yield "captions", Case(side, FEW, batch), Case(side, MANY, batch)
    side = sides[0]
    yield "names", Case(side, FEW, batch, NAME_TOKENS), Case(side, MANY, batch, NAME_TOKENS)
    yield "same words", Case(side, FEW, batch, SAME_WORDS), Case(side, MANY, batch)


def measure_growth(
    models: Models, sides: list[int], batch: int, rounds: int, device: str, clock: str
) -> list[dict[str, object]]:
    """One row for each reading and scheme; prints the table."""
    rows = []
    head = f"{'tokens':>12}{'ratio':>7}{'s':>8}{'s':>8}{'ratio':>7}{'per token':>11}"
    print(f"\n{'growth':<11}{'px':>5}{'batch':>6}  {'scheme':<9}{head}")
    for name, *cases in readings(sides, batch):
        works, n_tokens = {}, {}
        for case in cases:
            given = Given(models, case, torch.device(device), torch.bfloat16)
            for scheme in schemes_of(given):
                if scheme.name in SCHEMES:
                    prepared, key = scheme.prepare(), (scheme.name, case.n_entities)
                    works[key] = functools.partial(scheme.step, prepared, given.latents(), 0.5)
                    n_tokens[key] = tokens_of_step(prepared, case)
        least = {key: min(seconds) for key, seconds in in_turn(works, rounds, device, clock).items()}
        for scheme in SCHEMES:
            tokens, seconds = ([found[scheme, n] for n in (FEW, MANY)] for found in (n_tokens, least))
            more, longer = tokens[1] / tokens[0], seconds[1] / seconds[0]
            rows.append(
                {"reading": name, "side": cases[0].side, "batch_size": batch, "scheme": scheme, "tokens": tokens}
                | {"seconds": seconds, "growth": longer, "token_growth": more, "per_token": longer / more}
            )
            print(
                f"{name:<11}{cases[0].side:>5}{batch:>6}  {scheme:<9}{tokens[0]:>6}{tokens[1]:>6}{more:>7.2f}"
                f"{seconds[0]:>8.3f}{seconds[1]:>8.3f}{longer:>7.2f}{longer / more:>11.2f}",
                flush=True,
            )
    return rows
