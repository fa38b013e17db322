"""Make what the segmentor looks for out of the states of the language model.

    states [B, L, D] --> means over each phrase and each <SEG> --> Conditions

Two ways, by what a task asks. Categories: the phrases of a conversation are its classes, and one <SEG> finds them all.
Phrases: each has its own <SEG> and is found alone, and the phrases of the whole batch are the classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seg2any.segment.xsam.segmentor import LEAST, Conditions
from seg2any.segment.xsam.spans import means

TOGETHER = ("genseg", "ovseg", "gcgseg", "vgdseg", "intseg")  # tasks whose phrases are found by one <SEG>
ALONE = ("refseg", "reaseg")  # tasks whose phrases are found one by one


def pooled(states: Tensor, numbers: Tensor | None) -> list[Tensor]:
    """Average states [B, L, D] over the places of each number [B, L]: [N, D] for each conversation."""
    if numbers is None:
        return [states.new_zeros(0, states.shape[-1]) for _ in states]
    return [means(own, of_own) for own, of_own in zip(states, numbers, strict=True)]


def together(phrases: Sequence[Tensor], segs: Sequence[Tensor], background: Tensor) -> Conditions:
    """Make a row for each conversation, its phrases [N, D] being the classes.

    segs        [1, D] of each conversation
    background  [1, D]

    Raises ValueError for a conversation without a phrase, or with another number of <SEG> than one.
    """
    for number, (own, seg) in enumerate(zip(phrases, segs, strict=True)):
        if not len(own) or len(seg) != 1:
            raise ValueError(f"conversation {number}: has {len(own)} phrases and {len(seg)} <SEG>")
    most = max(map(len, phrases))
    rows, present = [], []
    for own in phrases:
        filling = (background + LEAST).expand(most - len(own), -1)
        rows.append(torch.cat([own, filling, background]))
        present.append(torch.tensor([True] * len(own) + [False] * (most - len(own)) + [True]))
    return Conditions(
        torch.stack(rows), torch.stack(list(segs)), torch.stack(present).to(background.device), (1,) * len(rows)
    )


def alone(phrases: Sequence[Tensor], segs: Sequence[Tensor], background: Tensor) -> Conditions:
    """Make a row for each phrase, the phrases of all conversations being the classes.

    segs  [N, D] of each conversation, one for each phrase

    Raises ValueError for other numbers of <SEG> than of phrases.
    """
    for number, (own, seg) in enumerate(zip(phrases, segs, strict=True)):
        if len(own) != len(seg):
            raise ValueError(f"conversation {number}: has {len(own)} phrases and {len(seg)} <SEG>")
    classes = torch.cat([*phrases, background])
    rows = torch.cat(list(segs))[:, None]
    return Conditions(classes.expand(len(rows), -1, -1), rows, None, tuple(map(len, phrases)))


def conditions_of(task: str, phrases: Sequence[Tensor], segs: Sequence[Tensor], background: Tensor) -> Conditions:
    """Make the conditions of a task, which is one of TOGETHER or ALONE."""
    return (alone if task in ALONE else together)(phrases, segs, background)
