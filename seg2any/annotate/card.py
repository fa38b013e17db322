"""Describe a set for people: numbers of every rule, distributions, time of each stage, and a sheet of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from seg2any.annotate.output import RAW, TABLE
from seg2any.annotate.plan import Plan
from seg2any.annotate.prompts import PROMPTS, VERSION
from seg2any.annotate.rules import UNCONFIRMED, UNPUBLISHED
from seg2any.annotate.sheet import contact_sheet, histograms
from seg2any.annotate.stages import ENDPOINT, Outcome
from seg2any.system.files import atomic_write

CARD, HISTOGRAMS, SHEET = "card.md", "histograms.png", "contact_sheet.png"
PUBLISHED = {"masks a photo": 5.9, "words a region": 14.1, "words a photo": 58.6}  # of SACap-1M, by its paper
SAMPLES = 12


@dataclass
class Counts:
    """Numbers of a set, collected record by record."""

    photos: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    def add(self, record: Mapping) -> None:
        """Count a record of a kept photo."""
        self.photos += 1
        height, width = record["size"]
        self._note("masks a photo", len(record["regions"]))
        for area in record["areas"]:
            self._note("share of the photo, %", 100 * area / (height * width))
        for _, caption in record["regions"]:
            self._note("words a region", len(caption.split()))
        if record["caption"]:
            self._note("words a photo", len(record["caption"].split()))
        self._note("shorter edge, pixels", min(record["size"]))
        self._note("longer edge by shorter edge", max(record["size"]) / min(record["size"]))
        if record["aesthetic"] is not None:
            self._note("aesthetics", record["aesthetic"])
        self.seconds.update(record["seconds"])
        self.left.update(record["left"])
        self.tokens.update(dict(zip(("read", "written"), record["tokens"], strict=True)))
        self.sources[record["source"]] += 1

    def _note(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)


def write_card(plan: Plan, outcomes: Iterable[Outcome], dropped: Mapping[str, int], failed: int) -> None:
    """Write card.md with its two pictures into the folder of the set."""
    counts = Counts()
    for outcome in outcomes:
        counts.add(outcome.record)
    if counts.photos:
        _save(plan.root / HISTOGRAMS, histograms(counts.values))
        _save(plan.root / SHEET, contact_sheet(plan.root / TABLE, plan.root / RAW, SAMPLES))
    with atomic_write(plan.root / CARD) as temporary:
        temporary.write_text(card(plan, counts, dropped, failed), encoding="utf-8")


def _save(path: Path, picture) -> None:
    with atomic_write(path) as temporary:
        picture.save(temporary)


def card(plan: Plan, counts: Counts, dropped: Mapping[str, int], failed: int) -> str:
    """Return the text of the card."""
    total = counts.photos + sum(dropped.values()) + failed
    parts = [
        f"# {plan.root.name}",
        f"{counts.photos:,} photos of {total:,}: {sum(dropped.values()):,} dropped by rules, {failed:,} failed.",
        "## Rules",
        _rules(plan, dropped),
        _masks_left(counts),
        "## Sources",
        "\n".join(f"* {source}: {number:,} photos" for source, number in counts.sources.most_common()),
        *_prompts(plan),
        "## Distributions",
        _distributions(counts),
        f"![Histograms]({HISTOGRAMS})",
        "## Time",
        _time(counts),
        "## Samples",
        f"![Contact sheet]({SHEET})",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _rules(plan: Plan, dropped: Mapping[str, int]) -> str:
    rows = []
    for name, value in asdict(plan.rules).items():
        remark = "no published code confirms this number" if name in UNCONFIRMED else ""
        remark = "not published, our choice" if name in UNPUBLISHED else remark
        if name == "min_aesthetic" and plan.predictor is None:
            remark = "not applied: no predictor was given"
        rows.append(f"| {name} | {value} | {dropped.get(name, 0):,} | {remark} |")
    return "\n".join(["| rule | number | photos dropped | |", "|---|---|---|---|", *rows])


def _masks_left(counts: Counts) -> str:
    """Say how many masks of the kept photos each rule has left."""
    names = [name for name in ("masks", "top level", "area") if name in counts.left]
    return "Masks of these photos: " + ", ".join(f"{counts.left[name]:,} after {name}" for name in names) + "."


def _prompts(plan: Plan) -> list[str]:
    if plan.captions.kind not in (ENDPOINT, "local"):
        return []
    return [f"Prompts {VERSION}:", *(f"> {name}: {text}" for name, text in PROMPTS.items())]


def _distributions(counts: Counts) -> str:
    rows = []
    for name, values in counts.values.items():
        low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
        published = PUBLISHED.get(name, "")
        rows.append(f"| {name} | {np.mean(values):.2f} | {low:.4g} | {middle:.4g} | {high:.4g} | {published} |")
    head = ["| | mean | 5 % | median | 95 % | mean of SACap-1M |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _time(counts: Counts) -> str:
    rows = []
    for name, seconds in counts.seconds.items():
        each = seconds / max(1, counts.photos)
        rate = f"{1 / each:,.1f}" if each > 0 else ""
        rows.append(f"| {name} | {1000 * each:,.2f} | {rate} |")
    tokens = (
        f"Tokens: {counts.tokens['read']:,} read and {counts.tokens['written']:,} written."
        if any(counts.tokens.values())
        else ""
    )
    head = ["| stage | ms a kept photo | photos a second and process |", "|---|---|---|"]
    return "\n".join([*head, *rows]) + (f"\n\n{tokens}" if tokens else "")
