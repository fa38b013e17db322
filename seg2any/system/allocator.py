"""Keep freed memory in this process for the next step.

glibc returns freed memory to the system and takes it back page by page, which at FLUX's width takes a tenth of a
denoising step on a CPU (`docs/performance.md`).
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # options of mallopt in malloc.h
MOST_BYTES = 2**30  # larger allocations are few


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory from now on.

    Returns whether the C library can: glibc can; those of macOS and Windows, and musl, cannot.

    The process then stays at the size of its peak, so programs call this and libraries do not.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(option, MOST_BYTES) for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)])
