"""How the run talks: one line per message, progress bars undisturbed, libraries quiet about themselves."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def plain_messages() -> Iterator[None]:
    """Show each of our warnings once, as a line without its place in the code, what our modules log as it is, and none
    of the libraries' own affairs. To be entered before they are imported.
    """
    quiet_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack a letter of a file name, UTF-8 lacks Latin-1's
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
    """To be called before libraries are imported: they warn on import of what they lack and nothing here needs."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it tells what kernels it lacks


@contextmanager
def logged_lines() -> Iterator[None]:
    """What `seg2any` logs goes to stderr."""
    logger, handler = logging.getLogger("seg2any"), logging.Handler()
    handler.emit = lambda record: tqdm.write(record.getMessage(), file=sys.stderr)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def warn(lines: Iterable[str]) -> None:
    """One warning per line, to stderr."""
    for line in lines:
        tqdm.write(f"warning: {line}", file=sys.stderr)
