"""Put verdicts on trends in words that say what a difference and its interval show."""

from __future__ import annotations

import math
from collections.abc import Iterator

from seg2any.evaluation.ablation.measure import TOKENS
from seg2any.evaluation.ablation.trends import (
    AGAINST,
    ALL,
    HOLDS,
    IN_PART,
    MARGIN,
    NOT_MEASURED,
    NOTHING,
    UNDECIDED,
    Checked,
    Runs,
    Trend,
    all_checked,
)
from seg2any.evaluation.metrics.bootstrap import Difference
from seg2any.evaluation.shapes.results import FRACTIONS

HEADINGS = {
    ALL: "Hold here",
    IN_PART: "Hold in part: the claims that say so, and not the others",
    NOTHING: "Do not hold here",
    UNDECIDED: "Undecided: these scenes show neither the trend nor its opposite",
    NOT_MEASURED: "Not measured",
}
WHERE = {"normal": "on normal scenes", "badges": "on badges", "thin": "on thin figures"}


def shown(number: str, value: float | None, sign: str = "") -> str:
    """Format a number: shares in per cent, IoU as a fraction, tokens as a count."""
    if value is None or math.isnan(value):
        return "–"
    if number == TOKENS:
        return f"{value:{sign}.0f}"
    return f"{value:{sign}.3f}" if number in FRACTIONS else f"{100 * value:{sign}.1f}"


def gap(number: str, difference: Difference) -> str:
    """Format a difference with its interval."""
    value, low, high = (shown(number, part, "+") for part in (difference.value, difference.low, difference.high))
    return f"{value} [{low}, {high}]"


def trends_in_words(runs: Runs) -> Iterator[str]:
    """Yield paragraphs of Markdown: the trends by verdict, each with its claims."""
    found = list(all_checked(runs))
    for verdict, heading in HEADINGS.items():
        trends = [(trend, claims) for trend, claims, of_trend in found if of_trend == verdict]
        if trends:
            yield f"### {heading}"
            yield "\n".join(line for trend, claims in trends for line in _trend(trend, claims))


def _trend(trend: Trend, found: list[Checked]) -> Iterator[str]:
    yield f"- **{trend.text[0].upper()}{trend.text[1:]}**, {_said_by(trend)}.{_rows(trend, found)}"
    for one in found:
        claim = one.claim
        yield f"  - {claim.number} {WHERE[claim.kind]}: {gap(claim.number, one.difference)}, {outcome(one)}"


def _said_by(trend: Trend) -> str:
    return "says the paper" if trend.by == "paper" else "is our own question"


def _rows(trend: Trend, found: list[Checked]) -> str:
    """Say which rows are compared, and how many claims were measured."""
    claim = trend.claims[0]
    partly = f"; {len(found)} of {len(trend.claims)} claims measured" if len(found) < len(trend.claims) else ""
    return f" *{claim.a}* less *{claim.b}*{partly}:" if found else f" Needs *{claim.a}* and *{claim.b}*."


def outcome(one: Checked) -> str:
    """Say what the interval shows about a claim."""
    difference, expected = one.difference, one.claim.expected
    if math.isnan(difference.low):
        return "too few scenes for an interval"
    way = "higher" if difference.value > 0 else "lower"
    if expected == "equal":
        return _equal(one, way, f"{shown(one.claim.number, MARGIN)}")
    if one.verdict == HOLDS:
        return f"{way} as said"
    return f"{way}, the opposite of what is said" if one.verdict == AGAINST else "no difference shown"


def _equal(one: Checked, way: str, margin: str) -> str:
    if one.verdict == HOLDS:
        return f"equal within ±{margin} as said"
    if one.verdict == AGAINST:
        return f"{way} by more than {margin}, so not equal"
    if one.difference.is_clear:
        return f"{way}, perhaps by less than {margin}"
    return "shown neither equal nor different"
