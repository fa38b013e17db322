"""The parts of a report page: tables, samples, settings. All text is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from seg2any.evaluation.compare import Compared, compare
from seg2any.evaluation.metrics.result import GENERATED
from seg2any.evaluation.report.numbers import Evaluation, interval, number
from seg2any.evaluation.report.pictures import Shown, folder_of, read_pictures


def numbers_table(evaluations: Sequence[Evaluation]) -> str:
    """Tabulate every number of every run."""
    many = len(evaluations) > 1
    rows = [
        [*([one.name] if many else []), row.label, number(row.value), interval(row), str(row.n)]
        for one in evaluations
        for row in one.run.rows
    ]
    return table([*(["run"] if many else []), "metric", "value", "95 % interval", "samples"], rows)


def comparison_table(first: Evaluation, other: Evaluation) -> str:
    """Tabulate paired differences, with those of ceilings and floors folded.

    Raises UserError for runs that cannot be compared.
    """
    compared = list(compare(first.run, other.run))
    ours = [row for row in compared if row.a.source == GENERATED]
    bounds = [row for row in compared if row.a.source != GENERATED]
    return _differences(ours) + (folded("Ceilings and floors", _differences(bounds)) if bounds else "")


def _differences(compared: Iterable[Compared]) -> str:
    rows = []
    for row in compared:
        numbers = [number(row.a.value), number(row.b.value)]
        gap = row.difference
        paired = [number(gap.value), f"{number(gap.low)} to {number(gap.high)}", str(gap.n)] if gap else ["–"] * 3
        rows.append([row.a.label, *numbers, *paired, row.verdict])
    heads = ["metric", "A", "B", "A − B", "95 % interval", "samples", "verdict"]
    return table(heads, rows)


def class_tables(one: Evaluation) -> str:
    """Collect the tables per class that metrics put beside their number."""
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
    return number(value) if value is None or isinstance(value, float) else str(value)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Build an HTML table; cells are text."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def samples(one: Evaluation) -> str:
    """Show the worst and the best samples with their pictures.

    Raises UserError if pictures are damaged.
    """
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
    caption = f"<p>{escape(sample.caption)}</p>" if sample.caption else ""
    regions = "".join(f"<li>{escape(text)}</li>" for text in sample.captions)
    return (
        f'<article class="card"><h3>{escape(sample.key)} <span class="soft">{escape(sample.metric)} '
        f'{number(sample.value)}</span></h3><div class="pictures">{figures}</div>{caption}'
        f'<ol class="captions">{regions}</ol></article>'
    )


def embedded(path: Path) -> str:
    """Encode a WebP picture as a data address."""
    return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"


def circumstances(one: Evaluation) -> str:
    """Show settings, versions, hashes, machine and commit of a run."""
    run = one.run
    groups = {"Settings": run.settings, "Versions": run.versions, "Hashes": run.hashes, "Machine": run.machine}
    return "".join(folded(title, definitions(values)) for title, values in groups.items()) + definitions(
        {"commit": run.commit, "file": str(one.path)}
    )


def definitions(values: Mapping[str, object]) -> str:
    """List names and values; nested names are dotted."""
    pairs = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in _flat(values))
    return f"<dl>{pairs}</dl>" if pairs else '<p class="soft">none</p>'


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def folded(title: str, content: str) -> str:
    """Build content (HTML) that opens on a click at its title (text)."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
