"""The document docs/ablation.md and its JSON, both written from the measured rows.

Only the text between the document's two marks is written by hand; it is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from seg2any.evaluation.ablation.measure import BOUNDS, TOKENS
from seg2any.evaluation.ablation.options import Options
from seg2any.evaluation.ablation.rows import ALIKE, KINDS, TRAINED, TRAINING_FREE, Row, compared_with
from seg2any.evaluation.ablation.trends import MARGIN, Checked, Runs, all_checked, comparable
from seg2any.evaluation.ablation.words import gap, shown, trends_in_words
from seg2any.evaluation.metrics.bootstrap import paired_difference
from seg2any.evaluation.report.results import Row as Number
from seg2any.evaluation.report.results import Run
from seg2any.evaluation.shapes.results import LEAK_WHERE_COLOURED

NUMBERS = ("colour", "pattern", "IoU", "boundary IoU", "leak", LEAK_WHERE_COLOURED, TOKENS)
SHARED = ("num_inference_steps", "guidance_scale", "weight_dtype", "scenes", "seeds", "seed")  # settings of all rows
BEGIN, END = "<!-- written by hand, kept by the tool: begin -->", "<!-- end -->"
RULES = f"""\
A claim compares two rows on the same scenes with the same noise. "Higher" and "lower" hold if the 95 % interval of the
paired difference lies on that side of 0, and are contradicted if it lies on the other; "equal" holds if the interval
lies within ±{MARGIN} (for numbers in per cent: {100 * MARGIN:g}), and is contradicted if it lies outside. All else is
open. A trend holds if all its claims do, and does not hold if some are contradicted and none holds. Intervals are
bootstrapped over scenes with all their images, and not corrected for the number of claims."""


def document(options: Options, rows: Sequence[Row], runs: Runs, previous: str | None) -> str:
    """Write the Markdown about the measured rows, keeping the hand-written part of `previous`."""
    parts = ["# Ablations on the shapes world", _setting(options, rows, runs), *_trained(rows, runs)]
    parts += ["## Which trends hold", RULES, *trends_in_words(runs), BEGIN, by_hand(previous), END]
    for kind in (kind for kind in options.kinds if any(kind == of_run for of_run, _ in runs)):
        parts += [f"## {kind.capitalize()}: {KINDS[kind]}", "\n".join(_table(rows, kind, runs))]
    parts += ["## Pictures", "The first two scenes of each kind and their first seed, not chosen."]
    parts += ["![the same scenes by every row](ablation.png)"]
    return "\n\n".join(parts) + "\n"


def by_hand(previous: str | None) -> str:
    """Return the text between the marks of an earlier document."""
    if not previous or BEGIN not in previous or END not in previous:
        return ""
    return previous.split(BEGIN, 1)[1].split(END, 1)[0].strip()


def previous_text(path: Path) -> str | None:
    """Read the document of an earlier run; None if there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _setting(options: Options, rows: Sequence[Row], runs: Runs) -> str:
    of_row = _settings(rows, runs)
    made = next(iter(of_row.values()))
    measured = [run for (_, name), run in runs.items() if name != BOUNDS]
    lines = [
        "Written by `python -m seg2any.evaluation.ablation`; by hand is only what follows the trends. "
        f"{options.limit} unseen scenes of each kind, {_counted(options.seeds, 'image')} of each, "
        f"{made['num_inference_steps']} denoising steps, {made['weight_dtype']}. "
        f"Measured on {_listed(run.machine['name'] for run in measured)}, commit "
        f"{_listed(run.commit[:12] for run in measured)}."
    ]
    tested = [row.name for row in rows if row.adapter is None and not row.is_bare and row.name in of_row]
    if tested:
        settings = of_row[tested[0]]
        lines.append(
            f"The adapters under test: {_steps(settings)} of their last training, sha256 "
            f"{settings['adapter']['sha256'][:12]}. Rows without training steps of their own use them with other "
            "settings than they were trained with. That says what a part does in this model, not what a model without "
            "it would have learned: adapters trained with AIA know little of attention without it."
        )
    lines.append(
        "Colour, pattern and leaks in per cent of regions and of their pixels. A region that shows nothing leaks "
        f"nothing; “{LEAK_WHERE_COLOURED}” is the share of another entity's colour in what has any entity's colour. "
        "Seconds are by the clock of the run, whatever else the machine did; they are no benchmark."
    )
    return "\n\n".join(lines)


def _trained(rows: Sequence[Row], runs: Runs) -> Iterator[str]:
    """Say how the trained rows were trained, and which are missing."""
    of_row = {row.name: settings for row in rows if row.adapter and (settings := _settings([row], runs).get(row.name))}
    if of_row:
        trained = {name: settings["training"] for name, settings in of_row.items()}
        seeds = _listed(str(one["seed"]) for one in trained.values() if one["seed"] is not None)
        machines = _listed(one["machine"] for one in trained.values() if one["machine"])
        yield (
            f"Trained rows: {', '.join(f'{name} {_steps(settings)}' for name, settings in of_row.items())}; one "
            f"training run each{f' (seed {seeds})' if seeds else ''}{f', on {machines}' if machines else ''}. They are "
            f"compared with {ALIKE} and with each other, never with the adapters under test, which were trained for "
            "another time. The intervals know of scenes and noise; what another training run would have given, they "
            "do not know."
        )
        if len({one["steps"] for one in trained.values()}) > 1:
            yield "**These rows were not trained equally long; those that were not are not compared.**"
    if missing := [name for name in TRAINED if name not in of_row]:
        yield f"Not measured, because it takes training: {', '.join(missing)}."
    present = {row.name for row in rows}
    if missing := [row.name for row in TRAINING_FREE if row.name not in present]:
        yield f"Not measured this time: {', '.join(missing)}."


def _settings(rows: Sequence[Row], runs: Runs) -> dict[str, Mapping]:
    """Return the settings of each measured row."""
    return {row.name: run.settings for row in rows for (_, name), run in runs.items() if name == row.name}


def _steps(settings: Mapping) -> str:
    steps = (settings["training"] or {}).get("steps")
    return "steps unknown" if steps is None else f"{steps:,} steps"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _listed(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _table(rows: Sequence[Row], kind: str, runs: Runs) -> Iterator[str]:
    yield "Below each value its difference to the row that it is compared with, bold where the interval leaves out 0."
    yield ""
    yield f"| row | steps | {' | '.join(NUMBERS)} | s/image |"
    yield "|---|---|" + "---|" * (len(NUMBERS) + 1)
    for source in sources(runs[kind, BOUNDS]) if (kind, BOUNDS) in runs else ():
        yield f"| *{source}* | | {' | '.join(_bound(runs[kind, BOUNDS], source))} | |"
    for row in (row for row in rows if (kind, row.name) in runs):
        run, other = runs[kind, row.name], runs.get((kind, compared_with(row)))
        other = other if other is not None and comparable(run, other) else None
        cells = [_cell(number, run, other) for number in NUMBERS]
        beside = "" if row.adapter is None or other is None else f" (beside {compared_with(row)})"
        steps = "" if row.adapter is None else _steps(run.settings).removesuffix(" steps")
        seconds = run.row(TOKENS).extra["seconds_per_image"]
        yield f"| **{row.name}**: {row.description}{beside} | {steps} | {' | '.join(cells)} | {seconds:.2f} |"


def sources(run: Run) -> list[str]:
    """List the sources of images that the run has numbers of, in order."""
    return list(dict.fromkeys(row.source for row in run.rows))


def _bound(run: Run, source: str) -> list[str]:
    found = {row.name: row.value for row in run.rows if row.source == source}
    return [shown(number, found[number]) if number in found else "" for number in NUMBERS]


def _cell(number: str, run: Run, other: Run | None) -> str:
    if number not in run.parts:
        return "nothing"
    row = run.row(number)
    value = shown(number, row.value)
    if other is None:
        return f"{value}<br>[{shown(number, row.low)}, {shown(number, row.high)}]"
    if number not in other.parts:
        return value
    difference = paired_difference(run.parts[number], other.parts[number])
    text = gap(number, difference)
    return f"{value}<br>{f'**{text}**' if difference.is_clear else text}"


def summary(rows: Sequence[Row], runs: Runs) -> dict:
    """Collect trends, rows and numbers as JSON values.

    Weights are named by digest, because paths belong to one machine.
    """
    about = {row.name: {"told": row.description, "changes": dict(row.changes)} for row in rows}
    content = [
        {"kind": kind, "row": name, **about.get(name, {}), "commit": run.commit, "machine": run.machine}
        | {key: digest(run.settings[key]) for key in ("model", "adapter") if key in run.settings}
        | ({"training": run.settings["training"]} if "training" in run.settings else {})
        | {"numbers": [_number(row) for row in run.rows]}
        for (kind, name), run in runs.items()
    ]
    trends = [
        {"trend": trend.text, "by": trend.by, "verdict": verdict, "unmeasured": len(trend.claims) - len(found)}
        | {"claims": [_checked(one) for one in found]}
        for trend, found, verdict in all_checked(runs)
    ]
    made = next(run.settings for (_, name), run in runs.items() if name in about)
    shared = {key: made[key] for key in SHARED}
    return {"schema": 1, "settings": shared, "trends": trends, "rows": content}


def digest(weights: Mapping | None) -> str | None:
    """Return what identifies weights on any machine: a fingerprint, a digest, or a hub id."""
    return weights and (weights.get("fingerprint") or weights.get("sha256") or weights.get("id"))


def _number(row: Number) -> dict:
    return {"name": row.name, "source": row.source, "value": row.value, "low": row.low, "high": row.high, **row.extra}


def _checked(one: Checked) -> dict:
    gap = {"difference": one.difference.value, "low": one.difference.low, "high": one.difference.high}
    return {**vars(one.claim), **gap, "scenes": one.difference.n, "verdict": one.verdict}
