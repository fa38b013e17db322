"""Build the prompt that the flags of `segment` ask with."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seg2any.system.errors import UserError

if TYPE_CHECKING:
    from seg2any.segment.segmenter import Prompt

JOINED, UNUSED = "+", -1  # between points of one region, and the label of an entry that fills up


def prompt_of(given: Namespace) -> Prompt:
    """Return the prompt of the flags. Raises UserError for a text that is blank, too long or given twice."""
    import numpy as np  # late, as the next: the parser needs only `points`

    from seg2any.segment.segmenter import Prompt

    if given.phrases:
        return Prompt(phrases=distinct("--phrases", given.phrases))
    if given.categories:
        return Prompt(categories=distinct("--categories", names_of(given.categories)))
    if given.points:
        most = max(map(len, given.points))
        filled = [[(*xy, 1) for xy in one] + [(0, 0, UNUSED)] * (most - len(one)) for one in given.points]
        return Prompt(points=np.array(filled, dtype=np.float64))
    return Prompt(describe=given.describe, question=given.ask)


def names_of(given: Sequence[str]) -> list[str]:
    """Return the names of the flag, or the lines of the one file that it names. Raises UserError."""
    if len(given) > 1 or not Path(given[0]).is_file():
        return list(given)
    try:
        lines = Path(given[0]).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--categories {given[0]}: cannot be read as UTF-8; write one name a line") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"--categories {given[0]}: holds no name; write one a line")
    return names


def distinct(flag: str, texts: Sequence[str]) -> list[str]:
    """Return the texts without outer spaces. Raises UserError for one that is given twice."""
    texts = [text.strip() for text in texts]
    if twice := next((text for number, text in enumerate(texts) if text in texts[:number]), None):
        raise UserError(f"{flag} {twice!r}: is given twice; leave one of them out")
    return texts


def points(text: str) -> list[tuple[float, float]]:
    """Parse the points X,Y+X,Y of one region, shares of width and height, for argparse."""
    found = []
    for one in text.split(JOINED):
        try:
            x, y = map(float, one.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{one} is no point; give X,Y such as 0.5,0.25") from None
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise argparse.ArgumentTypeError(f"{one} lies outside the image; give shares of width and height, 0 to 1")
        found.append((x, y))
    return found
