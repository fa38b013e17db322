"""The parts of a report page: numbers with their intervals, tables, samples, settings. Text in it is escaped."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from eval.compare import compare
from eval.pictures import Shown, folder_of, read_pictures
from eval.results import Row, Run, read_run

GENERATED = "generated"  # the source of a model's own images, as in eval.metrics.result
COLOURS = "abcd"  # classes of the style sheet, one per run
ROW_HEIGHT, LEFT, RIGHT, WIDTH = 20, 118, 10, 400  # of the chart, in its own units


@dataclass(frozen=True)
class Evaluation:
    """A JSON file, what it is called on the page, what is in it, and the class of its colour."""

    path: Path
    name: str
    run: Run
    colour: str

    @classmethod
    def read(cls, paths: Sequence[Path]) -> list[Evaluation]:
        """Raises UserError."""
        stems = [path.stem for path in paths]
        names = stems if len(set(stems)) == len(stems) else [str(path.with_suffix("")) for path in paths]
        colours = itertools.cycle(COLOURS)
        return [cls(path, name, read_run(path), next(colours)) for path, name in zip(paths, names, strict=True)]


def number(value: float | None) -> str:
    """With as many digits as are worth reading."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def interval(row: Row) -> str:
    return f"{number(row.low)} to {number(row.high)}" if row.low is not None else "no interval"


def cards(evaluations: Sequence[Evaluation]) -> str:
    """One card per metric: its value in every run, drawn between ceiling and floors."""
    names = list(dict.fromkeys(row.name for one in evaluations for row in one.run.rows))
    return f'<div class="cards">{"".join(_card(name, evaluations) for name in names)}</div>'


def _card(name: str, evaluations: Sequence[Evaluation]) -> str:
    many = len(evaluations) > 1
    found = [(one, row) for one in evaluations for row in one.run.rows if row.name == name]
    values = "".join(
        f'<p><span class="value {one.colour}">{number(row.value)}</span> <span class="soft">'
        f"{escape(one.name) + ', ' if many else ''}95 %: {interval(row)}; {row.n} samples</span></p>"
        for one, row in found
        if row.source == GENERATED
    )
    lines = [(one.name if many and row.source == GENERATED else row.source, one.colour, row) for one, row in found]
    told = f'<p class="soft">{found[0][1].better} is better</p>'
    return f'<section class="card"><h3>{escape(name)}</h3>{values}{_chart(name, lines)}{told}</section>'


def _chart(name: str, lines: Sequence[tuple[str, str, Row]]) -> str:
    """A line per (label, colour, row): the value as a dot, its interval as a line, all on one scale."""
    lines = [line for line in lines if math.isfinite(line[2].value)]
    ends = [end for *_, row in lines for end in (row.value, row.low, row.high) if end is not None]
    if not ends:
        return ""
    low, high = min(ends), max(ends)
    low, high = (low, high) if high > low else (low - 1, high + 1)

    def x(value: float) -> str:
        return f"{LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT):.1f}"

    drawn = []
    for place, (label, colour, row) in enumerate(lines):
        y = ROW_HEIGHT * (place + 0.5)
        told = escape(f"{label}: {number(row.value)}, 95 %: {interval(row)}")
        ends_at = "" if row.low is None else f'x1="{x(row.low)}" x2="{x(row.high)}" y1="{y}" y2="{y}"'
        drawn.append(
            f'<g class="{colour if row.source == GENERATED else "other"}"><title>{told}</title>'
            f'<text x="0" y="{y + 4}">{escape(_short(label))}</text>'
            + (f'<line {ends_at} stroke="currentColor" stroke-width="3" opacity="0.5"/>' if ends_at else "")
            + f'<circle cx="{x(row.value)}" cy="{y}" r="4" fill="currentColor"/></g>'
        )
    box = f"0 0 {WIDTH} {ROW_HEIGHT * len(lines)}"
    return f'<svg class="chart" role="img" aria-label="{escape(name)}" viewBox="{box}">{"".join(drawn)}</svg>'


def _short(text: str, length: int = 20) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def numbers_table(evaluations: Sequence[Evaluation]) -> str:
    """Every number of every run."""
    many = len(evaluations) > 1
    rows = [
        [*([one.name] if many else []), row.label, number(row.value), interval(row), str(row.n)]
        for one in evaluations
        for row in one.run.rows
    ]
    return table([*(["run"] if many else []), "metric", "value", "95 % interval", "samples"], rows)


def comparison_table(first: Evaluation, other: Evaluation) -> str:
    """Paired differences. Raises UserError for runs that cannot be compared."""
    rows = []
    for row in compare(first.run, other.run):
        numbers = [number(row.a.value), number(row.b.value)]
        gap = row.difference
        paired = [number(gap.value), f"{number(gap.low)} to {number(gap.high)}", str(gap.n)] if gap else ["–"] * 3
        rows.append([row.a.label, *numbers, *paired, row.verdict])
    heads = ["metric", "A", "B", "A − B", "95 % interval", "samples", "verdict"]
    return table(heads, rows)


def class_tables(one: Evaluation) -> str:
    """The tables per class that metrics put beside their number."""
    found = []
    for row in one.run.rows:
        classes = row.extra.get("per_class")
        if not isinstance(classes, list) or not all(isinstance(entry, dict) for entry in classes) or not classes:
            continue
        heads = list(classes[0])
        cells = [[_cell(entry.get(head)) for head in heads] for entry in classes]
        title = f"{row.label}: {len(classes)} classes"
        found.append(folded(title, table(heads, cells)))
    return "".join(found)


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def samples(one: Evaluation) -> str:
    """The worst and the best samples with their pictures. Raises UserError if pictures are damaged."""
    folder = folder_of(one.path)
    shown = read_pictures(folder)
    if not shown:
        return '<p class="soft">No pictures lie beside this file.</p>'
    parts = []
    for place in ("worst", "best"):
        cards = "".join(_sample(sample, folder) for sample in shown if sample.place == place)
        metric = next((sample.metric for sample in shown), "")
        parts.append(f'<h3>{place.capitalize()} by {escape(metric)}</h3><div class="samples">{cards}</div>')
    return "".join(parts)


def _sample(sample: Shown, folder: Path) -> str:
    figures = "".join(
        f'<figure><img loading="lazy" alt="{escape(title)} of {escape(sample.key)}" src="{embedded(folder / file)}">'
        f"<figcaption>{escape(title)}</figcaption></figure>"
        for title, file in sample.pictures.items()
    )
    told = f"<p>{escape(sample.caption)}</p>" if sample.caption else ""
    regions = "".join(f"<li>{escape(text)}</li>" for text in sample.captions)
    return (
        f'<article class="card"><h3>{escape(sample.key)} <span class="soft">{escape(sample.metric)} '
        f'{number(sample.value)}</span></h3><div class="pictures">{figures}</div>{told}'
        f'<ol class="captions">{regions}</ol></article>'
    )


def embedded(path: Path) -> str:
    """The picture itself as an address."""
    kind = path.suffix.removeprefix(".")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def circumstances(one: Evaluation) -> str:
    """How the run came about."""
    run = one.run
    groups = {"Settings": run.settings, "Versions": run.versions, "Hashes": run.hashes, "Machine": run.machine}
    return "".join(folded(title, definitions(values)) for title, values in groups.items()) + definitions(
        {"commit": run.commit, "file": str(one.path)}
    )


def definitions(values: Mapping[str, object]) -> str:
    pairs = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in _flat(values))
    return f"<dl>{pairs}</dl>" if pairs else '<p class="soft">none</p>'


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
