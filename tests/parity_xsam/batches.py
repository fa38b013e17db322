"""Recorded batches of the whole model, run by our parts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from seg2any.segment.xsam.model import Seen, XSam
from seg2any.segment.xsam.regions import POINTS, Source, choose_sources, region_vectors
from seg2any.segment.xsam.splice import Spliced, Tokens
from tests.parity_xsam.recorded import Case, parameters_of, pictures


def recorded_batch(name: str) -> Case:
    return Case("end_to_end", name, parameters_of("end_to_end", name))


def tokens_of(case: Case) -> Tokens:
    names = ("input_ids", "attention_mask", "labels", "cond_ids", "seg_ids")
    return Tokens(*(case.x.get(f"in_{name}") for name in names))


def seen_of(case: Case, model: XSam) -> Seen:
    return model.see(pictures(case.about["images"]))


def regions_of(case: Case, seen: Seen) -> list[torch.Tensor] | None:
    """Return the vectors of each picture's regions, chosen by the recorded draws; None without visual prompts."""
    masks = case.numbered("in_vprompt_masks")
    if not masks:
        return None
    about = case.about
    wanted, present = [], []
    labels = zip(about["contiguous_labels"], about["sampled_labels"], case.numbered("in_class_labels"), strict=True)
    for known, sampled, own in labels:
        wanted.append([known.index(one) for one in sampled])
        present.append([wanted[-1][one] for one in own.tolist()])
    orders = iter(case.drawn("randperm"))
    vectors = [
        region_vectors(grid, own.bool(), permutation=lambda n: next(orders))
        for grid, own in zip(seen.grid, masks, strict=True)
    ]
    filled = sum(int(mask.sum()) < POINTS for own in masks for mask in own)  # published: repeats fill the points up
    sources = choose_sources(wanted, present, drawn(case.drawn("randint")[filled:]))
    return [taken(own, vectors) for own in sources]


def taken(sources: list[Source | None], vectors: list[torch.Tensor]) -> torch.Tensor:
    nothing = torch.zeros_like(vectors[0][0])
    return torch.stack([nothing if one is None else vectors[one.picture][one.mask] for one in sources])


def drawn(draws: list) -> Callable[[int], int]:
    numbers = iter(draws)

    def draw(n: int) -> int:
        number = int(next(numbers))
        assert 0 <= number < n
        return number

    return draw


def spliced_of(case: Case, model: XSam, seen: Seen) -> Spliced:
    return model.splice(tokens_of(case), seen, regions_of(case, seen))
