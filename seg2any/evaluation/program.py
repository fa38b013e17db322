"""The parts that every program of this package shares: flags of the machine, and how a measurement is run."""

from __future__ import annotations

from collections.abc import Callable

from seg2any.system.allocator import let_segments_grow
from seg2any.system.arguments import Parser
from seg2any.system.console import exit_status, plain_messages
from seg2any.system.precision import PRECISIONS
from seg2any.system.threads import compute_on_idle_cores


def add_machine_flags(parser: Parser) -> None:
    """Add the flags of the device and its precision."""
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best one present)")
    parser.add_argument(
        "--weight_dtype", choices=PRECISIONS, help="default: bf16 where the device computes in it, else fp32"
    )


def measured_status(program: str, measure: Callable[[], None], *advice: str) -> int:
    """Run a measurement with plain messages on the idle cores, and return the exit status.

    advice  ends the line of an interrupted run; default: that of `exit_status`

    `measure` imports what takes seconds: --help must not wait for it.
    """

    def run() -> None:
        with plain_messages():
            let_segments_grow()
            compute_on_idle_cores()
            measure()

    return exit_status(program, run, *advice)
