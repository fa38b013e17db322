"""Check Seg2Any on a GPU; benchmarks/gpu/README.md explains the numbers.

    python -m benchmarks.gpu --list
    python -m benchmarks.gpu env kernels
    python -m benchmarks.gpu --size tiny --device cpu    the same code without a GPU; its numbers mean nothing

Every check prints lines that begin with its name. If a check fails, the others still run, and the exit status is 1.
"""

from __future__ import annotations

import argparse

from seg2any.system.console import exit_status, real
from seg2any.system.errors import UserError
from seg2any.system.interrupts import run_command


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 done, 1 a check failed, 2 wrong input, 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="checks to run; default: all")
    parser.add_argument("--list", action="store_true", help="print the names of the checks and what they measure")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--size", choices=("flux", "tiny"), default="flux", help="default: %(default)s")
    parser.add_argument("--seconds", type=real(0), default=100, help="time limit of `oracle`; default: %(default)s")
    options = parser.parse_args(arguments)
    return exit_status("benchmarks.gpu", lambda: run(options), "start again")


def run(options: argparse.Namespace) -> int:
    """Run the named checks; return 1 if one failed. Raises UserError for an unknown name."""
    from benchmarks.gpu import kernels, machine, model, train  # late: torch takes seconds to load
    from benchmarks.gpu.measure import Run, run_check

    checks = {check.__name__: check for room in (machine, model, kernels, train) for check in room.CHECKS}
    if unknown := set(options.names) - checks.keys():
        raise UserError(f"{min(unknown)}: no check has this name; choose from {', '.join(checks)}")
    if options.list:
        print(*(f"{name:<14}{check.__doc__.splitlines()[0]}" for name, check in checks.items()), sep="\n")
        return 0
    on = Run.of(options.size, options.device, options.seconds)
    return max(run_check(checks[name], on) for name in options.names or checks)


if __name__ == "__main__":
    run_command(main)
