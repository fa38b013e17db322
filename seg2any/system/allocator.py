"""Freed memory of this process, kept for the next step. glibc gives it back to the system and takes it again page by
page, which at FLUX's width takes a tenth of a denoising step on a CPU (`docs/performance.md`)."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MOST_BYTES = 2**30  # larger pieces are few


def keep_freed_memory() -> bool:
    """From now on, for the whole process. Its size then stays at its peak, so this is for programs, not for libraries.

    Returns whether the C library can do it: glibc can, those of macOS and Windows and musl cannot.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(option, MOST_BYTES) for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)])
