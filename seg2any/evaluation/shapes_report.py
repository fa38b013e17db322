"""How the results on the `shapes` world are printed: a table between ceiling and floors, and the bars."""

from __future__ import annotations

from collections.abc import Sequence

from seg2any.evaluation.bars import Bar
from seg2any.evaluation.results import Row, Run
from seg2any.evaluation.shapes_sources import GENERATED, ROUND_TRIP

FRACTIONS = ("IoU", "boundary IoU")  # the others are shown in per cent


def bars(run: Run) -> list[Bar]:
    """The bars for generated images; the boundary is measured against what the VAE leaves of it."""
    boundary = 0.8 * run.row("boundary IoU", ROUND_TRIP).value
    return [
        Bar("colour", run.row("colour").value, 0.95, at_least=True),
        Bar("IoU", run.row("IoU").value, 0.90, at_least=True),
        Bar("boundary IoU", run.row("boundary IoU").value, boundary, at_least=True),
        Bar("leak", run.row("leak").value, 0.02),
    ]


def table(run: Run) -> str:
    """One line per number, one column per source of images; those of the model with their 95 % interval."""
    names = list(dict.fromkeys(row.name for row in run.rows))
    sources = list(dict.fromkeys(row.source for row in run.rows))
    found = {(row.name, row.source): row for row in run.rows}
    cells = [[_cell(found.get((name, source))) for source in sources] for name in names]
    heads = [f"{source}, 95 %" if source == GENERATED else source for source in sources]
    return _aligned(["", *heads], [[name, *line] for name, line in zip(names, cells, strict=True)])


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row.source != GENERATED or row.low is None:
        return _shown(row.name, row.value)
    low, high = (_shown(row.name, bound).removesuffix(" %") for bound in (row.low, row.high))
    return f"{_shown(row.name, row.value)} [{low}, {high}]"


def _shown(name: str, value: float) -> str:
    return f"{value:.3f}" if name in FRACTIONS else f"{100 * value:.1f} %"


def _aligned(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]

    def joined(line: Sequence[str]) -> str:
        cells = [f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)]
        return "  ".join([f"{line[0]:<{widths[0]}}", *cells])

    return "\n".join(map(joined, [heads, *lines]))
