"""Compare the time of a step with 20 entities and with 1, for four kinds of growth.

entities    the same image and number of words, its 20 ellipses in one entity or in 20: no more tokens, only entities
captions    an ellipse and a caption for each region: 380 more text tokens, and more contours
names       class names as in ADE20K, no caption of the image: 76 more text tokens, and more contours
same words  as many words with 1 entity as with 20: only more contours

Scheme `folded` computes contour tokens in every step, `isolated` once before the first. More tokens take more time, but
time per token should not grow with the number of entities. The steps of 1 and 20 entities take turns.
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
    """Yield names and cases with 1 and with 20 entities; the last two at the first side only."""
    for side in sides:
        yield "entities", Case(side, FEW, batch, SAME_WORDS, MANY), Case(side, MANY, batch)
        yield "captions", Case(side, FEW, batch), Case(side, MANY, batch)
    side = sides[0]
    yield "names", Case(side, FEW, batch, NAME_TOKENS), Case(side, MANY, batch, NAME_TOKENS)
    yield "same words", Case(side, FEW, batch, SAME_WORDS), Case(side, MANY, batch)


def measure_growth(
    models: Models, sides: list[int], batch: int, rounds: int, device: str, clock: str
) -> list[dict[str, object]]:
    """Measure every reading with both schemes, print the table and return its rows."""
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
