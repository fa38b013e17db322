"""State the trends of the paper as claims, and judge them by rules fixed in advance.

A claim compares two rows on the same scenes and seeds: "higher" and "lower" hold if the 95 % interval of the paired
difference lies on that side of 0, and are contradicted if it lies on the other. "equal" holds if the interval lies
within MARGIN of 0, and is contradicted if it lies outside of that. In all other cases a claim is open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from seg2any.evaluation.ablation.measure import TOKENS
from seg2any.evaluation.ablation.rows import ALIKE, REFERENCE
from seg2any.evaluation.metrics.bootstrap import Difference, paired_difference
from seg2any.evaluation.report.results import Run
from seg2any.evaluation.shapes.results import LEAK_WHERE_COLOURED

MARGIN = 0.03  # largest difference of a share or an IoU that counts as none
HOLDS, AGAINST, OPEN = "holds", "contradicted", "open"  # verdicts on a claim
ALL, IN_PART, NOTHING, UNDECIDED = "holds", "holds in part", "does not hold", "undecided"  # verdicts on a trend
NOT_MEASURED = "not measured"
Runs = Mapping[tuple[str, str], Run]  # kind, row -> what was measured


@dataclass(frozen=True)
class Claim:
    """The expected difference of one number between rows `a` and `b`, on scenes of `kind`.

    expected  "higher", "lower" or "equal": row a's number compared with row b's
    """

    kind: str
    number: str
    a: str
    b: str
    expected: str


@dataclass(frozen=True)
class Checked:
    """A claim, A minus B, and HOLDS, AGAINST or OPEN."""

    claim: Claim
    difference: Difference
    verdict: str


@dataclass(frozen=True)
class Trend:
    """A statement, the claims that follow from it, and `by`, who states it: "paper" or "ours"."""

    text: str
    claims: tuple[Claim, ...]
    by: str = "paper"


def _claims(kinds: str, numbers: str, a: str, b: str, expected: str) -> tuple[Claim, ...]:
    pairs = product(kinds.split(", "), numbers.split(", "))
    return tuple(Claim(kind, number, a, b, expected) for kind, number in pairs)


EVERYWHERE, QUALITY = "normal, badges, thin", "colour, IoU, boundary IoU"
TRENDS = (
    Trend(
        "a semantic mask gives every region its attribute (masks without contour against the global caption alone)",
        _claims("normal, badges", "colour, pattern", "hard-no-contour", "none-bare", "higher"),
    ),
    Trend(
        "a semantic mask gives every region its attribute (trained with SAA only, against the global caption alone)",
        _claims("normal, badges", "colour, pattern", "trained-base", "none-bare", "higher"),
    ),
    Trend(
        "the contour gives the shape (contour tokens on against off, one adapter)",
        _claims("normal, thin", "IoU, boundary IoU", REFERENCE.name, "hard-no-contour", "higher"),
    ),
    Trend(
        "the contour gives the shape (trained with it against trained without)",
        _claims("normal, thin", "IoU, boundary IoU", ALIKE, "trained-no-contour", "higher"),
    ),
    Trend(
        "isolation means less leakage in crowded scenes (AIA against SAA alone, one adapter)",
        (
            *_claims("badges", LEAK_WHERE_COLOURED, REFERENCE.name, "base", "lower"),
            *_claims("badges", "colour, pattern", REFERENCE.name, "base", "higher"),
        ),
    ),
    Trend(
        "isolation means less leakage in crowded scenes (trained with AIA against trained with SAA alone)",
        (
            *_claims("badges", LEAK_WHERE_COLOURED, ALIKE, "trained-base", "lower"),
            *_claims("badges", "colour, pattern", ALIKE, "trained-base", "higher"),
        ),
    ),
    Trend(
        "the filter means equal quality with fewer tokens",
        (
            *_claims(EVERYWHERE, TOKENS, REFERENCE.name, "hard-unfiltered", "lower"),
            *_claims(EVERYWHERE, QUALITY, REFERENCE.name, "hard-unfiltered", "equal"),
        ),
    ),
    Trend(
        "gamma is the strength of the shape (0.2 against 1)",
        _claims("normal, thin", "IoU, boundary IoU", "gamma-0.2", REFERENCE.name, "lower"),
    ),
    Trend(
        "contour tokens that see only each other cost no quality",
        _claims(EVERYWHERE, QUALITY, "trained-isolated", ALIKE, "equal"),
        by="ours",
    ),
)
NEEDED = frozenset(row for trend in TRENDS for claim in trend.claims for row in (claim.a, claim.b))


def check(claim: Claim, runs: Runs) -> Checked | None:
    """Check a claim; None if a row was not measured, lacks the number, or cannot be compared."""
    a, b = (runs.get((claim.kind, row)) for row in (claim.a, claim.b))
    if a is None or b is None or not comparable(a, b) or not (claim.number in a.parts and claim.number in b.parts):
        return None
    difference = paired_difference(a.parts[claim.number], b.parts[claim.number])
    return Checked(claim, difference, _verdict(difference, claim.expected))


def comparable(a: Run, b: Run) -> bool:
    """Say whether two runs were trained for equally many steps.

    The base model, which was not trained for any row, is comparable with all.
    """
    steps = {training["steps"] for run in (a, b) if (training := run.settings.get("training")) is not None}
    return len(steps) <= 1


def _verdict(difference: Difference, expected: str) -> str:
    low, high = difference.low, difference.high
    if expected == "equal":
        within, outside = low >= -MARGIN and high <= MARGIN, low > MARGIN or high < -MARGIN
    else:
        low, high = (low, high) if expected == "higher" else (-high, -low)
        within, outside = low > 0, high < 0
    return HOLDS if within else AGAINST if outside else OPEN


def checked(trend: Trend, runs: Runs) -> list[Checked]:
    """Check the claims of a trend whose rows were measured."""
    return [found for claim in trend.claims if (found := check(claim, runs)) is not None]


def verdict(found: list[Checked]) -> str:
    """Judge a trend by its claims.

    It holds if all of them do, and does not if none holds and some are contradicted.
    """
    said = {one.verdict for one in found}
    if not said:
        return NOT_MEASURED
    if HOLDS in said:
        return ALL if said == {HOLDS} else IN_PART
    return NOTHING if AGAINST in said else UNDECIDED


def all_checked(runs: Runs) -> Iterator[tuple[Trend, list[Checked], str]]:
    """Yield every trend with its checked claims and its verdict."""
    for trend in TRENDS:
        found = checked(trend, runs)
        yield trend, found, verdict(found)
