"""A finding of `doctor`: what was looked at, whether it works, and the exact way to mend it."""

from __future__ import annotations

from dataclasses import dataclass

GOOD, POOR, BAD = "ok", "note", "problem"  # works; works, but slowly or not for everything; does not work


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    state  GOOD, POOR or BAD
    told   the facts
    fix    a command to type, or what to do; "" for GOOD
    """

    subject: str
    state: str
    told: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.subject:<9} {self.state:<8} {self.told}"
        return f"{line}\n{'':<19}{self.fix}" if self.fix else line
