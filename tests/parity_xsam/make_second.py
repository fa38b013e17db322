"""Write a second set of cases, computed without seg2any: `python -m tests.parity_xsam.make_second FOLDER [SEED]`.

`SEG2ANY_GOLDEN_XSAM=FOLDER python -m pytest tests/test_parity_xsam.py` then runs it like the recorded one.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.parity_xsam.second import (
    conditions,
    connector,
    decoder,
    losses,
    metrics,
    pictures,
    postprocess_cases,
    regions,
    splice,
    text,
    whole_cases,
)
from tests.parity_xsam.second.book import Book, Undecided
from tests.parity_xsam.second.text_cases import Made

PLAIN = (connector, regions, splice, conditions, losses, pictures, postprocess_cases, metrics, decoder)
KINDS: dict[str, Callable[[Book, Made], None]] = {
    **{module.FILE: lambda book, _, module=module: module.add(book) for module in PLAIN},
    whole_cases.FILE: whole_cases.add,
}


def write(folder: Path, seed: int, kinds: Sequence[str] = tuple(KINDS)) -> None:
    """Write a set of some kinds, keys of KINDS, to a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in itertools.count():
        book = Book(seed, attempt)
        made = Made(book.rng)
        try:
            for kind in kinds:
                KINDS[kind](book, made)
        except Undecided:
            continue
        break
    text.write(folder, made.file(book.rng), made.words)
    book.write(folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
