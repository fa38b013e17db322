"""Write the HTML page of a report: one file with its pictures, without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from seg2any.evaluation.report import parts
from seg2any.evaluation.report.numbers import Evaluation, cards
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a browser runs and loads nothing else
STYLE = Path(__file__).with_suffix(".css")


def write_page(runs: Sequence[Path], output: Path) -> None:
    """Write the page about these JSON files. Raises UserError as `page` does."""
    text = page(Evaluation.read(runs))
    with atomic_write(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page(evaluations: Sequence[Evaluation]) -> str:
    """Build the HTML.

    Raises UserError for runs of different benchmarks and for damaged pictures.
    """
    benchmarks = list(dict.fromkeys(one.run.benchmark for one in evaluations))
    if len(benchmarks) > 1:
        raise UserError(f"report: {' and '.join(benchmarks)} are different benchmarks; make a report for each")
    title = benchmarks[0]
    if len(evaluations) > 1:
        title += f": {' against '.join(one.name for one in evaluations)}"
    sections = [_section("Numbers", cards(evaluations), parts.folded("All numbers", parts.numbers_table(evaluations)))]
    for other in evaluations[1:]:
        explained = f"A is {evaluations[0].name}, B is {other.name}; both on the same samples"
        table = parts.comparison_table(evaluations[0], other)
        sections.append(_section("Differences", f'<p class="soft">{escape(explained)}</p>', table))
    for one in evaluations:
        name = f": {one.name}" if len(evaluations) > 1 else ""
        if classes := parts.class_tables(one):
            sections.append(_section(f"Classes{name}", classes))
        sections.append(_section(f"Samples{name}", parts.samples(one)))
        sections.append(_section(f"How it came about{name}", parts.circumstances(one)))
    runs = "".join(
        f'<li><span class="swatch {one.colour}"></span> {escape(one.name)}: commit {escape(one.run.commit[:12])}, '
        f"{escape(str(one.run.machine.get('device', '')))}</li>"
        for one in evaluations
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{escape(title)}</title><style>{STYLE.read_text(encoding="utf-8")}</style></head>'
        f'<body><header><h1>{escape(title)}</h1><ul class="runs">{runs}</ul></header><main>{"".join(sections)}</main>'
        "</body></html>\n"
    )


def _section(title: str, *content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(content)}</section>"
