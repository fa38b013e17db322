"""The numbers of a report page: a card with a chart for each metric. All text is escaped."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from seg2any.evaluation.metrics.result import GENERATED
from seg2any.evaluation.report.results import Row, Run, read_run

COLOURS = "abcd"  # classes of the style sheet, one per run
ROW_HEIGHT, LEFT, RIGHT, WIDTH = 20, 150, 8, 350  # of the chart; its unit is a pixel on a phone
# Markers of a model's images, and of ceiling and floors.
DOT, RING = 'fill="currentColor"', 'fill="none" stroke="currentColor" stroke-width="2"'


@dataclass(frozen=True)
class Evaluation:
    """A JSON file of an evaluation with its name and the class of its colour on the page."""

    path: Path
    name: str
    run: Run
    colour: str

    @classmethod
    def read(cls, paths: Sequence[Path]) -> list[Evaluation]:
        """Read the files; each gets a name that differs from the others'. Raises UserError."""
        colours = itertools.cycle(COLOURS)
        return [
            cls(path, name, read_run(path), next(colours))
            for path, name in zip(paths, distinct_names(paths), strict=True)
        ]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name files by their stems, or if these are equal, by the part in which their paths differ."""
    if len({path.stem for path in paths}) == len(paths):
        return [path.stem for path in paths]
    parts = [path.resolve().with_suffix("").parts for path in paths]
    shortest = min(map(len, parts))
    alike = [len({of_one[index] for of_one in parts}) == 1 for index in range(shortest)]
    start = alike.index(False) if False in alike else 0
    end = next((back for back in range(1, shortest - start + 1) if len({of_one[-back] for of_one in parts}) > 1), 1)
    return ["/".join(of_one[start : len(of_one) - end + 1]) for of_one in parts]


def number(value: float | None) -> str:
    """Format a number with as many digits as are worth reading."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def interval(row: Row) -> str:
    """Format the 95 % interval."""
    return f"{number(row.low)} to {number(row.high)}" if row.low is not None else "no interval"


def cards(evaluations: Sequence[Evaluation]) -> str:
    """Draw a card per metric: its value in every run, between ceiling and floors."""
    names = list(dict.fromkeys(row.name for one in evaluations for row in one.run.rows))
    return f'<div class="cards">{"".join(_card(name, evaluations) for name in names)}</div>'


def _card(name: str, evaluations: Sequence[Evaluation]) -> str:
    many = len(evaluations) > 1
    found = [(one, row) for one in evaluations for row in one.run.rows if row.name == name]
    values = "".join(
        f'<p><span class="value {one.colour}">{number(row.value)}</span> {escape(one.name) if many else ""}'
        f'<span class="soft line">95 %: {interval(row)}; {row.n} samples</span></p>'
        for one, row in found
        if row.source == GENERATED
    )
    order = list(dict.fromkeys(row.source for _, row in found))
    found.sort(key=lambda pair: order.index(pair[1].source))
    # Ceilings and floors are mostly the same in all runs; then one grey line is drawn for them.
    distinct = {(_line_label(one, row, many), number(row.value)): (one, row) for one, row in found}
    often = Counter(label for label, _ in distinct)
    lines = [
        (label, one.colour if row.source == GENERATED or often[label] > 1 else "other", row)
        for (label, _), (one, row) in distinct.items()
    ]
    hint = f'<p class="soft">{escape(found[0][1].better)} is better</p>'
    return f'<section class="card"><h3>{escape(name)}</h3>{values}{_chart(name, lines)}{hint}</section>'


def _line_label(one: Evaluation, row: Row, many: bool) -> str:
    return one.name if many and row.source == GENERATED else row.source


def _chart(name: str, lines: Sequence[tuple[str, str, Row]]) -> str:
    """Draw a line per (label, colour, row) on one scale: the value as a dot on its interval."""
    lines = [line for line in lines if math.isfinite(line[2].value)]
    ends = [end for *_, row in lines for end in (row.value, row.low, row.high) if end is not None]
    if not ends:
        return ""
    low, high = min(ends), max(ends)
    low, high = (low, high) if high > low else (low - 1, high + 1)

    def x(value: float) -> str:
        return f"{LEFT + RIGHT + (value - low) / (high - low) * (WIDTH - LEFT - 2 * RIGHT):.1f}"

    drawn = []
    for place, (label, colour, row) in enumerate(lines):
        y = ROW_HEIGHT * (place + 0.5)
        title = escape(f"{label}: {number(row.value)}, 95 %: {interval(row)}")
        ends_at = "" if row.low is None else f'x1="{x(row.low)}" x2="{x(row.high)}" y1="{y}" y2="{y}"'
        drawn.append(
            f'<g class="{colour}"><title>{title}</title>'
            f'<text x="0" y="{y + 4}">{escape(_short(label))}</text>'
            + (f'<line {ends_at} stroke="currentColor" stroke-width="3" opacity="0.5"/>' if ends_at else "")
            + f'<circle cx="{x(row.value)}" cy="{y}" r="4" {DOT if row.source == GENERATED else RING}/></g>'
        )
    box = f"0 0 {WIDTH} {ROW_HEIGHT * len(lines)}"
    return f'<svg class="chart" role="img" aria-label="{escape(name)}" viewBox="{box}">{"".join(drawn)}</svg>'


def _short(text: str, length: int = 21) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
