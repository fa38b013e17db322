"""Numbers with what they have to reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """A number that must not exceed `bound`, or with `at_least` not fall below it."""

    name: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Meeting the bound exactly is enough."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def lines(bars: Sequence[Bar]) -> list[str]:
    """One for each bar, in columns."""
    width = max((len(bar.name) for bar in bars), default=0)
    return [
        f"{bar.name:<{width}} {bar.value:>8.4f} {'>=' if bar.at_least else '<='} {bar.bound:<6.4g}  "
        f"{'met' if bar.is_met else 'MISSED'}"
        for bar in bars
    ]
