"""How the commands of this project end."""

from __future__ import annotations

import sys
from collections.abc import Callable

from seg2any.errors import UserError


def exit_status(program: str, run: Callable[[], int | None], advice: str = "start again to go on") -> int:
    """Run and say what went wrong, a line each, after the name of the program; `advice` is for who interrupted it.

    0 done, or what `run` returns; 1 out of memory, 2 wrong input or a file that cannot be written, 130 interrupted.
    """
    try:
        return run() or 0
    except (UserError, OSError) as error:
        message, status = str(error), 2
    except MemoryError as error:
        message, status = str(error) or "out of memory", 1
    except KeyboardInterrupt:
        message, status = f"interrupted; {advice}", 130
    for line in message.splitlines():
        print(f"{program}: {line}", file=sys.stderr)
    return status
