"""Print messages of one line each, keep progress bars intact, and silence the libraries."""

from __future__ import annotations

import argparse
import io
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from seg2any.system import interrupts
from seg2any.system.errors import Incomplete, UserError, printable


@contextmanager
def plain_messages() -> Iterator[None]:
    """Show warnings (once) and log messages as one line each, and hide those of libraries.

    Enter it before the libraries are imported.
    """
    quiet_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold characters that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    shown = set()

    def show(message: Warning | str, *place: object) -> None:
        text = " ".join(str(message).split())
        if text not in shown:
            shown.add(text)
            warn([text])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*deprecated")
        warnings.showwarning = show
        with logged_lines():
            yield


def quiet_libraries() -> None:
    """Silence warnings about optional packages. Call it before libraries are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # each of five retries is a warning
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it; it logs which kernels are missing


@contextmanager
def logged_lines() -> Iterator[None]:
    """Write log messages of `seg2any` to stderr."""
    logger, handler = logging.getLogger("seg2any"), logging.Handler()
    handler.emit = lambda record: write_line(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def warn(lines: Iterable[str]) -> None:
    """Print one warning per line to stderr."""
    for line in lines:
        write_line(f"warning: {line}")


def write_line(text: str) -> None:
    """Print to stderr, above a progress bar if there is one."""
    from tqdm import tqdm  # late: Ctrl-C is caught as soon as this module is loaded

    tqdm.write(printable(text), file=sys.stderr)


def exit_status(program: str, run: Callable[[], int | None], advice: str = "start again to go on") -> int:
    """Run and return the exit status; print errors as lines after the program's name.

    advice  follows "interrupted"

    Status: 0 done, or as `run` returns; 1 done but for some, or out of memory; 2 wrong input or an unwritable file; 128
    plus a signal's number: interrupted, 130 by Ctrl-C.
    """
    message, status, interrupted = "", 0, False
    try:
        status = run() or 0
    except (UserError, OSError) as error:
        message, status = str(error), 2
    except Incomplete as error:
        message, status = str(error), 1
    except MemoryError as error:
        message, status = str(error) or "out of memory", 1
    except KeyboardInterrupt:
        interrupted = True
    except BaseException:  # libraries in C turn an interrupt into errors of their own
        if not interrupts.was_interrupted():
            raise
    if interrupted or interrupts.was_interrupted():
        interrupts.report(program, advice)
        return interrupts.exit_status()
    for line in message.splitlines():
        print(f"{program}: {printable(line)}", file=sys.stderr)
    return status


def whole(low: int, high: float = math.inf) -> Callable[[str], int]:
    """Make a parser of whole numbers within bounds, for argparse."""
    return _bounded(int, low, high)


def real(low: float, high: float = math.inf) -> Callable[[str], float]:
    """Make a parser of finite numbers within bounds, for argparse."""
    return _bounded(float, low, high)


def yes_or_no(text: str) -> bool:
    """Parse true or false, for argparse."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} is neither true nor false")
    return text.lower() == "true"


def _bounded(convert: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    kind = "a whole number" if convert is int else "a number"
    bounds = f"of at least {low}" if high == math.inf else f"from {low} to {high}"

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(f"{text} is not {kind} {bounds}")
        return value

    return parse
