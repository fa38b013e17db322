"""Compare the time of a step with 20 entities and with 1, for four kinds of growth.

entities    the same image and number of words, its 20 ellipses in one entity or in 20: no more tokens, only entities
captions    an ellipse and a caption for each region: 380 more text tokens, and more contours
names       class names as in ADE20K, no caption of the image: 76 more text tokens, and more contours
same words  as many words with 1 entity as with 20: only more contours

More tokens take more time, but time per token should not grow with the number of entities. The steps of 1 and 20
entities, scheme `routed`, take turns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.clock import Ratio, in_turn
from benchmarks.scenes import CAPTION_TOKENS, NAME_TOKENS
from benchmarks.step_schemes import ROUTED, Case, Given, Models, schemes_of, tokens_of_step

READINGS = ("entities", "captions", "names", "same words")
FEW, MANY = 1, 20
SAME_WORDS = (CAPTION_TOKENS[0], CAPTION_TOKENS[1] * MANY)


@dataclass(frozen=True)
class Runs:
    """The runs of a measurement: sizes of the image, readings, and how they are timed."""

    sides: tuple[int, ...]
    batch: int
    readings: tuple[str, ...]
    rounds: int
    device: str
    clock: str
    dtype: torch.dtype


def cases_of(sides: Sequence[int], batch: int) -> Iterator[tuple[str, Case, Case]]:
    """Yield readings and cases with 1 and with 20 entities; the last two at the first side only."""
    for side in sides:
        yield "entities", Case(side, FEW, batch, SAME_WORDS, MANY), Case(side, MANY, batch)
        yield "captions", Case(side, FEW, batch), Case(side, MANY, batch)
    side = sides[0]
    yield "names", Case(side, FEW, batch, NAME_TOKENS), Case(side, MANY, batch, NAME_TOKENS)
    yield "same words", Case(side, FEW, batch, SAME_WORDS), Case(side, MANY, batch)


def measure_growth(models: Models, size: str, runs: Runs) -> list[dict[str, object]]:
    """Measure every reading, print the table and return its rows.

    size  name of the models' size
    """
    rows = []
    head = f"{'tokens':>12}{'ratio':>7}{'s':>8}{'s':>8}{'ratio':>7}{'per token':>11}"
    print(f"\n{'growth':<11}{'px':>5}{'batch':>6}  {head}")
    for name, *cases in cases_of(runs.sides, runs.batch):
        if name not in runs.readings:
            continue
        works, tokens = {}, []
        for case in cases:
            given = Given(models, case, torch.device(runs.device), runs.dtype)
            (scheme,) = schemes_of(given, (ROUTED,))
            prepared = scheme.prepare()
            works[case.n_entities] = functools.partial(scheme.step, prepared, given.latents(), 0.5)
            tokens.append(tokens_of_step(prepared, case))
        few, many = in_turn(works, runs.rounds, runs.device, runs.clock).values()
        more, longer = tokens[1] / tokens[0], Ratio.of(many, few)
        rows.append(
            {"reading": name, "size": size, "side": cases[0].side, "batch_size": runs.batch, "tokens": tokens}
            | {"seconds": [few, many], "token_growth": more}
        )
        print(
            f"{name:<11}{cases[0].side:>5}{runs.batch:>6}  {tokens[0]:>6}{tokens[1]:>6}{more:>7.2f}"
            f"{median(few):>8.3f}{median(many):>8.3f}{longer.median:>7.2f}{longer.median / more:>11.2f}",
            flush=True,
        )
    return rows
