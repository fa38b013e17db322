"""Write the result of `benchmarks.step` as a page of tables, to be read beside docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from benchmarks.clock import Ratio
from benchmarks.step_schemes import LIMIT, PLAIN, PUBLISHED


def page(report: dict) -> str:
    """Format a report, the JSON of `benchmarks.step`, as Markdown."""
    machine, versions = report["machine"], report["versions"]
    about = f"{machine['name']}, threads: {machine['threads']}, torch {versions['torch']}, commit {report['commit']}"
    lines = [
        "# Speed of a step",
        "",
        f"Written by `python -m benchmarks.step --size {report['size']}`: {about}, {report['dtype']}, "
        f"{report['clock']} time. `docs/performance.md` explains the schemes. A ratio is that of one round: median "
        "[least..most].",
        "",
        *bars(report["bars"]),
        "",
        *steps(report["results"]),
    ]
    if report["growth"]:
        lines += ["", *growth(report["growth"])]
    return "\n".join(lines) + "\n"


def bars(rows: Sequence[dict]) -> Iterator[str]:
    """Yield the table of the bars."""
    yield from ("| bar | measured | asked | aim | |", "|---|---|---|---|---|")
    for row in rows:
        spread = " [{:.2f}..{:.2f}]".format(*row["spread"]) if row["spread"] else ""
        asked = f"{'at least' if row['at_least'] else 'at most'} {row['bound']:g}"
        aim = "" if row["aim"] is None else f"{row['aim']:g}"
        verdict = "met" if row["is_met"] else "MISSED"
        yield f"| {row['name']} | {row['value']:.2f}{spread} | {asked} | {aim} | {verdict} |"


def steps(rows: Sequence[dict]) -> Iterator[str]:
    """Yield the table of the steps, with the ratios of each scheme to others of its case."""
    names = ("size", "px", "entities", "batch", "tokens", "scheme", "s a step")
    yield f"| {' | '.join(names)} | published / this | this / plain | this / limit |"
    yield "|---" * 10 + "|"
    cases = [(row["size"], row["side"], row["n_entities"], row["batch_size"]) for row in rows]
    seconds = {(*case, row["scheme"]): row["seconds"] for case, row in zip(cases, rows, strict=True)}
    for case, row in zip(cases, rows, strict=True):
        own, published, plain, limit = (seconds.get((*case, name)) for name in (row["scheme"], PUBLISHED, PLAIN, LIMIT))
        cells = [*case, row["tokens"], row["scheme"], f"{median(own):.3f}"]
        cells += [ratio(published, own), ratio(own, plain), ratio(own, limit)]
        yield f"| {' | '.join(map(str, cells))} |"


def growth(rows: Sequence[dict]) -> Iterator[str]:
    """Yield the table of what 20 entities cost beside 1."""
    yield from ("| from 1 to 20 entities | px | tokens | times the tokens | s | s | times the time |", "|---" * 7 + "|")
    for row in rows:
        few, many = row["seconds"]
        cells = [row["reading"], row["side"], "{} -> {}".format(*row["tokens"]), f"{row['token_growth']:.2f}"]
        cells += [f"{median(few):.3f}", f"{median(many):.3f}", ratio(many, few)]
        yield f"| {' | '.join(map(str, cells))} |"


def ratio(seconds: Sequence[float] | None, others: Sequence[float] | None) -> str:
    """Format the ratio of two works, or "" if one of them was not measured."""
    return str(Ratio.of(seconds, others)) if seconds and others else ""
