"""docs/ablation.md, written from what was measured; people write between its two marks only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.ablation.measure import BOUNDS, TOKENS
from eval.ablation.options import Options
from eval.ablation.rows import KINDS, REFERENCE, TRAINED, Row, compared_with
from eval.ablation.trends import MARGIN, Checked, Runs, all_checked
from eval.metrics.bootstrap import Difference, paired_difference
from eval.results import Row as Number
from eval.results import Run
from eval.shapes_report import FRACTIONS
from eval.shapes_results import LEAK_WHERE_COLOURED

NUMBERS = ("colour", "pattern", "IoU", "boundary IoU", "leak", LEAK_WHERE_COLOURED, TOKENS)
BEGIN, END = "<!-- written by hand, kept by the tool: begin -->", "<!-- end -->"
RULES = f"""\
A claim compares two rows on the same scenes with the same noise. "Higher" and "lower" hold if the 95 % interval of the
paired difference lies on that side of 0 and are contradicted if it lies on the other; "equal" holds if the interval
lies within ±{MARGIN} and is contradicted if it lies outside. Anything else is open. A trend holds if all its claims do.
Intervals are bootstrapped over scenes with all their images and not corrected for the number of claims."""


def document(options: Options, runs: Runs, previous: str | None) -> str:
    """The text in Markdown; what was written by hand in `previous` is kept."""
    parts = ["# Ablations on the shapes world", *_setting(options, runs), "## Which trends hold", RULES]
    parts += ["\n".join(_trends(runs)), BEGIN, by_hand(previous), END]
    for kind in options.kinds:
        parts += [f"## {kind.capitalize()}: {KINDS[kind]}", "\n".join(_table(options, kind, runs))]
    parts += ["## Pictures", "The first two scenes of each kind and their first seed, not chosen.", "![](ablation.png)"]
    return "\n\n".join(parts) + "\n"


def by_hand(previous: str | None) -> str:
    """What stands between the marks of an earlier document."""
    if not previous or BEGIN not in previous or END not in previous:
        return ""
    return previous.split(BEGIN, 1)[1].split(END, 1)[0].strip()


def previous_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _setting(options: Options, runs: Runs) -> Iterator[str]:
    run = next(run for (_, name), run in runs.items() if name != BOUNDS)
    made = run.settings
    yield (
        f"Written by `python -m eval.ablation`; only what follows the trends is by hand. {options.limit} unseen scenes "
        f"of each kind, {options.seeds} seeds each, {made['num_inference_steps']} steps, {made['weight_dtype']}. "
        f"Adapters: step {made['training_steps']}, sha256 {made['adapter']['sha256'][:12]}; commit {run.commit[:12]}; "
        f"{run.machine['name']}."
    )
    yield (
        "Rows without training steps of their own use those adapters with other settings than they were trained with. "
        "That says what a part does in this model, not what a model without it would have learned: adapters trained "
        "with AIA know little of attention without it. For that there are the trained rows, one training run each."
    )
    yield (
        "Colour, pattern and leaks in per cent of regions and of their pixels. A region that shows nothing leaks "
        f"nothing; “{LEAK_WHERE_COLOURED}” is the share of another entity's colour in what has any entity's colour."
    )
    missing = [name for name in TRAINED if name not in {row.name for row in options.rows}]
    if missing:
        yield f"Not trained yet: {', '.join(missing)}."


def _trends(runs: Runs) -> Iterator[str]:
    yield "| said | by | verdict | claims, with difference and 95 % interval |"
    yield "|---|---|---|---|"
    for trend, found, verdict in all_checked(runs):
        lines = [f"*{found[0].claim.a}* less *{found[0].claim.b}*"] if found else []
        lines += [
            f"{one.claim.kind}, {one.claim.number} {one.claim.expected}: {_gap(one.claim.number, one.difference)}, "
            f"{one.verdict}"
            for one in found
        ]
        yield f"| {trend.text} | {trend.by} | **{verdict}** | {'<br>'.join(lines)} |"


def _table(options: Options, kind: str, runs: Runs) -> Iterator[str]:
    yield "Below each value its difference to the row that it is compared with, bold where the interval leaves out 0."
    yield ""
    yield f"| row | steps | {' | '.join(NUMBERS)} | s/image |"
    yield "|---|---|" + "---|" * (len(NUMBERS) + 1)
    for source in sources(runs[kind, BOUNDS]):
        yield f"| *{source}* | | {' | '.join(_bound(runs[kind, BOUNDS], source))} | |"
    present = {name for of_kind, name in runs if of_kind == kind}
    for row in (row for row in options.rows if row.name in present):
        run, other = runs[kind, row.name], compared_with(row, present)
        cells = [_cell(number, run, runs[kind, other] if other != row.name else None) for number in NUMBERS]
        beside = "" if row.adapter is None else f" (beside {other})"
        steps = "" if row.adapter is None else str(run.settings["training_steps"])
        seconds = run.row(TOKENS).extra["seconds_per_image"]
        yield f"| **{row.name}**: {row.told}{beside} | {steps} | {' | '.join(cells)} | {seconds:.2f} |"


def sources(run: Run) -> list[str]:
    return list(dict.fromkeys(row.source for row in run.rows))


def _bound(run: Run, source: str) -> list[str]:
    found = {row.name: row.value for row in run.rows if row.source == source}
    return [_shown(number, found[number]) if number in found else "" for number in NUMBERS]


def _cell(number: str, run: Run, other: Run | None) -> str:
    if number not in run.parts or (other is not None and number not in other.parts):
        return _shown(number, run.row(number).value) if number in run.parts else "nothing"
    value = _shown(number, run.row(number).value)
    if other is None:
        row = run.row(number)
        return f"{value}<br>[{_shown(number, row.low)}, {_shown(number, row.high)}]"
    gap = paired_difference(run.parts[number], other.parts[number])
    text = _gap(number, gap)
    return f"{value}<br>{f'**{text}**' if gap.is_clear else text}"


def _gap(number: str, gap: Difference) -> str:
    value, low, high = (_shown(number, part, "+") for part in (gap.value, gap.low, gap.high))
    return f"{value} [{low}, {high}]"


def _shown(number: str, value: float | None, sign: str = "") -> str:
    """Shares in per cent, IoU as a fraction, tokens as a count."""
    if value is None or math.isnan(value):
        return "–"
    if number == TOKENS:
        return f"{value:{sign}.0f}"
    return f"{value:{sign}.3f}" if number in FRACTIONS else f"{100 * value:{sign}.1f}"


def summary(rows: Sequence[Row], runs: Runs) -> dict:
    """The document's numbers for programs."""
    told = {row.name: {"told": row.told, "changes": dict(row.changes)} for row in rows}
    content = [
        {"kind": kind, "row": name, **told.get(name, {}), "commit": run.commit}
        | {key: run.settings[key] for key in ("adapter", "training_steps") if key in run.settings}
        | {"numbers": [_number(row) for row in run.rows]}
        for (kind, name), run in runs.items()
    ]
    trends = [
        {"trend": trend.text, "by": trend.by, "verdict": verdict, "claims": [_checked(one) for one in found]}
        for trend, found, verdict in all_checked(runs)
    ]
    shared = next(run.settings for (_, name), run in runs.items() if name == REFERENCE.name)
    return {"schema": 1, "settings": shared, "trends": trends, "rows": content}


def _number(row: Number) -> dict:
    return {"name": row.name, "source": row.source, "value": row.value, "low": row.low, "high": row.high, **row.extra}


def _checked(one: Checked) -> dict:
    gap = {"difference": one.difference.value, "low": one.difference.low, "high": one.difference.high}
    return {**vars(one.claim), **gap, "scenes": one.difference.n, "verdict": one.verdict}
